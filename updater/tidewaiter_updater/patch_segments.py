"""The stored segments of a patch, in order: fetched ahead in spans, proven before anybody decodes them.

A segment whose bytes are wrong is fetched once more, alone; wrong again closes this way to the image. In memory are one stored
segment and the two spans that the fetcher holds.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from tidewaiter_core.payload.patch import PatchReader, Segment
from tidewaiter_core.payload.patchapply import Room

from tidewaiter_updater.errors import RouteClosedError
from tidewaiter_updater.fetcher import Fetcher
from tidewaiter_updater.plan import GAP_LIMIT_BYTES, Span
from tidewaiter_updater.sources import SPAN_LIMIT_BYTES, Source
from tidewaiter_updater.stage import Control
from tidewaiter_updater.supply import Meter

_SPAN_BYTES: Final = 1024 * 1024
"""Half of what a pack is fetched by: a prefix needs the memory, and most segments are smaller."""


def segment_spans(
    segments: Iterable[Segment], *, span_bytes: int = _SPAN_BYTES, gap_bytes: int = GAP_LIMIT_BYTES
) -> Iterator[Span]:
    """The requests that bring segments, in file order: a long run of them is cut anywhere, a short gap is fetched, too."""
    start = end = 0
    for segment in segments:
        if end and segment.offset - end > gap_bytes:
            yield from _cut(start, end, span_bytes)
            start = segment.offset
        elif not end:
            start = segment.offset
        end = segment.offset + segment.stored_bytes
    yield from _cut(start, end, span_bytes)


def _cut(start: int, end: int, span_bytes: int) -> Iterator[Span]:
    for offset in range(start, end, span_bytes):
        yield Span(offset=offset, length=min(span_bytes, end - offset), chunks=array("I"))


class SegmentStream:
    """Gives out stored segments in ascending order."""

    def __init__(
        self,
        reader: PatchReader,
        source: Source,
        path: str,
        *,
        needed: array[int],
        meter: Meter,
        step: Callable[[], None],
    ) -> None:
        """
        Args:
            path: The patch, as the repository serves it.
            needed: The segments that will be asked for.
            step: Called while waiting; may raise.
        """
        self._reader = reader
        self._source = source
        self._path = path
        self._meter = meter
        self._step = step
        self._fetcher: Fetcher | None = None
        self._span: Span | None = None
        self._span_data = bytearray()
        self.spans = tuple(segment_spans(reader.segment(number) for number in needed))
        self._left = len(self.spans)
        self._room = Room(max((reader.segment(number).stored_bytes for number in needed), default=0))

    @property
    def planned_bytes(self) -> int:
        """What the spans have, gaps included."""
        return sum(span.length for span in self.spans)

    @contextlib.contextmanager
    def fetching(self, control: Control) -> Iterator[None]:
        """Fetch ahead while this is entered."""
        with Fetcher(self._source, self._path, self.spans, control) as self._fetcher:
            yield

    def stored(self, number: int) -> bytes | memoryview:
        """The proven bytes of a segment; good until the next one is asked for.

        Raises:
            RouteClosedError: They are wrong twice.
            SourceError: They could not be fetched.
        """
        segment = self._reader.segment(number)
        stored: bytes | memoryview = self._from_spans(segment)
        if not _is_right(stored, segment):
            stored = self._alone(segment)
            if not _is_right(stored, segment):
                raise RouteClosedError(
                    f"{self._path}: segment {number} (bytes {segment.offset}+{segment.stored_bytes}) is not what was signed, "
                    "twice; it is not decoded",
                    code="source.bad-bytes",
                )
        self._meter.check(self._path)
        return stored

    def _from_spans(self, segment: Segment) -> memoryview:
        """The bytes of a segment out of as many spans as it lies in; anything where the spans do not have them."""
        # Always the same memory: what is allocated between two prefixes would take the place of the next one.
        out = self._room.view(segment.stored_bytes)
        end = segment.offset + segment.stored_bytes
        while True:
            span = self._present_span()
            if span is None or span.offset >= end:
                return out
            low, high = max(span.offset, segment.offset), min(span.offset + span.length, end)
            if low < high:
                with memoryview(self._span_data) as view:
                    out[low - segment.offset : high - segment.offset] = view[
                        low - span.offset : high - span.offset
                    ]
            if span.offset + span.length > end:
                return out
            self._pass_span()
            if high == end:
                return out

    def _present_span(self) -> Span | None:
        if self._span is None and self._fetcher is not None and self._left:
            self._left -= 1
            self._span, self._span_data = self._fetcher.next(self._step)
        return self._span

    def _pass_span(self) -> None:
        self._span, self._span_data = None, bytearray()
        if self._fetcher is not None:
            self._fetcher.release()

    def _alone(self, segment: Segment) -> bytes:
        pieces: list[bytes] = []
        end = segment.offset + segment.stored_bytes
        try:
            for offset in range(segment.offset, end, SPAN_LIMIT_BYTES):
                pieces += self._source.span(self._path, offset, min(SPAN_LIMIT_BYTES, end - offset))
        finally:
            self._meter.check(self._path)
        return b"".join(pieces)


def _is_right(stored: bytes | memoryview, segment: Segment) -> bool:
    return len(stored) == segment.stored_bytes and hashlib.sha256(stored).digest() == segment.sha256
