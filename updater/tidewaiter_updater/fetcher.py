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
from tidewaiter_updater.stage import POLL_S, Control, Stage

SPANS_AHEAD: Final = 2
"""Two spans of 2 MiB: one is decoded while the next arrives, and 4 MiB is all that a power cut may cost here."""


class Fetcher:
    """Fetches spans in order, at most two ahead of the one who uses them."""

    def __init__(self, source: Source, path: str, spans: Sequence[Span], control: Control) -> None:
        self._source = source
        self._path = path
        self._spans = spans
        self._control = control
        self._ready: queue.SimpleQueue[tuple[Span, list[bytes]]] = queue.SimpleQueue()
        self._room = threading.Semaphore(SPANS_AHEAD)
        self._stopped = threading.Event()
        self._stage = Stage("fetch", self._fetch_all)
        self._stage.start()

    def next(self, wait: Callable[[], None]) -> tuple[Span, bytearray]:
        """The next span and its bytes; `release` must follow when they are used up."""
        while True:
            with contextlib.suppress(queue.Empty):
                span, pieces = self._ready.get(timeout=POLL_S)
                return span, _joined(pieces, span.length)
            wait()
            if self._stage.failure is not None and self._ready.empty():
                raise self._stage.failure

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
            pieces = []
            for piece in self._source.span(self._path, span.offset, span.length):
                self._control.beat("fetch")
                pieces.append(piece)
            if sum(map(len, pieces)) != span.length:
                raise SourceError(
                    f"{self._path}: source gave {sum(map(len, pieces))} of {span.length} bytes; not used",
                    code="source.bad-range",
                )
            self._ready.put((span, pieces))


def _joined(pieces: list[bytes], length: int) -> bytearray:
    """One buffer from many pieces, freeing each as it is copied."""
    data = bytearray(length)
    at = 0
    pieces.reverse()
    while pieces:
        piece = pieces.pop()
        data[at : at + len(piece)] = piece
        at += len(piece)
    return data
