"""The thread that fetches spans of a pack, ahead of the one who uses them, by a bounded number of bytes."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.plan import Span
from tidewaiter_updater.sources import Source
from tidewaiter_updater.stage import POLL_S, Control, Stage, Work

SPANS_AHEAD: Final = 2
"""Two spans of 2 MiB: one is decoded while the next arrives, and 4 MiB is all that a power cut may cost here."""


class Fetcher:
    """Fetches spans in order, at most two ahead of the one who uses them."""

    def __init__(self, source: Source, path: str, spans: Sequence[Span], control: Control) -> None:
        self._source = source
        self._path = path
        self._spans = spans
        self._control = control
        self._ready: queue.SimpleQueue[tuple[Span, bytearray]] = queue.SimpleQueue()
        self._room = threading.Semaphore(SPANS_AHEAD)
        self._stopped = threading.Event()
        self._stage = Stage("fetch", self._fetch_all)
        self._stage.start()

    def next(self, wait: Callable[[], None]) -> tuple[Span, bytearray]:
        """The next span and its bytes; `release` must follow when they are used up."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=POLL_S)
            wait()
            if self._stage.failure is not None and self._ready.empty():
                raise self._stage.failure

    def arrived(self) -> tuple[Span, bytearray] | None:
        """As `next`, but None instead of waiting, and instead of an error, which the next `next` raises."""
        with contextlib.suppress(queue.Empty):
            return self._ready.get_nowait()
        return None

    def release(self) -> None:
        """The span given out last is used up: there is room for another."""
        self._room.release()

    def close(self) -> None:
        """End the thread; a read that hangs ends with its own time limit."""
        self._stopped.set()
        self._room.release()
        self._stage.join(lambda: self._control.beat("assemble"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _fetch_all(self) -> None:
        for span in self._spans:
            while not self._room.acquire(timeout=POLL_S):
                self._control.beat("fetch")
            while self._control.paused() and not self._stopped.wait(POLL_S):
                self._control.beat("fetch")
            if self._stopped.is_set():
                return
            began_s = self._control.times.now()
            data = self._fetched(span)
            self._control.times.spent(Work.FETCH, began_s)
            self._ready.put((span, data))

    def _fetched(self, span: Span) -> bytearray:
        data = bytearray(span.length)
        got = 0
        for piece in self._source.span(self._path, span.offset, span.length):
            self._control.beat("fetch")
            if got + len(piece) <= span.length:
                data[got : got + len(piece)] = piece
            got += len(piece)
        if got != span.length:
            raise SourceError(
                f"{self._path}: source gave {got} of {span.length} bytes; not used", code="source.bad-range"
            )
        return data
