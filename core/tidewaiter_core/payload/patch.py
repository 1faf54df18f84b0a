"""A patch `.twpt`: how to make one image out of another. Read by windows, never loaded whole.

Only the head (everything before the segments) is parsed here, from wherever it was spooled after its hash was proven. Invariants:
1. The header fixes the layout of the whole file; nothing is read that it does not name.
2. Segments follow each other without a gap, and so do their region runs; those of one segment strictly ascend and name
   whole regions of the old image.
3. `runs` never leaves its images (see `patchmap`), and each segment's first literal is where the segment says.
4. `new_hashes` gives exactly the table that hashes to new_root, or raises at its end: use nothing of it before.

Source: update-engine.md section 4.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.components import PATCH_HEADER_BYTES, PatchRef, SlotComponent
from tidewaiter_core.payload.errors import (
    PayloadChunkError,
    PayloadLengthError,
    PayloadLimitError,
    PayloadMapError,
)
from tidewaiter_core.payload.frame import Codec, check_frame_header, decode_frame
from tidewaiter_core.payload.index import ReadAt
from tidewaiter_core.payload.limits import STANDARD, Limits
from tidewaiter_core.payload.patchfile import (
    SEGMENT_BYTES,
    PatchHeader,
    Section,
    Segment,
    parse_patch_header,
    parse_segment,
)
from tidewaiter_core.payload.patchhashes import decode_hashes
from tidewaiter_core.payload.patchmap import Kind, Run, decode_runs
from tidewaiter_core.payload.patchregions import RegionRun, decode_regions

__all__ = [
    "PATCH_HEADER_BYTES",
    "Kind",
    "PatchHeader",
    "PatchReader",
    "Run",
    "Segment",
    "build_head",
    "require_patch_match",
]

_WINDOW_BYTES = 64 * 1024
_TABLE_WINDOW = 1024


class PatchReader:
    """The head of a patch that lies in a file."""

    def __init__(
        self, read_at: ReadAt, head_bytes: int, *, patch_bytes: int | None = None, limits: Limits = STANDARD
    ) -> None:
        """Read and check the header.

        Args:
            read_at: Reads the head; `os.pread` on its file.
            patch_bytes: Length of the whole patch, as somebody signed it.

        Raises:
            PayloadError: No patch of this version, or a length is not what its header implies.
        """
        if head_bytes < PATCH_HEADER_BYTES:
            raise PayloadLengthError(
                f"patch: a head of {head_bytes} bytes is shorter than its header; refused"
            )
        self._read_at = read_at
        self.limits = limits
        self.header: PatchHeader = parse_patch_header(
            self._read(0, PATCH_HEADER_BYTES), head_bytes=head_bytes, patch_bytes=patch_bytes, limits=limits
        )
        self._window_first = 0
        self._window = b""

    @property
    def old_blocks(self) -> int:
        return self.header.old_bytes // self.limits.block_bytes

    @property
    def new_blocks(self) -> int:
        return self.header.new_bytes // self.limits.block_bytes

    def segment(self, number: int) -> Segment:
        """One entry of the segment table, checked for itself.

        Raises:
            PayloadError: There is no such segment, or its entry leaves its bounds.
        """
        if not 0 <= number < self.header.segment_count:
            raise PayloadLimitError(f"patch: there is no segment {number} of {self.header.segment_count}")
        if not self._window_first <= number < self._window_first + len(self._window) // SEGMENT_BYTES:
            self._window_first = number - number % _TABLE_WINDOW
            count = min(_TABLE_WINDOW, self.header.segment_count - self._window_first)
            self._window = self._read(
                self.header.table_offset + self._window_first * SEGMENT_BYTES, count * SEGMENT_BYTES
            )
        at = (number - self._window_first) * SEGMENT_BYTES
        return parse_segment(
            self._window[at : at + SEGMENT_BYTES], number=number, header=self.header, limits=self.limits
        )

    def segments(self) -> Iterator[Segment]:
        """All segments, checked to fill the file and the regions section without a gap.

        Raises:
            PayloadError: They do not.
        """
        offset, region = self.header.data_offset, 0
        block = -1
        for number in range(self.header.segment_count):
            segment = self.segment(number)
            if segment.offset != offset or segment.region_first != region:
                raise PayloadMapError(
                    f"patch: segment {number} is not where the one before it ends; the release is refused"
                )
            if segment.first_block <= block:
                raise PayloadMapError(
                    f"patch: segment {number} starts before the one in front of it; refused"
                )
            offset += segment.stored_bytes
            region += segment.region_stored_bytes
            block = segment.first_block
            yield segment
        if offset != self.header.patch_bytes or region != self.header.regions.raw_bytes:
            raise PayloadLengthError(
                f"patch: segments end at {offset} with regions in {region} bytes, the header says {self.header.patch_bytes} and "
                f"{self.header.regions.raw_bytes}; refused"
            )

    def regions(self, segment: Segment) -> tuple[RegionRun, ...]:
        """The regions of a segment's prefix, ascending.

        Raises:
            PayloadMapError: They break a rule of `patchregions`, or one is no whole region of the old image.
        """
        data = self._read(self.header.regions.offset + segment.region_first, segment.region_stored_bytes)
        whole = self.header.old_bytes // self.limits.region_bytes
        return decode_regions(data, count=segment.region_count, whole=whole)

    def runs(self, codec: Codec) -> Iterator[Run]:
        """Where every block comes from, decoded anew at each call. Nothing is proven before the last run was given out.

        Raises:
            PayloadError: The map is no frame, or breaks a rule of `patchmap`; or a segment's first literal is elsewhere.
        """
        section, what = self.header.map, "patch: map"
        check_frame_header(
            self._read(section.offset, min(18, section.stored_bytes)), raw_bytes=section.raw_bytes, what=what
        )
        decoder = codec.decompressor(window_log_max=self.limits.window_log)
        raw = decode_frame(
            decoder, self._pieces(section), raw_bytes=section.raw_bytes, error=codec.error, what=what
        )
        firsts = self._first_literals()
        literal, block = next(firsts)
        total = sum(segment.literal_bytes // self.limits.block_bytes for segment in self.segments())
        for run in decode_runs(
            raw, old_blocks=self.old_blocks, new_blocks=self.new_blocks, literal_blocks=total
        ):
            if run.kind == Kind.LITERAL:
                while run.source <= literal < run.source + run.blocks:
                    if run.target + literal - run.source != block:
                        raise PayloadMapError(
                            f"patch: literal {literal} is block {run.target + literal - run.source}, its segment says {block}; "
                            "the release is refused"
                        )
                    literal, block = next(firsts)
            yield run

    def verify(self, codec: Codec, *, step: Callable[[], None] = lambda: None) -> None:
        """Check every table once, in bounded memory. What passed can be applied without a surprise but wrong content.

        Args:
            step: Called often.

        Raises:
            PayloadError: The first rule that is broken.
        """
        for segment in self.segments():
            self.regions(segment)
            step()
        for number, _ in enumerate(self.runs(codec)):
            if not number % _TABLE_WINDOW:
                step()

    def new_hashes(self, old_hash: Callable[[int], bytes]) -> Iterator[bytes]:
        """The chunk hashes of the new image, in order; proven only when the last one was taken.

        Args:
            old_hash: The 32 bytes of a chunk's hash of the image whose root is `header.old_root`.

        Raises:
            PayloadMapError: The section breaks its rules.
            PayloadChunkError: The table does not hash to new_root.
        """
        root = hashlib.sha256()
        for digest in decode_hashes(
            self._pieces(self.header.hashes),
            count=self.header.chunk_count,
            old_count=self.header.old_chunk_count,
            old_hash=old_hash,
        ):
            root.update(digest)
            yield digest
        if root.hexdigest() != self.header.new_root:
            raise PayloadChunkError(
                f"patch: the rebuilt hash table has root {root.hexdigest()}, expected {self.header.new_root}; not used"
            )

    def _first_literals(self) -> Iterator[tuple[int, int]]:
        """Number and target block of each segment's first literal; then an end that is never reached."""
        literal = 0
        for number in range(self.header.segment_count):
            segment = self.segment(number)
            yield literal, segment.first_block
            literal += segment.literal_bytes // self.limits.block_bytes
        yield -1, -1

    def _pieces(self, section: Section) -> Iterator[bytes]:
        for offset in range(section.offset, section.end, _WINDOW_BYTES):
            yield self._read(offset, min(_WINDOW_BYTES, section.end - offset))

    def _read(self, offset: int, length: int) -> bytes:
        data = self._read_at(offset, length)
        if len(data) != length:
            raise PayloadLengthError(
                f"patch: {len(data)} of {length} bytes at offset {offset} could be read; the file shrank"
            )
        return data


