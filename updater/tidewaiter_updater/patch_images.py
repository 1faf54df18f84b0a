"""The two images that a patch is applied between: the running slot, and the target as far as it is made.

Both are ports `BlockSource` of core.payload.patchapply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from tidewaiter_core.payload.patch import PatchReader
from tidewaiter_core.payload.patchmap import Kind, Run

from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes
from tidewaiter_updater.read_ahead import PIECE_BYTES, Foreseen, ReadAhead

_GAP_BYTES: Final = 16 * 1024
"""Reading so much for nothing is cheaper than another request."""


class ActiveSlotError(Exception):
    """The running slot refuses a read; caught where the chunk in hand is given up."""


class OldImage:
    """The running slot."""

    def __init__(self, reader: ReadAhead, image_bytes: int) -> None:
        """
        Args:
            image_bytes: Nothing behind is read.
        """
        self._reader = reader
        self._image_bytes = image_bytes

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if offset + len(buffer) > self._image_bytes:
            raise ActiveSlotError
        try:
            self._reader.read_into(buffer, offset)
        except SlotError as err:
            raise ActiveSlotError from err

    def read_many(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        if any(offset + len(buffer) > self._image_bytes for buffer, offset in parts):
            raise ActiveSlotError
        try:
            self._reader.read_many(parts)
        except SlotError as err:
            raise ActiveSlotError from err


def foreseen_reads(patch: PatchReader, runs: Iterator[Run], wanted: bytearray) -> Iterator[Foreseen]:
    """What the runs of a patch will read of the running slot, in order; over a short gap two runs are one read.

    Args:
        wanted: One byte per chunk: 1 where it will be made.
    """
    block_bytes = patch.limits.block_bytes
    most, gap = PIECE_BYTES // block_bytes, _GAP_BYTES // block_bytes
    start = end = last_chunk = 0
    for source, blocks, chunk in _copied_blocks(patch, runs, wanted):
        done = 0
        while done < blocks:
            at = source + done
            if start < end and not (end <= at <= end + gap and at < start + most):
                yield Foreseen(start * block_bytes, (end - start) * block_bytes, last_chunk)
                start = end = at
            elif start == end:
                start = end = at
            taken = min(blocks - done, start + most - at)
            end, last_chunk, done = at + taken, chunk, done + taken
    if start < end:
        yield Foreseen(start * block_bytes, (end - start) * block_bytes, last_chunk)


def _copied_blocks(
    patch: PatchReader, runs: Iterator[Run], wanted: bytearray
) -> Iterator[tuple[int, int, int]]:
    """Source block, count and chunk of what each wanted chunk copies of the running slot."""
    per_chunk = patch.header.chunk_bytes // patch.limits.block_bytes
    for run in runs:
        if run.kind != Kind.OLD:
            continue
        done = 0
        while done < run.blocks:
            chunk, within = divmod(run.target + done, per_chunk)
            blocks = min(per_chunk - within, run.blocks - done)
            if wanted[chunk]:
                yield run.source + done, blocks, chunk
            done += blocks


class NewImage:
    """What is in the target already: right before, or written since; and what is made and not written yet.

    Chunk 0 is kept aside until the end.
    """

    def __init__(
        self,
        device: SlotDevice,
        table: ChunkHashes,
        store: IndexStore,
        unwritten: Callable[[int], bytes | memoryview | None],
    ) -> None:
        """
        Args:
            unwritten: A chunk that is made and was not put into the sink yet, proven.
        """
        self._device = device
        self._table = table
        self._store = store
        self._unwritten = unwritten
        self._chunk = 0
        self._settled_before = 0
        self._sink: Sink | None = None

    def begin(self, chunk: int, sink: Sink) -> None:
        """Chunks before `chunk` are there, or on their way through `sink`."""
        self._chunk, self._sink = chunk, sink

    def read_into(self, buffer: memoryview, offset: int) -> None:
        size = self._table.chunk_bytes
        while buffer:
            chunk = offset // size
            if 0 < chunk < self._chunk:
                # As far as it is written, in one read.
                part = buffer[: self._chunk * size - offset]
                self._written_into(part, offset)
            else:
                part = buffer[: (chunk + 1) * size - offset]
                content = self._content(chunk)
                if content is not None:
                    start = offset - chunk * size
                    part[:] = content[start : start + len(part)]
                else:
                    self._device.read_into(part, offset)
            buffer, offset = buffer[len(part) :], offset + len(part)

    def _content(self, chunk: int) -> bytes | memoryview | None:
        """A chunk that the target does not have yet; None: it has it since before."""
        length = min(self._table.chunk_bytes, self._table.image_bytes - chunk * self._table.chunk_bytes)
        content = self._unwritten(chunk)
        if content is None and chunk == 0:
            content = self._store.chunk0(self._table.image_root, self._table.chunk_hash(0))
            # Without it the chunk in hand comes out wrong and is fetched.
            return content if content is not None else bytes(length)
        if content is None and self._table.chunk_hash(chunk) == hashlib.sha256(bytes(length)).digest():
            return bytes(length)
        return content

    def _written_into(self, buffer: memoryview, offset: int) -> None:
        last = (offset + len(buffer) - 1) // self._table.chunk_bytes
        if self._sink is not None and last >= self._settled_before:
            self._sink.settle()
            self._settled_before = self._chunk
        self._device.read_into(buffer, offset)
