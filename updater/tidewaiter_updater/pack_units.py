"""Single chunks out of a pack: fetched, hashed, decoded, hashed again."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable

from tidewaiter_core.payload.errors import PayloadChunkError
from tidewaiter_core.payload.index import IndexReader, Method
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

    def unpacked(
        self, chunks: Iterable[int], span: memoryview, span_offset: int
    ) -> deque[bytes | memoryview | None]:
        """The chunks whose units lie in a span of the pack; None for one whose stored bytes are not what the index says.

        Any thread may call. A chunk that is stored raw is a view of the span.

        Raises:
            PayloadError: As for `decoded`.
        """
        contents: deque[bytes | memoryview | None] = deque()
        now, began_s, decode_s = self._times.now, self._times.now(), 0.0
        for chunk in chunks:
            unit = self._index.unit(chunk)
            start = unit.offset - span_offset
            stored = span[start : start + unit.stored_bytes]
            if hashlib.sha256(stored).digest() != unit.sha256:
                contents.append(None)
            elif unit.method is Method.RAW:
                contents.append(stored)  # the index has proven that this hash is the chunk's, too
            else:
                decode_began_s = now()
                raw = self._raw(chunk, stored)
                decode_s += now() - decode_began_s
                contents.append(self._proven(chunk, raw))
        self._times.add(Work.DECODE, decode_s)
        self._times.add(Work.HASH, now() - began_s - decode_s)
        return contents

    def decoded(self, chunk: int, stored: bytes | memoryview) -> bytes | memoryview:
        """The chunk in a unit whose stored bytes are proven.

        Raises:
            PayloadError: It is another chunk, or none.
        """
        is_frame = self._index.unit(chunk).method is Method.ZSTD
        return self._proven(chunk, self._raw(chunk, stored) if is_frame else stored)

    def _raw(self, chunk: int, stored: bytes | memoryview) -> bytes:
        return decode_chunk(
            stored,
            raw_bytes=self._index.chunk_length(chunk),
            chunk_bytes=self._index.header.chunk_bytes,
            what=self._what(chunk),
        )

    def _proven(self, chunk: int, raw: bytes | memoryview) -> bytes | memoryview:
        is_whole = len(raw) == self._index.chunk_length(chunk)
        if not is_whole or hashlib.sha256(raw).digest() != self._index.chunk_hash(chunk):
            raise PayloadChunkError(
                f"{self._what(chunk)}: decodes to other bytes than the index says; not written"
            )
        return raw

    def _what(self, chunk: int) -> str:
        return f"{self._name}: chunk {chunk}"

    def fetched(self, chunk: int) -> bytes:
        """The bytes of a chunk, whatever its unit is; errors as above."""
        if self._index.unit(chunk).method is Method.ZERO:
            return bytes(self._index.chunk_length(chunk))
        stored = self.stored_chunk(chunk)
        return bytes(self.decoded(stored, self.fetched_alone(stored)))
