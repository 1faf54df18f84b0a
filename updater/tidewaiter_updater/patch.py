"""Chunks by patch: blocks of the running slot and of what was written already, and literals out of segments.

One segment and one prefix are in memory (`core.payload.patchapply`), the head is read by windows from the state directory. What
is assembled is unproven until its chunk hash is right (`made_ahead`): a running slot that is not what its record says gives other
bytes, and that chunk comes from the pack, counted and within the byte budget. Segments that no wrong chunk needs are not fetched.

Source: update-engine.md sections 4.4, 6 and 7.
"""

from __future__ import annotations

import contextlib
import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tidewaiter_core.payload.patch import PatchReader
from tidewaiter_core.payload.patchapply import (
    ChunkAssembler,
    Literals,
    SegmentDecoder,
    needed_segments,
)

from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.made_ahead import MadeAhead
from tidewaiter_updater.pack_fallback import PackFallback
from tidewaiter_updater.patch_images import ActiveSlotError, NewImage, OldImage, foreseen_reads
from tidewaiter_updater.patch_segments import SegmentStream
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes, Origin
from tidewaiter_updater.read_ahead import ReadAhead
from tidewaiter_updater.sources import Source
from tidewaiter_updater.stage import Control
from tidewaiter_updater.supply import ChunkReader, Meter, Supplied, Wrong
from tidewaiter_updater.zstd import ZstdCodec


@dataclass(frozen=True, slots=True)
class _Planned:
    """What `plan` decided."""

    stream: SegmentStream
    decoder: SegmentDecoder
    assembler: ChunkAssembler
    made: MadeAhead
    new: NewImage


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
        self._ahead = ReadAhead(active)
        self._target = device
        self._reader = ChunkReader(table)
        self._zeros: dict[int, bytes] = {}
        self._stored: tuple[int, bytes | memoryview] | None = None
        self._plan: _Planned | None = None
        self.what = path
        self.meter = meter

    @property
    def active_differs(self) -> int:
        """Chunks that came out wrong, or could not be made."""
        return self._plan.made.replaced if self._plan is not None else 0

    def plan(self, wrong: Wrong) -> None:
        def is_wanted(chunk: int) -> bool:
            self._step()
            return bool(wrong.chunks[chunk])

        patch = self._patch
        needed = array("I", needed_segments(patch, patch.runs(self._codec), is_wanted))
        stream = SegmentStream(
            patch, self._source, self.what, needed=needed, meter=self.meter, step=self._step
        )
        old = OldImage(self._ahead, min(patch.header.old_bytes, self._active.size_bytes))
        made = MadeAhead(
            self.table, self._next_of(wrong.chunks), make=self._make, replace=self._fallback.fetched
        )
        new = NewImage(self._target, self.table, self._store, made.content)
        self._plan = _Planned(
            stream,
            SegmentDecoder(patch, self._codec, old),
            ChunkAssembler(patch, patch.runs(self._codec), old=old, new=new, literals=self._literals),
            made,
            new,
        )
        self._ahead.foresee(foreseen_reads(patch, patch.runs(self._codec), wrong.chunks))
        self.meter.expect(stream.planned_bytes)

    @contextlib.contextmanager
    def fetching(self, control: Control) -> Iterator[None]:
        with self._ahead, self._planned.stream.fetching(control), self._planned.made:
            yield

    def obtain(self, chunk: int, sink: Sink) -> Supplied:
        if self._is_zero(chunk):
            return Supplied(Origin.ZERO, None)
        planned = self._planned
        planned.new.begin(chunk, sink)
        return planned.made.take(chunk)

    def chunk0(self) -> bytes:
        data = self._store.chunk0(self.table.image_root, self.table.chunk_hash(0))
        if data is None and self.table.chunk_hash(0) == self._zero_hash(self._reader.length(0)):
            return bytes(self._reader.length(0))
        return data if data is not None else self._fallback.fetched(0)  # the state directory lost it since

    @property
    def _planned(self) -> _Planned:
        if self._plan is None:
            raise RuntimeError("a chunk was asked for before the plan was made")
        return self._plan

    def _next_of(self, wrong: bytearray) -> Callable[[int], int | None]:
        """The first chunk from a number on that has to be made."""

        def wanted(chunk: int) -> int | None:
            found = wrong.find(1, chunk)
            while found >= 0 and self._is_zero(found):
                found = wrong.find(1, found + 1)
            return found if found >= 0 else None

        return wanted

    def _make(self, chunk: int, out: memoryview) -> Origin | None:
        self._ahead.pass_to(chunk)
        assembler = self._planned.assembler
        try:
            if not assembler.assemble(chunk, out):
                return None
        except ActiveSlotError:  # unreadable costs a fetch, not the update
            return None
        return Origin.PATCH if assembler.took_literals else Origin.COPY

    def _is_zero(self, chunk: int) -> bool:
        return self.table.chunk_hash(chunk) == self._zero_hash(self._reader.length(chunk))

    def _literals(self, number: int) -> Literals:
        """The decoded blocks of a segment."""
        planned = self._planned
        if self._stored is None or self._stored[0] != number:
            self._stored = None  # before the next one is put together
            self._stored = (number, planned.stream.stored(number))
        what = f"{self.what}: segment {number}"
        literals = planned.decoder.decode(self._patch.segment(number), memoryview(self._stored[1]), what=what)
        self._stored = None  # only now: if its prefix could not be read, the next chunk asks for it again
        return literals

    def _zero_hash(self, length: int) -> bytes:
        if length not in self._zeros:
            self._zeros[length] = hashlib.sha256(bytes(length)).digest()
        return self._zeros[length]
