"""The bytes of a chunk index: header and pack table entries, both ways. `index` reads whole files with them.

Source: update-engine.md section 4.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import NamedTuple

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.components import INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, PACK_HEADER_BYTES
from tidewaiter_core.payload.errors import (
    PayloadLengthError,
    PayloadLimitError,
    PayloadMapError,
)
from tidewaiter_core.payload.limits import MAGIC_TAIL, STANDARD, U32_MAX, U64_MAX, Limits, chunk_count, end_of
from tidewaiter_core.payload.magic import check_magic

HASH_BYTES = 32
UNIT_BYTES = 48
ORDER_BYTES = 4
_NO_HASH = bytes(HASH_BYTES)
_MAGIC = b"TWCI" + MAGIC_TAIL
_VERSION = 1
_HEADER = struct.Struct("<8sIIQII32s32s32sQQQQ")
_UNIT = struct.Struct("<QIB3s32s")


class Method(IntEnum):
    """How a chunk is stored."""

    ZERO = 0
    """Not stored: all bytes are zero."""
    ZSTD = 1
    """One zstd frame."""
    RAW = 2
    """As it is; compression would have saved less than 1/16."""
    SAME = 3
    """Not stored: equal to the earlier chunk whose number is in `offset`."""


# Plain numbers for the loop over every chunk: going through the enumeration costs more than all other checks together.
_METHODS = tuple(Method)
_ZERO, _RAW, _SAME = int(Method.ZERO), int(Method.RAW), int(Method.SAME)
_NOT_STORED = (_ZERO, _SAME)


class Unit(NamedTuple):
    """One entry of the pack table. A tuple, because one is made for every chunk, several times in an installation."""

    offset: int
    """Byte offset in the pack; for SAME the number of the earlier chunk; for ZERO 0."""
    stored_bytes: int
    method: Method
    sha256: bytes = _NO_HASH
    """The 32 bytes of the stored bytes' SHA-256; zeros where nothing is stored."""

    def to_bytes(self) -> bytes:
        """The 48 bytes of the table entry.

        Raises:
            PayloadLimitError: A number does not fit its field.
        """
        if (
            not 0 <= self.offset <= U64_MAX
            or not 0 <= self.stored_bytes <= U32_MAX
            or len(self.sha256) != HASH_BYTES
        ):
            raise PayloadLimitError(
                f"index: unit {self.offset}+{self.stored_bytes} does not fit the table; nothing was built"
            )
        return _UNIT.pack(self.offset, self.stored_bytes, self.method, bytes(3), self.sha256)


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexHeader:
    """What an index says about its image and its pack."""

    image_bytes: int
    chunk_bytes: int
    chunk_count: int
    image_sha256: Sha256
    image_root: Sha256
    pack_root: Sha256
    pack_bytes: int

    @property
    def hash_offset(self) -> int:
        return INDEX_HEADER_BYTES

    @property
    def unit_offset(self) -> int:
        return INDEX_HEADER_BYTES + HASH_BYTES * self.chunk_count

    @property
    def order_offset(self) -> int:
        return self.unit_offset + UNIT_BYTES * self.chunk_count

    @property
    def file_bytes(self) -> int:
        """The only length a file with this header may have."""
        return INDEX_HEADER_BYTES + INDEX_ENTRY_BYTES * self.chunk_count

    @property
    def pack_header_bytes(self) -> int:
        """Where the first stored unit starts."""
        return PACK_HEADER_BYTES

    def chunk_length(self, number: int) -> int:
        return min(self.chunk_bytes, self.image_bytes - number * self.chunk_bytes)


