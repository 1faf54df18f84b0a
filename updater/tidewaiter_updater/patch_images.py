"""The two images that a patch is applied between: the running slot, and the target as far as it is made.

Both are ports `BlockSource` of core.payload.patchapply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tidewaiter_core.payload.patch import PatchReader
from tidewaiter_core.payload.patchmap import Kind, Run

from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes
from tidewaiter_updater.read_ahead import PIECE_BYTES, Foreseen, ReadAhead


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
    """What the runs of a patch will read of the running slot, in order.

    Args:
        wanted: One byte per chunk: 1 where it will be made.
    """
    block_bytes = patch.limits.block_bytes
    per_chunk = patch.header.chunk_bytes // block_bytes
    most = PIECE_BYTES // block_bytes
    for run in runs:
        if run.kind != Kind.OLD:
            continue
        done = 0
        while done < run.blocks:
            chunk = (run.target + done) // per_chunk
            if not wanted[chunk]:
                done = (chunk + 1) * per_chunk - run.target
                continue
            blocks = min(most, run.blocks - done)
            last_chunk = (run.target + done + blocks - 1) // per_chunk
            yield Foreseen((run.source + done) * block_bytes, blocks * block_bytes, last_chunk)
            done += blocks


class NewImage:
    """What is in the target already: right before, or written since. Chunk 0 is kept aside until the end."""

    def __init__(self, device: SlotDevice, table: ChunkHashes, store: IndexStore) -> None:
        self._device = device
        self._table = table
        self._store = store
        self._chunk = 0
        self._settled_before = 0
        self._sink: Sink | None = None

    def begin(self, chunk: int, sink: Sink) -> None:
        """Chunks before `chunk` are there, or on their way through `sink`."""
        self._chunk, self._sink = chunk, sink

    def read_into(self, buffer: memoryview, offset: int) -> None:
        size = self._table.chunk_bytes
        if offset < size:
            part = buffer[: size - offset]
            first = self._store.chunk0(self._table.image_root, self._table.chunk_hash(0))
            # Without it the chunk in hand comes out wrong and is fetched.
            part[:] = first[offset : offset + len(part)] if first is not None else bytes(len(part))
            buffer, offset = buffer[len(part) :], size
        if not buffer:
            return
        if self._sink is not None and (offset + len(buffer) - 1) // size >= self._settled_before:
            self._sink.settle()
            self._settled_before = self._chunk
        self._device.read_into(buffer, offset)
