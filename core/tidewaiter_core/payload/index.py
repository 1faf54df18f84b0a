"""The chunk index `.twci`: which chunks an image consists of, and where each one is stored in the pack.

Read by windows, never loaded whole: a 256 GiB image has an index of 22 MiB. Invariants of `IndexReader`:
1. Nothing is believed before it is checked: the header at construction, each table entry when asked for.
2. An entry that passed refers only to bytes inside the pack, or to an earlier chunk that is stored itself.
3. Entries prove nothing about content; `verify_tables` ties the tables to the roots that release.json signs.
The reader keeps one window per table and replaces it as a whole, and the entry it gave last: threads may share it if `read_at`
allows.

Source: update-engine.md section 4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from tidewaiter_core.payload.components import INDEX_ENTRY_BYTES, INDEX_HEADER_BYTES, SlotComponent
from tidewaiter_core.payload.errors import (
    PayloadChunkError,
    PayloadLengthError,
    PayloadLimitError,
    PayloadMapError,
)
from tidewaiter_core.payload.indexfile import (
    HASH_BYTES,
    ORDER_BYTES,
    UNIT_BYTES,
    IndexHeader,
    Method,
    Unit,
    build_index,
    parse_header,
    parse_unit,
)
from tidewaiter_core.payload.limits import STANDARD, Limits

__all__ = [
    "INDEX_ENTRY_BYTES",
    "INDEX_HEADER_BYTES",
    "IndexHeader",
    "IndexReader",
    "Method",
    "ReadAt",
    "Unit",
    "build_index",
    "require_match",
]

ReadAt = Callable[[int, int], bytes]
"""`read_at(offset, length)` returns exactly those bytes of the file, as `os.pread` on a regular file does."""

_WINDOW_ENTRIES = 1024


@dataclass(frozen=True, slots=True)
class _Window:
    first: int
    data: bytes


class IndexReader:
    """A chunk index that lies in a file."""

    def __init__(self, read_at: ReadAt, length: int, *, limits: Limits = STANDARD) -> None:
        """Read and check the header.

        Raises:
            PayloadError: No index of this version, or `length` is not what its header implies.
        """
        if length < INDEX_HEADER_BYTES:
            raise PayloadLengthError(
                f"index: {length} bytes are less than its header of {INDEX_HEADER_BYTES}; refused"
            )
        self._read_at = read_at
        self.header: IndexHeader = parse_header(
            self._read(0, INDEX_HEADER_BYTES), length=length, limits=limits
        )
        self._hashes = _Window(0, b"")
        self._units = _Window(0, b"")
        self._last: tuple[int, Unit] | None = None

    def chunk_length(self, number: int) -> int:
        """How many bytes the chunk has: the last one may be short."""
        self._check_number(number)
        return self.header.chunk_length(number)

    def chunk_hash(self, number: int) -> bytes:
        """The 32 bytes of the raw chunk's SHA-256."""
        window = self._hashes
        start = (number - window.first) * HASH_BYTES
        if not 0 <= start < len(window.data):
            self._check_number(number)
            window = self._hashes = self._window(self.header.hash_offset, HASH_BYTES, number)
            start = (number - window.first) * HASH_BYTES
        return window.data[start : start + HASH_BYTES]

    def unit(self, number: int) -> Unit:
        """Where the chunk is stored.

        Raises:
            PayloadError: The entry leaves the pack, or contradicts the rest of the index.
        """
        last = self._last
        if last is not None and last[0] == number:
            return last[1]
        window = self._units
        at = (number - window.first) * UNIT_BYTES
        if not 0 <= at < len(window.data):
            self._check_number(number)
            window = self._units = self._window(self.header.unit_offset, UNIT_BYTES, number)
            at = (number - window.first) * UNIT_BYTES
        unit = parse_unit(window.data, number=number, header=self.header, at=at)
        if unit.method is Method.RAW and unit.sha256 != self.chunk_hash(number):
            raise PayloadMapError(
                f"index: chunk {number} is stored raw under another hash; the release is refused"
            )
        if unit.method is Method.SAME:
            self._check_same(number, unit.offset)
        self._last = (number, unit)
        return unit

    def find(self, hash32: bytes) -> list[int]:
        """The numbers of all chunks with this hash, ascending; empty if there are none.

        Raises:
            PayloadMapError: The order table is not sorted where the search looked.
        """
        low, high = 0, self.header.chunk_count
        below, above = b"", b"\xff" * (HASH_BYTES + 1)
        while low < high:
            middle = (low + high) // 2
            probe = self._hash_of(self._order(middle))
            if not below <= probe <= above:
                raise PayloadMapError(
                    f"index: order table entry {middle} is not in order; the release is refused"
                )
            if probe < hash32:
                low, below = middle + 1, probe
            else:
                high, above = middle, probe
        return self._run(low, hash32)

    def verify_tables(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Recompute image_root and pack_root from the tables and check every pack entry, by windows.

        Args:
            progress: Called with (chunks done, all chunks) after each window.

        Raises:
            PayloadChunkError: A table does not hash to the root in the header.
            PayloadError: An entry breaks a rule, or the stored units do not fill the pack in chunk order.
        """
        image, pack = hashlib.sha256(), hashlib.sha256()
        end = self.header.pack_header_bytes
        for first in range(0, self.header.chunk_count, _WINDOW_ENTRIES):
            self._hashes = self._window(self.header.hash_offset, HASH_BYTES, first)
            self._units = self._window(self.header.unit_offset, UNIT_BYTES, first)
            image.update(self._hashes.data)
            pack.update(self._units.data)
            for number in range(first, first + len(self._hashes.data) // HASH_BYTES):
                end = self._follows(number, end)
            if progress is not None:
                progress(min(first + _WINDOW_ENTRIES, self.header.chunk_count), self.header.chunk_count)
        for name, found, expected in (
            ("image_root", image.hexdigest(), self.header.image_root),
            ("pack_root", pack.hexdigest(), self.header.pack_root),
        ):
            if found != expected:
                raise PayloadChunkError(
                    f"index: {name} is {expected}, its table hashes to {found}; the release is refused"
                )
        if end != self.header.pack_bytes:
            raise PayloadLengthError(
                f"index: units end at byte {end} of a pack of {self.header.pack_bytes}; refused"
            )

    def _follows(self, number: int, end: int) -> int:
        """Check that a stored unit starts where the one before it ended; returns its end."""
        unit = self.unit(number)
        if not unit.stored_bytes:
            return end
        if unit.offset != end:
            raise PayloadMapError(
                f"index: chunk {number} is stored at byte {unit.offset}, the one before it ends at {end}; "
                "the release is refused"
            )
        return end + unit.stored_bytes

    def _run(self, position: int, hash32: bytes) -> list[int]:
        """The chunk numbers from `position` of the order table on, as long as they have this hash."""
        found: list[int] = []
        while position < self.header.chunk_count:
            number = self._order(position)
            if self._hash_of(number) != hash32:
                break
            if found and number <= found[-1]:
                raise PayloadMapError(
                    f"index: order table entry {position} is not in order; the release is refused"
                )
            found.append(number)
            position += 1
        return found

    def _order(self, position: int) -> int:
        data = self._read(self.header.order_offset + position * ORDER_BYTES, ORDER_BYTES)
        number = int.from_bytes(data, "little")
        if number >= self.header.chunk_count:
            raise PayloadMapError(
                f"index: order table entry {position} names chunk {number} of {self.header.chunk_count}; "
                "the release is refused"
            )
        return number

    def _check_same(self, number: int, earlier: int) -> None:
        # Both reads are single entries: a window would be lost to each jump back.
        entry = self._read(self.header.unit_offset + earlier * UNIT_BYTES, UNIT_BYTES)
        target = parse_unit(entry, number=earlier, header=self.header)
        if not target.stored_bytes or self._hash_of(earlier) != self.chunk_hash(number):
            raise PayloadMapError(
                f"index: chunk {number} claims to equal chunk {earlier}, which is another or not stored; "
                "the release is refused"
            )

    def _hash_of(self, number: int) -> bytes:
        """One chunk hash, past the window."""
        return self._read(self.header.hash_offset + number * HASH_BYTES, HASH_BYTES)

    def _window(self, table: int, entry_bytes: int, number: int) -> _Window:
        first = number - number % _WINDOW_ENTRIES
        count = min(_WINDOW_ENTRIES, self.header.chunk_count - first)
        return _Window(first, self._read(table + first * entry_bytes, count * entry_bytes))

    def _check_number(self, number: int) -> None:
        if not 0 <= number < self.header.chunk_count:
            raise PayloadLimitError(
                f"index: there is no chunk {number}, the image has {self.header.chunk_count}"
            )

    def _read(self, offset: int, length: int) -> bytes:
        data = self._read_at(offset, length)
        if len(data) != length:
            raise PayloadLengthError(
                f"index: {len(data)} of {length} bytes at offset {offset} could be read; the file shrank"
            )
        return data


def require_match(header: IndexHeader, component: SlotComponent) -> None:
    """Refuse an index that does not describe the image and the pack that release.json names.

    Raises:
        PayloadChunkError: They differ.
    """
    for name, found, expected in (
        ("image_bytes", header.image_bytes, component.image_bytes),
        ("chunk_bytes", header.chunk_bytes, component.chunk_bytes),
        ("image_sha256", header.image_sha256, component.image_sha256),
        ("image_root", header.image_root, component.image_root),
        ("pack_bytes", header.pack_bytes, component.pack.length),
    ):
        if found != expected:
            raise PayloadChunkError(
                f"index: {name} is {found}, release.json says {expected}; the pair is refused"
            )