def parse_header(data: bytes, *, length: int, limits: Limits = STANDARD) -> IndexHeader:
    """Check the first 160 bytes of an index file of `length` bytes.

    Raises:
        PayloadError: The member of the family says which rule is broken.
    """
    check_magic(data, _MAGIC, version=_VERSION, header_bytes=INDEX_HEADER_BYTES, what="index")
    (
        _,
        header_bytes,
        flags,
        image_bytes,
        chunk_bytes,
        count,
        image_sha256,
        image_root,
        pack_root,
        pack_bytes,
    ) = (fields := _HEADER.unpack(data[:INDEX_HEADER_BYTES]))[:10]
    if header_bytes != INDEX_HEADER_BYTES or flags:
        raise PayloadLimitError(
            f"index: header_bytes {header_bytes}, flags {flags:#x}: expected 160 and 0; refused"
        )
    limits.check_image_bytes(image_bytes, what="index")
    expected_chunk = limits.chunk_bytes_for(image_bytes)
    if chunk_bytes != expected_chunk or count != chunk_count(image_bytes, chunk_bytes):
        raise PayloadLimitError(
            f"index: {count} chunks of {chunk_bytes} bytes for an image of {image_bytes}; expected "
            f"{chunk_count(image_bytes, expected_chunk)} of {expected_chunk}; refused"
        )
    if not PACK_HEADER_BYTES <= pack_bytes <= PACK_HEADER_BYTES + image_bytes:
        raise PayloadLimitError(f"index: a pack of {pack_bytes} bytes for an image of {image_bytes}; refused")
    header = IndexHeader(
        image_bytes=image_bytes,
        chunk_bytes=chunk_bytes,
        chunk_count=count,
        image_sha256=Sha256.from_raw(image_sha256),
        image_root=Sha256.from_raw(image_root),
        pack_root=Sha256.from_raw(pack_root),
        pack_bytes=pack_bytes,
    )
    if fields[10:] != (header.hash_offset, header.unit_offset, header.order_offset):
        raise PayloadLimitError(f"index: tables at {fields[10:]}, not where {count} chunks put them; refused")
    if length != header.file_bytes:
        raise PayloadLengthError(
            f"index: {length} bytes, {count} chunks need exactly {header.file_bytes}; refused"
        )
    return header


def parse_unit(data: bytes, *, number: int, header: IndexHeader, at: int = 0) -> Unit:
    """Check the pack table entry of chunk `number`.

    Args:
        at: Where in `data` the entry starts.

    Raises:
        PayloadError: The entry leaves the pack or breaks a rule of its method.
    """
    offset, stored_bytes, method, reserved, digest = _UNIT.unpack_from(data, at)
    if reserved != b"\0\0\0" or method > _SAME:
        raise PayloadLimitError(
            f"index: chunk {number}: method {method}, reserved {reserved.hex()}; the release is refused"
        )
    unit = Unit(offset, stored_bytes, _METHODS[method], digest)
    if method in _NOT_STORED:
        if stored_bytes or digest != _NO_HASH or (method == _ZERO and offset):
            raise PayloadLimitError(
                f"{_name(number, unit)}: fields that must be zero are not; the release is refused"
            )
        if method == _SAME and offset >= number:
            raise PayloadMapError(
                f"{_name(number, unit)}: refers to chunk {offset}, which is not earlier; the release is refused"
            )
        return unit
    longest = header.chunk_length(number)
    shortest = longest if method == _RAW else 1
    if not shortest <= stored_bytes <= longest or offset < PACK_HEADER_BYTES:
        raise PayloadLimitError(
            f"{_name(number, unit)}: {stored_bytes} bytes stored at {offset} for a chunk of {longest}; refused"
        )
    if offset + stored_bytes > header.pack_bytes:
        end_of(offset, stored_bytes, limit=header.pack_bytes, what=_name(number, unit))
    return unit


def _name(number: int, unit: Unit) -> str:
    return f"index: chunk {number} ({unit.method.name.lower()})"


def build_index(
    *,
    image_bytes: int,
    image_sha256: bytes,
    chunk_hashes: Sequence[bytes],
    units: Sequence[Unit],
    pack_bytes: int,
    limits: Limits = STANDARD,
) -> bytes:
    """The bytes of an index file; the chunk size follows from the image size.

    Args:
        image_sha256: The 32 bytes of the whole image's SHA-256.
        chunk_hashes: 32 bytes per chunk, in chunk order.
        units: Where each chunk is stored, in chunk order.

    Raises:
        PayloadError: The parts do not fit each other.
    """
    limits.check_image_bytes(image_bytes, what="index")
    chunk_bytes = limits.chunk_bytes_for(image_bytes)
    count = chunk_count(image_bytes, chunk_bytes)
    if not len(chunk_hashes) == len(units) == count:
        raise PayloadLengthError(
            f"index: {len(chunk_hashes)} hashes and {len(units)} units for {count} chunks; nothing was built"
        )
    hash_table = b"".join(chunk_hashes)
    unit_table = b"".join(unit.to_bytes() for unit in units)
    order = sorted(range(count), key=lambda number: (chunk_hashes[number], number))
    header = _HEADER.pack(
        _MAGIC + bytes([_VERSION]),
        INDEX_HEADER_BYTES,
        0,
        image_bytes,
        chunk_bytes,
        count,
        image_sha256,
        sha256(hash_table).digest(),
        sha256(unit_table).digest(),
        pack_bytes,
        INDEX_HEADER_BYTES,
        INDEX_HEADER_BYTES + HASH_BYTES * count,
        INDEX_HEADER_BYTES + (HASH_BYTES + UNIT_BYTES) * count,
    )
    data = header + hash_table + unit_table + struct.pack(f"<{count}I", *order)
    parse_header(data, length=len(data), limits=limits)
    return data
