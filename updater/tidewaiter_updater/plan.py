"""Which chunk comes from where, and which byte ranges of the pack that makes. Pure: numbers in, numbers out.

Cheapest first: equal in place, zero, copy on the device, pack. Neighboring units are fetched together across gaps of at most
32 KiB, because a request costs more than 32 KiB; a span is at most `span_bytes` long.
Source: update-engine.md section 6.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.index import IndexReader, Method, Unit

GAP_LIMIT_BYTES: Final = 32 * 1024
SPAN_BYTES: Final = 2 * 1024 * 1024
"""Half of the 4 MiB a span may have: one is decoded while the next arrives, and 4 MiB are all a power cut may cost."""
_KEY_BITS: Final = 44
_CHUNK_BITS: Final = 20
_CHUNKS_PER_STEP: Final = 256


class Origin(StrEnum):
    """Where a chunk's bytes come from; the names are those of Status.by_source."""

    RESUME = "resume"
    ZERO = "zero"
    COPY = "copy"
    PATCH = "patch"
    PACK = "pack"


class ChunkHashes(Protocol):
    """The recorded hash table of an image."""

    image_root: Sha256
    image_bytes: int
    chunk_bytes: int
    chunk_count: int

    def chunk_hash(self, chunk: int) -> bytes: ...


class HashLookup:
    """Finds the chunks of a recorded table that have a given hash, in 8 bytes of memory per chunk.

    A hit is a candidate: only 44 bits of the hash are kept, and the record itself is a hint. The chunk is re-hashed when read.
    """

    def __init__(self, table: ChunkHashes, present: bytearray | None = None) -> None:
        """
        Args:
            present: One byte per chunk, zero where the record is known not to hold any more; None: it holds everywhere.
        """
        keys = (
            self._key(table.chunk_hash(chunk)) << _CHUNK_BITS | chunk
            for chunk in range(table.chunk_count)
            if present is None or (chunk < len(present) and present[chunk])
        )
        self._sorted = array("Q", sorted(keys))

    def first_at_or_after(self, digest: bytes, chunk: int) -> int | None:
        """The lowest-numbered candidate that is not before `chunk`."""
        key = self._key(digest)
        position = bisect_left(self._sorted, key << _CHUNK_BITS | chunk)
        if position < len(self._sorted) and self._sorted[position] >> _CHUNK_BITS == key:
            return self._sorted[position] & ((1 << _CHUNK_BITS) - 1)
        return None

    @staticmethod
    def _key(digest: bytes) -> int:
        return int.from_bytes(digest[:8], "big") >> (64 - _KEY_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One request: a byte range of the pack and the chunks whose units lie in it, in order."""

    offset: int
    length: int
    chunks: array[int]
    """Four bytes each: a plan for 262,144 chunks has to fit beside everything else."""


def spans(
    units: Iterable[tuple[int, Unit]], *, span_bytes: int = SPAN_BYTES, gap_bytes: int = GAP_LIMIT_BYTES
) -> Iterator[Span]:
    """Join units (in pack order) to spans; a gap is fetched and thrown away only while it is cheaper than a request."""
    start = end = 0
    chunks = array("I")
    for chunk, unit in units:
        unit_end = unit.offset + unit.stored_bytes
        if chunks and (unit.offset - end > gap_bytes or unit_end - start > span_bytes or unit.offset < end):
            yield Span(offset=start, length=end - start, chunks=chunks)
            chunks = array("I")
        if not chunks:
            start = unit.offset
        chunks.append(chunk)
        end = unit_end
    if chunks:
        yield Span(offset=start, length=end - start, chunks=chunks)


class TransferPlan:
    """What one pass over the target will do: ten to fifteen bytes of memory per chunk."""

    def __init__(
        self,
        index: IndexReader,
        wrong: bytearray,
        *,
        active: HashLookup | None,
        target: HashLookup | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            wrong: One byte per chunk, non-zero where the target does not hold it.
            active: The recorded chunks of the active slot.
            target: What the target itself holds, until it is overwritten from front to back.
        """
        self._index = index
        self._wrong = wrong
        self._copy_from = array("i", [-1]) * index.header.chunk_count
        self._move_from = array("i", [-1]) * (index.header.chunk_count if target is not None else 0)
        self._methods = bytearray(index.header.chunk_count)
        self.spans = tuple(spans(self._planned(active, target, step), span_bytes=SPAN_BYTES))
        """The requests of this plan, in chunk order."""
        self.expected_fetch_bytes = sum(span.length for span in self.spans)
        """All bytes that the spans of this plan have, gaps included."""

    def wrong_chunks(self) -> Iterator[int]:
        """The chunks to write, ascending."""
        chunk = self._wrong.find(1)
        while chunk >= 0:
            yield chunk
            chunk = self._wrong.find(1, chunk + 1)

    def origin(self, chunk: int) -> Origin:
        """Where `chunk` is planned to come from."""
        if not self._wrong[chunk]:
            return Origin.RESUME
        method = self._methods[chunk]
        if method == Method.ZERO:
            return Origin.ZERO
        if self._copy_from[chunk] >= 0 or self.move_from(chunk) is not None or method == Method.SAME:
            return Origin.COPY
        return Origin.PACK

    def copy_from(self, chunk: int) -> int | None:
        """The chunk of the active slot that should hold the same bytes."""
        found = self._copy_from[chunk]
        return found if found >= 0 else None

    def move_from(self, chunk: int) -> int | None:
        """The later chunk of the target that should still hold the same bytes when this one is written."""
        found = self._move_from[chunk] if self._move_from else -1
        return found if found >= 0 else None

    def _planned(
        self, active: HashLookup | None, target: HashLookup | None, step: Callable[[], None]
    ) -> Iterator[tuple[int, Unit]]:
        """Decide about each wrong chunk, in one pass over the index; gives those that are to be fetched."""
        is_anything_here = active is not None or target is not None
        for number, chunk in enumerate(self.wrong_chunks()):
            if number % _CHUNKS_PER_STEP == 0:
                step()
            unit = self._index.unit(chunk)
            self._methods[chunk] = unit.method
            if unit.method is Method.ZERO:
                continue
            if is_anything_here:
                self._look_on_device(chunk, active, target)
                if self.origin(chunk) is Origin.PACK:
                    yield chunk, unit
            elif unit.method is not Method.SAME:
                yield chunk, unit

    def _look_on_device(self, chunk: int, active: HashLookup | None, target: HashLookup | None) -> None:
        digest = self._index.chunk_hash(chunk)
        if active is not None:
            # The same position first: a record that is right there is the common case, and reads stay sequential.
            found = active.first_at_or_after(digest, chunk)
            found = found if found is not None else active.first_at_or_after(digest, 0)
            self._copy_from[chunk] = -1 if found is None else found
        if target is not None and self._copy_from[chunk] < 0:
            found = target.first_at_or_after(digest, chunk + 1)
            self._move_from[chunk] = -1 if found is None else found
