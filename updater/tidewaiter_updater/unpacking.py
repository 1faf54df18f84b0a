"""Decodes the chunks of a pack's spans ahead of the one who writes them, on as many threads as there are processors, in order.

Hashing and decoding are most of the work of an installation; both release the interpreter's lock. The bounds: four batches of
1 MiB of content on top of the two spans that `fetcher` holds, and a span stays counted there until its last chunk is used, so
that what a power cut costs does not grow.

Source: update-engine.md section 7 ("overlap decode, hash and write").
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Final, NamedTuple, Self

from tidewaiter_updater.fetcher import Fetcher
from tidewaiter_updater.pack_units import PackUnits
from tidewaiter_updater.plan import Span

BATCH_BYTES: Final = 1024 * 1024
BATCHES_AHEAD: Final = 4
THREADS: Final = max(2, min(BATCHES_AHEAD, len(os.sched_getaffinity(0))))
"""As many as there are processors, up to the batches in work. Two at least: one decodes while the other waits for memory."""


class _Batch(NamedTuple):
    """Neighboring chunks of one span, being decoded."""

    chunks: deque[int]
    contents: Future[deque[bytes | memoryview | None]]
    ends_span: bool


class Unpacker:
    """Gives the chunks that are to be fetched, in the order of the plan."""

    def __init__(
        self, fetcher: Fetcher, units: PackUnits, *, chunk_bytes: int, wait: Callable[[], None]
    ) -> None:
        """
        Args:
            wait: Called about twice a second while waiting for the source; may raise to end the transfer.
        """
        self._fetcher = fetcher
        self._units = units
        self._wait = wait
        self._batch_chunks = max(1, BATCH_BYTES // chunk_bytes)
        self._pool = ThreadPoolExecutor(THREADS, "slot-unpack")
        self._ahead: deque[_Batch] = deque()
        self._contents: deque[bytes | memoryview | None] = deque()
        """What is left of the first batch."""
        self._span: Span | None = None
        self._span_data = bytearray()
        self._begun = 0

    def next(self, chunk: int) -> list[bytes | memoryview] | None:
        """The bytes of `chunk`, proven, and of those right behind it that are decoded, too; none of them is asked for again.

        Returns:
            None if the source gave other bytes for `chunk` than the index says.

        Raises:
            SourceError: The span could not be fetched.
            PayloadError: A unit decodes to another chunk, or to none.
        """
        if not self._contents:
            self._refill(is_needed=True)
            self._contents = self._ahead[0].contents.result()
        chunks = self._ahead[0].chunks
        if chunks[0] != chunk:
            raise RuntimeError(f"chunk {chunk} was asked for where the plan has {chunks[0]}")
        chunks.popleft()
        first = self._contents.popleft()
        contents = [first] if first is not None else []
        # Chunk 0 comes alone: it is kept aside.
        while contents and chunk and chunks and chunks[0] == chunk + len(contents):
            following = self._contents[0]
            if following is None:
                break
            contents.append(following)
            chunks.popleft()
            self._contents.popleft()
        self._used_up()
        return contents or None

    def close(self) -> None:
        """End the threads; what was decoded ahead is dropped."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _used_up(self) -> None:
        """Go on to the next batch if the first one is empty."""
        batch = self._ahead[0]
        if not batch.chunks:
            self._ahead.popleft()
            if batch.ends_span:
                self._fetcher.release()
            self._refill(is_needed=False)

    def _refill(self, *, is_needed: bool) -> None:
        """Start whatever there is room for; wait for the source only if a chunk is needed and nothing is begun."""
        while len(self._ahead) < BATCHES_AHEAD:
            if self._span is None:
                arrived = (
                    self._fetcher.next(self._wait)
                    if is_needed and not self._ahead
                    else self._fetcher.arrived()
                )
                if arrived is None:
                    return
                self._span, self._span_data = arrived
                self._begun = 0
            self._ahead.append(self._started(self._span))

    def _started(self, span: Span) -> _Batch:
        """The next batch of a span, begun."""
        chunks = span.chunks[self._begun : self._begun + self._batch_chunks].tolist()
        self._begun += len(chunks)
        contents = self._pool.submit(self._units.unpacked, chunks, memoryview(self._span_data), span.offset)
        ends_span = self._begun == len(span.chunks)
        if ends_span:
            self._span, self._span_data = None, bytearray()  # the batches keep the bytes alive
        return _Batch(deque(chunks), contents, ends_span)
