"""The bytes of a patch head: header and segment table entries, both ways. `patch` reads whole heads with them.

The layout is canonical: header, map, regions, hashes, segment table, then the segments, each behind the one before it without
a gap. So every offset follows from the lengths, and a file of another length is refused.
Source: update-engine.md section 4.4.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.components import PATCH_HEADER_BYTES
from tidewaiter_core.payload.errors import PayloadLengthError, PayloadLimitError, PayloadMapError
from tidewaiter_core.payload.limits import MAGIC_TAIL, STANDARD, U32_MAX, U64_MAX, Limits, chunk_count, end_of
from tidewaiter_core.payload.magic import check_magic
from tidewaiter_core.payload.patchregions import MAX_RUN_BYTES

SEGMENT_BYTES = 64
HASH_BYTES = 32
_MAGIC = b"TWPT" + MAGIC_TAIL
PATCH_VERSION = 2
"""1 had regions of 64 KiB as a plain array, and no hash of a chunk that moved (docs/adr/0013); none was ever in the field."""
_HEADER = struct.Struct("<8sIIQQ32s32s32sIIIBBBBIIQIIQIIQIIQQQ")
_SEGMENT = struct.Struct("<QIIIIII32s")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the head."""

    offset: int
    stored_bytes: int
    raw_bytes: int
    """Length after decoding; equal to `stored_bytes` where nothing is compressed."""

    @property
    def end(self) -> int:
        return self.offset + self.stored_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchHeader:
    """What a patch says about its two images and its own parts."""

    old_bytes: int
    new_bytes: int
    old_root: Sha256
    new_root: Sha256
    new_sha256: Sha256
    chunk_bytes: int
    """Chunk size of both roots."""
    segment_count: int
    map: Section
    """One zstd frame."""
    regions: Section
    hashes: Section
    patch_bytes: int
    """Length of the whole file."""

    @property
    def table_offset(self) -> int:
        """Where the segment table starts."""
        return self.hashes.end

    @property
    def data_offset(self) -> int:
        """Where the first segment starts: the length of the head."""
        return self.table_offset + SEGMENT_BYTES * self.segment_count

    @property
    def chunk_count(self) -> int:
        """Chunks of the new image."""
        return chunk_count(self.new_bytes, self.chunk_bytes)

    @property
    def old_chunk_count(self) -> int:
        return chunk_count(self.old_bytes, self.chunk_bytes)

    def to_bytes(self, *, limits: Limits = STANDARD) -> bytes:
        """The 224 bytes of the header.

        Raises:
            PayloadLimitError: A number does not fit its field.
        """
        sections = (self.map, self.regions, self.hashes)
        small = [number for part in sections for number in (part.stored_bytes, part.raw_bytes)]
        if max(small) > U32_MAX or min(small) < 0 or not 0 <= self.patch_bytes <= U64_MAX:
            raise PayloadLimitError(
                "patch: a section is too long for its field of four bytes; nothing was built"
            )
        return _HEADER.pack(
            _MAGIC + bytes([PATCH_VERSION]),
            PATCH_HEADER_BYTES,
            0,
            self.old_bytes,
            self.new_bytes,
            self.old_root.raw,
            self.new_root.raw,
            self.new_sha256.raw,
            limits.block_bytes,
            limits.region_bytes,
            self.chunk_bytes,
            limits.segment_log,
            limits.prefix_log,
            limits.window_log,
            0,
            self.segment_count,
            0,
            *(number for part in sections for number in (part.offset, part.stored_bytes, part.raw_bytes)),
            self.table_offset,
            self.data_offset,
            self.patch_bytes,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One zstd frame of literal blocks, to be decoded behind a prefix of old regions."""

    offset: int
    """In the patch file."""
    stored_bytes: int
    literal_bytes: int
    first_block: int
    """Target block of its first literal."""
    region_first: int
    """Place of its first region run in the regions section, in bytes."""
    region_count: int
    """Regions of its prefix."""
    region_stored_bytes: int
    """Length of its region runs."""
    sha256: bytes
    """The 32 bytes of the stored bytes' SHA-256."""

    def to_bytes(self) -> bytes:
        """The 64 bytes of the table entry."""
        return _SEGMENT.pack(
            self.offset,
            self.stored_bytes,
            self.literal_bytes,
            self.first_block,
            self.region_first,
            self.region_count,
            self.region_stored_bytes,
            self.sha256,
        )


def parse_patch_header(
    data: bytes, *, head_bytes: int | None = None, patch_bytes: int | None = None, limits: Limits = STANDARD
) -> PatchHeader:
    """Check the first 224 bytes of a patch.

    Args:
        head_bytes: Length of the head, if the caller knows it.
        patch_bytes: Length of the file, if the caller knows it.

    Raises:
        PayloadError: The member of the family says which rule is broken.
    """
    check_magic(data, _MAGIC, version=PATCH_VERSION, header_bytes=PATCH_HEADER_BYTES, what="patch")
    fields = _HEADER.unpack(data[:PATCH_HEADER_BYTES])
    _, header_bytes, flags, old_bytes, new_bytes, old_root, new_root, new_sha256 = fields[:8]
    block_bytes, region_bytes, chunk_bytes, segment_log, prefix_log, window_log, zero, count, reserved = (
        fields[8:17]
    )
    if header_bytes != PATCH_HEADER_BYTES or flags or zero or reserved:
        raise PayloadLimitError(
            f"patch: header_bytes {header_bytes}, flags {flags:#x}, reserved {zero}, {reserved}: expected 224, 0, 0, 0; refused"
        )
    sizes = (block_bytes, region_bytes, segment_log, prefix_log, window_log)
    expected = (
        limits.block_bytes,
        limits.region_bytes,
        limits.segment_log,
        limits.prefix_log,
        limits.window_log,
    )
    if sizes != expected:
        raise PayloadLimitError(
            f"patch: block, region, segment, prefix, window are {sizes}, expected {expected}; refused"
        )
    for image_bytes, what in ((old_bytes, "patch: old image"), (new_bytes, "patch: new image")):
        limits.check_image_bytes(image_bytes, what=what)
        if chunk_bytes != limits.chunk_bytes_for(image_bytes):
            raise PayloadLimitError(f"{what}: chunks of {chunk_bytes} bytes for {image_bytes}; refused")
    if count > limits.max_segments:
        raise PayloadLimitError(
            f"patch: {count} segments, at most {limits.max_segments} are allowed; refused"
        )
    header = PatchHeader(
        old_bytes=old_bytes,
        new_bytes=new_bytes,
        old_root=Sha256.from_raw(old_root),
        new_root=Sha256.from_raw(new_root),
        new_sha256=Sha256.from_raw(new_sha256),
        chunk_bytes=chunk_bytes,
        segment_count=count,
        map=Section(*fields[17:20]),
        regions=Section(*fields[20:23]),
        hashes=Section(*fields[23:26]),
        patch_bytes=fields[28],
    )
    _check_layout(header, table_offset=fields[26], data_offset=fields[27], limits=limits)
    for name, found, implied in (
        ("head", head_bytes, header.data_offset),
        ("file", patch_bytes, header.patch_bytes),
    ):
        if found is not None and found != implied:
            raise PayloadLengthError(f"patch: {name} of {found} bytes, its header implies {implied}; refused")
    return header


def _check_layout(header: PatchHeader, *, table_offset: int, data_offset: int, limits: Limits) -> None:
    """Each section where the one before it ends, each as long as it can be."""
    end = PATCH_HEADER_BYTES
    for name, section, low, high in (
        ("map", header.map, 1, limits.max_map_bytes),
        ("regions", header.regions, 0, header.segment_count * limits.max_regions * MAX_RUN_BYTES),
        ("hashes", header.hashes, 1, header.chunk_count * (HASH_BYTES + 15) + 15),
    ):
        plain = name == "map" or section.stored_bytes == section.raw_bytes
        if section.offset != end or not low <= section.raw_bytes <= high or not plain:
            raise PayloadLimitError(
                f"patch: {name} at {section.offset}, {section.stored_bytes} bytes stored for {section.raw_bytes}; expected "
                f"them at {end}, {low} to {high} bytes; refused"
            )
        end = end_of(end, section.stored_bytes, limit=limits.max_head_bytes, what=f"patch: {name}")
    if not header.map.stored_bytes:
        raise PayloadLimitError("patch: an empty map; refused")
    if (table_offset, data_offset) != (header.table_offset, header.data_offset):
        raise PayloadLimitError(
            f"patch: segment table at {table_offset}, data at {data_offset}; expected {header.table_offset} and "
            f"{header.data_offset}; refused"
        )
    end_of(0, data_offset, limit=limits.max_head_bytes, what="patch: head")
    most = header.segment_count * limits.max_stored_segment_bytes
    if not header.segment_count <= header.patch_bytes - data_offset <= most:
        raise PayloadLimitError(
            f"patch: {header.patch_bytes} bytes cannot be a head of {data_offset} and {header.segment_count} segments; refused"
        )


def parse_segment(data: bytes, *, number: int, header: PatchHeader, limits: Limits = STANDARD) -> Segment:
    """Check one entry of the segment table for itself; `patch` checks that the entries follow each other.

    Raises:
        PayloadError: The entry leaves the file, its images or the bounds of a segment.
    """
    offset, stored_bytes, literal_bytes, first_block, region_first, region_count, region_stored, digest = (
        _SEGMENT.unpack(data)
    )
    what = f"patch: segment {number}"
    if not 0 < stored_bytes <= limits.max_stored_segment_bytes:
        raise PayloadLimitError(f"{what}: {stored_bytes} bytes stored; refused")
    if not 0 < literal_bytes <= limits.segment_bytes or literal_bytes % limits.block_bytes:
        raise PayloadLimitError(
            f"{what}: {literal_bytes} literal bytes are no whole blocks of one segment; refused"
        )
    if region_count > limits.max_regions or region_stored > region_count * MAX_RUN_BYTES:
        raise PayloadLimitError(
            f"{what}: {region_count} regions in {region_stored} bytes, at most {limits.max_regions} in "
            f"{MAX_RUN_BYTES} bytes each; refused"
        )
    if offset < header.data_offset:
        raise PayloadLimitError(f"{what}: starts at {offset}, inside the head; refused")
    end_of(offset, stored_bytes, limit=header.patch_bytes, what=what)
    end_of(
        region_first,
        region_stored,
        limit=header.regions.raw_bytes,
        what=f"{what}: regions",
    )
    if first_block >= header.new_bytes // limits.block_bytes:
        raise PayloadMapError(f"{what}: first literal at block {first_block}, behind the image; refused")
    return Segment(
        offset=offset,
        stored_bytes=stored_bytes,
        literal_bytes=literal_bytes,
        first_block=first_block,
        region_first=region_first,
        region_count=region_count,
        region_stored_bytes=region_stored,
        sha256=digest,
    )
