"""Chunks by patch: blocks of the running slot and of what was written already, and literals out of segments.

One segment and one prefix are in memory (`core.payload.patchapply`), the head is read by windows from the state directory. What
is assembled is unproven until its chunk hash is right: a running slot that is not what its record says gives other bytes, and
that chunk comes from the pack, counted and within the byte budget. Segments that no wrong chunk needs are not fetched.

Source: update-engine.md sections 4.4, 6 and 7.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Callable, Iterator
from typing import Final

from tidewaiter_core.payload.patch import PatchReader
from tidewaiter_core.payload.patchapply import ChunkAssembler, Room, SegmentDecoder, needed_segments

from tidewaiter_updater.device import BLOCK_BYTES, SlotDevice
from tidewaiter_updater.errors import RouteClosedError, SlotError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pack_fallback import PackFallback
from tidewaiter_updater.patch_segments import SegmentStream
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes, Origin
from tidewaiter_updater.sources import Source
from tidewaiter_updater.stage import Control
from tidewaiter_updater.supply import ChunkReader, Meter, Supplied, Wrong
from tidewaiter_updater.zstd import ZstdCodec

_AHEAD_BYTES: Final = 1024 * 1024


class PatchSupply:
    """Port `Supply` over a patch whose head is open and verified."""

    def __init__(
        self,
        device: SlotDevice,
        table: ChunkHashes,
        reader: PatchReader,
        source: Source,
        *,
        path: str,
        active: SlotDevice,
        store: IndexStore,
        fallback: PackFallback,
        meter: Meter,
        step: Callable[[], None],
    ) -> None:
        """
        Args:
            table: The chunk hashes of the new image.
            path: The patch, as the repository serves it.
            active: The slot that is recorded to hold the old image.
        """
        self.table = table
        self._patch = reader
        self._source = source
        self._fallback = fallback
        self._store = store
        self._step = step
        self._codec = ZstdCodec()
        self._active = active
        self._stored: tuple[int, bytes | bytearray] | None = None
        self._new = _NewImage(device, table, store)
        self._reader = ChunkReader(table)
        self._room = Room(max(table.chunk_bytes, BLOCK_BYTES))
        self._zeros: dict[int, bytes] = {}
        self._stream: SegmentStream | None = None
        self._assembler: ChunkAssembler | None = None
        self.what = path
        self.meter = meter
        self.active_differs = 0

    def plan(self, wrong: Wrong) -> None:
        def is_wanted(chunk: int) -> bool:
            self._step()
            return bool(wrong.chunks[chunk])

        needed = array("I", needed_segments(self._patch, self._patch.runs(self._codec), is_wanted))
        self._stream = SegmentStream(
            self._patch, self._source, self.what, needed=needed, meter=self.meter, step=self._step
        )
        old_bytes = self._patch.header.old_bytes
        decoder = SegmentDecoder(self._patch, self._codec, _OldImage(self._active, old_bytes, ahead_bytes=0))
        self._assembler = ChunkAssembler(
            self._patch,
            self._patch.runs(self._codec),
            old=_OldImage(self._active, old_bytes, ahead_bytes=_AHEAD_BYTES),
            new=self._new,
            literals=lambda number: self._literals(decoder, number),
        )
        self.meter.expect(self._stream.planned_bytes)

    @contextlib.contextmanager
    def fetching(self, control: Control) -> Iterator[None]:
        if self._stream is None:
            raise RuntimeError("nothing is fetched before the plan was made")
        with self._stream.fetching(control):
            yield

    def obtain(self, chunk: int, sink: Sink) -> Supplied:
        if self._assembler is None:
            raise RuntimeError("a chunk was asked for before the plan was made")
        length, expected = self._reader.length(chunk), self.table.chunk_hash(chunk)
        if expected == self._zero_hash(length):
            return Supplied(Origin.ZERO, None)
        self._new.begin(chunk, sink)
        out = self._room.view(length)
        try:
            made = self._assembler.assemble(chunk, out)
        except _ActiveSlotError:  # unreadable costs a fetch, not the update
            made = False
        if made and hashlib.sha256(out).digest() == expected:
            return Supplied(Origin.PATCH if self._assembler.took_literals else Origin.COPY, out)
        self.active_differs += 1
        return Supplied(Origin.PACK, self._fallback.fetched(chunk))

    def chunk0(self) -> bytes:
        data = self._store.chunk0(self.table.image_root, self.table.chunk_hash(0))
        if data is None and self.table.chunk_hash(0) == self._zero_hash(self._reader.length(0)):
            return bytes(self._reader.length(0))
        return data if data is not None else self._fallback.fetched(0)  # the state directory lost it since

    def _literals(self, decoder: SegmentDecoder, number: int) -> memoryview:
        if self._stream is None:
            raise RuntimeError("a segment was asked for before the plan was made")
        # A read of the prefix may fail after this; the next chunk asks for the same segment again.
        stored = self._stream.stored(number)
        return decoder.decode(
            self._patch.segment(number), memoryview(stored), what=f"{self.what}: segment {number}"
        )

    def _zero_hash(self, length: int) -> bytes:
        if length not in self._zeros:
            self._zeros[length] = hashlib.sha256(bytes(length)).digest()
        return self._zeros[length]


class CopySupply:
    """Port `Supply` where the running slot is recorded to hold the very image: chunk by chunk, at the same place."""

    def __init__(
        self,
        table: ChunkHashes,
        *,
        what: str,
        active: SlotDevice | None,
        store: IndexStore,
        fallback: PackFallback,
        meter: Meter,
    ) -> None:
        """
        Args:
            active: None: only the target itself is recorded to hold the image, and has to.
        """
        self._table = table
        self._active = active
        self._store = store
        self._fallback = fallback
        self._reader = ChunkReader(table)
        self.what = what
        self.meter = meter
        self.active_differs = 0

    def plan(self, wrong: Wrong) -> None:
        if self._active is None:
            raise RouteClosedError(
                f"{wrong.chunks.count(1)} chunks of the target are not what it is recorded to hold; they have to be fetched"
            )
        self.meter.expect(0)

    def fetching(self, control: Control) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def obtain(self, chunk: int, sink: Sink) -> Supplied:
        data = None
        with contextlib.suppress(SlotError):
            data = self._reader.read_right(self._active, chunk, chunk) if self._active else None
        if data is not None:
            return Supplied(Origin.COPY, data)
        self.active_differs += 1
        return Supplied(Origin.PACK, self._fallback.fetched(chunk))

    def chunk0(self) -> bytes:
        data = self._store.chunk0(self._table.image_root, self._table.chunk_hash(0))
        return data if data is not None else self._fallback.fetched(0)


class _ActiveSlotError(Exception):
    """The running slot refuses a read; never leaves this module."""


class _OldImage:
    """Port `BlockSource` over the running slot: reads go ahead of whoever reads on from where it stopped."""

    def __init__(self, device: SlotDevice, image_bytes: int, *, ahead_bytes: int) -> None:
        self._device = device
        self._image_bytes = min(image_bytes, device.size_bytes)
        self._ahead_bytes = ahead_bytes
        self._ahead = Room(ahead_bytes)
        self._start = self._end = 0
        self._next = -1

    def read_into(self, buffer: memoryview, offset: int) -> None:
        end = offset + len(buffer)
        if end > self._image_bytes:
            raise _ActiveSlotError
        try:
            if not self._start <= offset < end <= self._end:
                if offset != self._next or len(buffer) >= self._ahead_bytes:
                    self._device.read_into(buffer, offset)
                    self._next = end
                    return
                length = min(self._ahead_bytes, self._image_bytes - offset)
                self._start = self._end = 0
                self._device.read_into(self._ahead.view(length), offset)
                self._start, self._end = offset, offset + length
        except SlotError as err:
            raise _ActiveSlotError from err
        buffer[:] = self._ahead.view(end - self._start)[offset - self._start :]
        self._next = end


class _NewImage:
    """Port `BlockSource` over what is in the target already: right before, or written since. Chunk 0 is kept aside."""

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
