"""Single chunks out of a pack: fetched, hashed, decoded, hashed again."""

from __future__ import annotations

import hashlib

from tidewaiter_core.payload.errors import PayloadChunkError
from tidewaiter_core.payload.index import IndexReader, Method, Unit
from tidewaiter_core.payload.release import SlotComponent

from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.sources import Source, hashed_path
from tidewaiter_updater.stage import Work, WorkTimes
from tidewaiter_updater.supply import Meter
from tidewaiter_updater.zstd import decode_chunk


class PackUnits:
    """The stored units of one image."""

    def __init__(
        self,
        component: SlotComponent,
        index: IndexReader,
        source: Source,
        meter: Meter,
        times: WorkTimes | None = None,
    ) -> None:
        self._name = component.pack.path
        self._index = index
        self._source = source
        self._meter = meter
        self._times = times or WorkTimes()
        self.path = hashed_path(component.pack.path, component.pack.sha256)

    def stored_chunk(self, chunk: int) -> int:
        """The chunk whose unit holds the bytes of `chunk`: an earlier one where it is a repetition."""
        unit = self._index.unit(chunk)
        return unit.offset if unit.method is Method.SAME else chunk

    def fetched_alone(self, chunk: int) -> bytes:
        """The stored bytes of one unit, fetched for it alone: a copy failed, or its span had other bytes.

        Raises:
            SourceError: They could not be fetched, or are wrong again.
            BudgetError: Far more arrived than planned.
        """
        unit = self._index.unit(chunk)
        stored = b"".join(self._source.span(self.path, unit.offset, unit.stored_bytes))
        self._meter.check(self.path)
        if len(stored) != unit.stored_bytes or hashlib.sha256(stored).digest() != unit.sha256:
            raise SourceError(
                f"{self._name}: bytes {unit.offset}+{unit.stored_bytes} (chunk {chunk}) are not what the "
                "index says, twice; they are not decoded, the slot stays unbootable",
                code="source.bad-bytes",
            )
        return stored

    def unpacked(self, chunk: int, span: memoryview, span_offset: int) -> bytes | memoryview | None:
        """The chunk in a unit that lies in a span of the pack; None if the stored bytes are not what the index says.

        Any thread may call. A chunk that is stored raw is a view of the span.

        Raises:
            PayloadError: As for `decoded`.
        """
        unit = self._index.unit(chunk)
        start = unit.offset - span_offset
        stored = span[start : start + unit.stored_bytes]
        began_s = self._times.now()
        is_right = hashlib.sha256(stored).digest() == unit.sha256
        self._times.spent(Work.HASH, began_s)
        return self._decoded(chunk, unit, stored) if is_right else None

    def decoded(self, chunk: int, stored: bytes | memoryview) -> bytes | memoryview:
        """The chunk in a unit whose stored bytes are proven.

        Raises:
            PayloadError: It is another chunk, or none.
        """
        return self._decoded(chunk, self._index.unit(chunk), stored)

    def _decoded(self, chunk: int, unit: Unit, stored: bytes | memoryview) -> bytes | memoryview:
        if unit.method is Method.RAW and unit.sha256 == self._index.chunk_hash(chunk):
            return stored  # the same hash was proven on the same bytes just before
        length = self._index.chunk_length(chunk)
        what = f"{self._name}: chunk {chunk}"
        raw = stored
        began_s = self._times.now()
        if unit.method is Method.ZSTD:
            raw = decode_chunk(
                stored, raw_bytes=length, chunk_bytes=self._index.header.chunk_bytes, what=what
            )
            began_s = self._times.spent(Work.DECODE, began_s)
        is_right = len(raw) == length and hashlib.sha256(raw).digest() == self._index.chunk_hash(chunk)
        self._times.spent(Work.HASH, began_s)
        if not is_right:
            raise PayloadChunkError(f"{what}: decodes to other bytes than the index says; not written")
        return raw

    def fetched(self, chunk: int) -> bytes:
        """The bytes of a chunk, whatever its unit is; errors as above."""
        if self._index.unit(chunk).method is Method.ZERO:
            return bytes(self._index.chunk_length(chunk))
        stored = self.stored_chunk(chunk)
        return bytes(self.decoded(stored, self.fetched_alone(stored)))
