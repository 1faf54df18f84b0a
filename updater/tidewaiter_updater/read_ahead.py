"""Reads the running slot ahead of whoever copies from it: a few reads at a time, into a few pieces of our own memory.

One read after the other leaves storage idle between them, and the page cache costs more processor time than it saves. What is
read ahead is a guess from the map of a patch: pieces nobody takes are dropped, a read that was not foreseen is made at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NamedTuple, Self

from tidewaiter_core.payload.patchapply import Room

from tidewaiter_updater.device import SlotDevice

_THREADS: Final = 4
_PIECES: Final = 8
PIECE_BYTES: Final = 256 * 1024


class Foreseen(NamedTuple):
    """Something that will be read."""

    offset: int
    length: int
    """At most `PIECE_BYTES`."""
    last_chunk: int
    """The chunk of the new image after which nobody will want it any more."""


@dataclass(slots=True)
class _Piece:
    foreseen: Foreseen
    slot: int
    done: Future[None]


class ReadAhead:
    """One reader's view of a slot. One thread uses it."""

    def __init__(self, device: SlotDevice) -> None:
        self._device = device
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="slot-read")
        self._room = Room(_PIECES * PIECE_BYTES)
        self._free = list(range(_PIECES))
        self._pieces: deque[_Piece] = deque()
        self._plan: Iterator[Foreseen] = iter(())

    def foresee(self, plan: Iterator[Foreseen]) -> None:
        """What will be read, in order."""
        self._plan = plan

    def pass_to(self, chunk: int) -> None:
        """Chunk `chunk` is made now: forget what was for earlier ones, and read on."""
        while self._pieces and self._pieces[0].foreseen.last_chunk < chunk:
            self._drop()
        self._top_up()

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`.

        Raises:
            SlotError: The device refuses.
        """
        done = 0
        while done < len(buffer):
            piece = self._with(offset + done)
            if piece is None:
                self._device.read_into(buffer[done:], offset + done)
                return
            if piece.done.exception() is not None:
                # A piece has more than is wanted now: only what is really unreadable may fail, and only whoever wants it.
                self._pieces.remove(piece)
                self._free.append(piece.slot)
                continue
            start = offset + done - piece.foreseen.offset
            part = self._view(piece)[start : start + len(buffer) - done]
            buffer[done : done + len(part)] = part
            done += len(part)

    def read_many(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        """Fill several buffers, each from its offset, a few at a time.

        Raises:
            SlotError: The device refuses one of them; nobody writes into any buffer any more.
        """
        waiting = deque(parts)  # one task per thread: a prefix has hundreds of parts

        def read_some() -> None:
            while True:
                try:
                    buffer, offset = waiting.popleft()
                except IndexError:
                    return
                self._device.read_into(buffer, offset)

        reads = [self._pool.submit(read_some) for _ in range(min(_THREADS, len(parts)))]
        for read in reads:  # all of them, whatever happened
            read.exception()
        for read in reads:
            read.result()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _with(self, offset: int) -> _Piece | None:
        """The piece that holds the byte at `offset`; those in front of it were not taken and are dropped."""
        for number, piece in enumerate(self._pieces):
            if piece.foreseen.offset <= offset < piece.foreseen.offset + piece.foreseen.length:
                for _ in range(number):
                    self._drop()
                self._top_up()
                return piece
        return None

    def _top_up(self) -> None:
        while self._free and (foreseen := next(self._plan, None)) is not None:
            slot = self._free.pop()
            piece = _Piece(foreseen, slot, Future())
            piece.done = self._pool.submit(self._device.read_into, self._view(piece), foreseen.offset)
            self._pieces.append(piece)

    def _drop(self) -> None:
        piece = self._pieces.popleft()
        # Its outcome interests nobody, but its memory must not be written any more.
        piece.done.exception()
        self._free.append(piece.slot)

    def _view(self, piece: _Piece) -> memoryview:
        start = piece.slot * PIECE_BYTES
        return self._room.view(start + piece.foreseen.length)[start:]