def require_patch_match(header: PatchHeader, component: SlotComponent, patch: PatchRef) -> None:
    """Refuse a patch that is not the one release.json means.

    Raises:
        PayloadChunkError: They differ.
    """
    for name, found, expected in (
        ("old_root", header.old_root, patch.from_root),
        ("new_root", header.new_root, component.image_root),
        ("new_sha256", header.new_sha256, component.image_sha256),
        ("new_bytes", header.new_bytes, component.image_bytes),
        ("chunk_bytes", header.chunk_bytes, component.chunk_bytes),
        ("patch_bytes", header.patch_bytes, patch.length),
        ("head_bytes", header.data_offset, patch.head_bytes),
    ):
        if found != expected:
            raise PayloadChunkError(
                f"patch: {name} is {found}, release.json says {expected}; the pair is refused"
            )


def build_head(
    *,
    old_bytes: int,
    new_bytes: int,
    old_root: Sha256,
    new_root: Sha256,
    new_sha256: Sha256,
    map_frame: bytes,
    map_bytes: int,
    regions: bytes,
    hashes: bytes,
    segments: Sequence[Segment],
    limits: Limits = STANDARD,
) -> bytes:
    """The head of a patch; the segments follow it in the file.

    Args:
        map_frame: The map as one zstd frame; `map_bytes` is its raw length.
        regions: The region runs of all segments, in order.
        segments: With offsets counted from the first segment; they are moved behind the head here.

    Raises:
        PayloadError: The parts break a bound of the format.
    """
    place = PATCH_HEADER_BYTES
    sections = []
    for stored, raw_bytes in ((map_frame, map_bytes), (regions, len(regions)), (hashes, len(hashes))):
        sections.append(Section(place, len(stored), raw_bytes))
        place += len(stored)
    data_offset = place + SEGMENT_BYTES * len(segments)
    header = PatchHeader(
        old_bytes=old_bytes,
        new_bytes=new_bytes,
        old_root=old_root,
        new_root=new_root,
        new_sha256=new_sha256,
        chunk_bytes=limits.chunk_bytes_for(new_bytes),
        segment_count=len(segments),
        map=sections[0],
        regions=sections[1],
        hashes=sections[2],
        patch_bytes=data_offset + sum(segment.stored_bytes for segment in segments),
    )
    entries = b"".join(
        replace(segment, offset=segment.offset + data_offset).to_bytes() for segment in segments
    )
    head = header.to_bytes(limits=limits) + map_frame + regions + hashes + entries
    reader = PatchReader(lambda offset, length: head[offset : offset + length], len(head), limits=limits)
    for segment in reader.segments():
        reader.regions(segment)
    return head
