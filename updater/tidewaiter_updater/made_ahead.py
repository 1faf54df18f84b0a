"""Chunks that are put together ahead of the one who writes them, and hashed by other threads meanwhile.

Hashing is a third of what applying a patch costs, and it waits for nothing but the bytes. So chunks are made some hundred KiB at
a time; while the next ones are made, the digests of those before come in. Nothing is given out whose digest is not the expected
one (I1); what came out wrong is replaced when its turn comes, so that damage costs what it would cost one chunk after the other.

Source: update-engine.md section 7 ("overlap decode, hash and write").
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from tidewaiter_core.payload.patchapply import Room

from tidewaiter_updater.plan import ChunkHashes, Origin
from tidewaiter_updater.supply import Supplied

BATCH_BYTES: Final = 512 * 1024
BATCHES: Final = 3
"""One is written, one is hashed, one is made. What a power cut costs grows by them: 1.5 MiB."""
THREADS: Final = 1 if len(os.sched_getaffinity(0)) < 4 else 2
"""The one who makes chunks is busy, too."""


@dataclass(slots=True)
class _Made:
    content: bytes | memoryview
    origin: Origin | None
    """None: it could not be made."""
    is_proven: bool = False


@dataclass(slots=True)
class _Batch:
    """Neighboring chunks."""

    first: int
    room: Room
    made: list[_Made] = field(default_factory=list)
    taken: int = 0
    digests: Future[list[bytes]] | None = None
    """None while it is being made."""


class MadeAhead:
    """Gives out chunks in ascending order. One thread uses it."""

    def __init__(
        self,
        table: ChunkHashes,
        wanted: Callable[[int], int | None],
        *,
        make: Callable[[int, memoryview], Origin | None],
        replace: Callable[[int], bytes],
    ) -> None:
        """
        Args:
            wanted: The first chunk from a number on that will be taken; None behind the last.
            make: Fill a buffer with a chunk, and say where its bytes are from; None if they cannot be had. An error is raised
                when everything before it was taken.
            replace: A proven chunk from elsewhere.
        """
        self._table = table
        self._wanted = wanted
        self._make = make
        self._replace = replace
        self._per_batch = max(1, BATCH_BYTES // table.chunk_bytes)
        self._free = [Room(self._per_batch * table.chunk_bytes) for _ in range(BATCHES)]
        self._batches: deque[_Batch] = deque()
        self._next = wanted(0)
        self._failure: Exception | None = None
        self._pool = ThreadPoolExecutor(THREADS, "slot-hash")
        self.replaced = 0
        """Chunks that came out wrong."""

    def take(self, chunk: int) -> Supplied:
        """Chunk `chunk`, proven, and those behind it of the same origin that are ready; none of them is asked for again.

        Raises:
            Exception: Whatever `make` or `replace` raise.
        """
        while self._batches and self._batches[0].taken == len(self._batches[0].made):
            self._free.append(self._batches.popleft().room)
        self._make_ahead()
        if not self._batches:
            raise self._failure or RuntimeError(f"chunk {chunk} was asked for behind the last")
        batch = self._batches[0]
        if chunk != batch.first + batch.taken:
            raise RuntimeError(f"chunk {chunk} was asked for where {batch.first + batch.taken} is next")
        first = self._proven(batch, batch.taken)
        contents = [first.content]
        batch.taken += 1
        while batch.taken < len(batch.made):
            following = self._proven(batch, batch.taken)
            if following.origin is not first.origin:
                break
            contents.append(following.content)
            batch.taken += 1
        return Supplied(first.origin or Origin.PACK, contents[0], contents[1:])

    def content(self, chunk: int) -> bytes | memoryview | None:
        """A chunk that is made and not taken yet, proven; None if there is none. For chunks that repeat it."""
        for batch in self._batches:
            if batch.taken <= (at := chunk - batch.first) < len(batch.made):
                return self._proven(batch, at).content
        return None

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_ahead(self) -> None:
        while self._free and self._next is not None and self._failure is None:
            batch = _Batch(self._next, self._free.pop())
            self._batches.append(batch)  # now, so that its own chunks are found by those that repeat them
            try:
                self._fill(batch)
            except Exception as err:  # noqa: BLE001 - raised when everything before it was taken
                self._failure = err
            batch.digests = self._pool.submit(_digests, [made.content for made in batch.made])
            if not batch.made:
                self._free.append(self._batches.pop().room)

    def _fill(self, batch: _Batch) -> None:
        size = self._table.chunk_bytes
        while len(batch.made) < self._per_batch and self._next == batch.first + len(batch.made):
            chunk, start = self._next, len(batch.made) * size
            length = min(size, self._table.image_bytes - chunk * size)
            out = batch.room.view(start + length)[start:]
            batch.made.append(_Made(out, self._make(chunk, out)))
            self._next = self._wanted(chunk + 1)

    def _proven(self, batch: _Batch, at: int) -> _Made:
        made = batch.made[at]
        if not made.is_proven:
            chunk = batch.first + at
            # Asked for by a chunk of the same batch, its digest is not coming yet.
            digest = batch.digests.result()[at] if batch.digests else hashlib.sha256(made.content).digest()
            if made.origin is None or digest != self._table.chunk_hash(chunk):
                self.replaced += 1
                made.content, made.origin = self._replace(chunk), Origin.PACK
            made.is_proven = True
        return made


def _digests(contents: list[bytes | memoryview]) -> list[bytes]:
    return [hashlib.sha256(content).digest() for content in contents]
