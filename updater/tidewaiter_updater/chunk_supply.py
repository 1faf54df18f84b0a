"""Chunks by pack: copied on the device where a record says so, else out of spans of the pack that arrive in plan order.

Nothing leaves here unhashed (I1): stored bytes are hashed before they are decoded, decoded and copied bytes before they are given
out. A copy that is not what a record promised costs a fetch, counted and within the byte budget (I9).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from tidewaiter_core.payload.index import IndexReader
from tidewaiter_core.payload.release import SlotComponent

from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.errors import RouteClosedError, SlotError
from tidewaiter_updater.fetcher import Fetcher
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pack_units import PackUnits
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes, HashLookup, Origin, TransferPlan
from tidewaiter_updater.readback import IndexTable
from tidewaiter_updater.sources import Source
from tidewaiter_updater.stage import Control, WorkTimes
from tidewaiter_updater.supply import ActiveSlot, ChunkReader, Meter, Supplied, Wrong
from tidewaiter_updater.unpacking import Unpacker

__all__ = ["ActiveSlot", "ChunkSupply"]


class ChunkSupply:
    """Port `Supply` over index and pack."""

    def __init__(
        self,
        device: SlotDevice,
        component: SlotComponent,
        index: IndexReader,
        source: Source,
        *,
        store: IndexStore,
        active: ActiveSlot | None,
        promised: ChunkHashes | None,
        meter: Meter,
        step: Callable[[], None],
        times: WorkTimes | None = None,
    ) -> None:
        """
        Args:
            promised: What the target was recorded to hold before.
            step: Called about twice a second while waiting for the source; may raise to end the transfer.
        """
        self._device = device
        self._index = index
        self._source = source
        self._store = store
        self._step = step
        chunk_bytes = index.header.chunk_bytes
        self._active = active if active is not None and active.table.chunk_bytes == chunk_bytes else None
        self._promised = promised if promised is not None and promised.chunk_bytes == chunk_bytes else None
        self._units = PackUnits(component, index, source, meter, times)
        self._reader = ChunkReader(IndexTable(index))
        self._root = component.image_root
        self._plan: TransferPlan | None = None
        self._unpacker: Unpacker | None = None
        self._settled_before = 0
        self.what = self._units.path
        self.meter = meter
        self.active_differs = 0

    def plan(self, wrong: Wrong) -> None:
        self._plan = TransferPlan(
            self._index,
            wrong.chunks,
            active=HashLookup(self._active.table, self._active.intact) if self._active else None,
            target=HashLookup(self._promised, wrong.unmoved) if self._promised else None,
            step=self._step,
        )
        self.meter.expect(self._plan.expected_fetch_bytes)

    @contextlib.contextmanager
    def fetching(self, control: Control) -> Iterator[None]:
        chunk_bytes = self._index.header.chunk_bytes
        with (
            Fetcher(self._source, self._units.path, self._planned.spans, control) as fetcher,
            Unpacker(fetcher, self._units, chunk_bytes=chunk_bytes, wait=self._step) as self._unpacker,
        ):
            yield

    def obtain(self, chunk: int, sink: Sink) -> Supplied:
        origin = self._planned.origin(chunk)
        data: bytes | memoryview | None = None
        following: Sequence[bytes | memoryview] = ()
        if origin is Origin.COPY:
            data = self._copied(chunk) or self._moved(chunk) or self._repeated(chunk, sink)
            if data is None:
                origin, data = Origin.PACK, self._unplanned(chunk)
        elif origin is Origin.PACK:
            data, following = self._from_span(chunk)
        return Supplied(origin, data, following)

    def chunk0(self) -> bytes:
        data = self._store.chunk0(self._root, self._index.chunk_hash(0))
        return data if data is not None else self._unplanned(0)  # the state directory lost it since

    @property
    def _planned(self) -> TransferPlan:
        if self._plan is None:
            raise RuntimeError("a chunk was asked for before the plan was made")
        return self._plan

    def _unplanned(self, chunk: int) -> bytes:
        """A chunk that was to be copied, out of the pack, while the plan has room for that."""
        stored_bytes = self._index.unit(self._units.stored_chunk(chunk)).stored_bytes
        if not self.meter.has_room_for(stored_bytes):
            raise RouteClosedError(
                f"{self.what}: chunk {chunk} is not where the records say, and the plan of {self.meter.expected_bytes} bytes has "
                f"no room to fetch it ({self.meter.fetched_bytes} arrived); a new plan is needed"
            )
        return self._units.fetched(chunk)

    def _copied(self, chunk: int) -> bytes | None:
        """A chunk from the active slot, if it still is what the record says."""
        found = self._planned.copy_from(chunk)
        if found is None or self._active is None:
            return None
        data = None
        with contextlib.suppress(SlotError):  # an unreadable active slot costs a fetch, not the update
            data = self._reader.read_right(self._active.device, found, chunk)
        if data is None:
            self.active_differs += 1
        return data

    def _moved(self, chunk: int) -> bytes | None:
        """A chunk from further back in the target, where the image before it is not overwritten yet."""
        found = self._planned.move_from(chunk)
        return self._reader.read_right(self._device, found, chunk) if found is not None else None

    def _repeated(self, chunk: int, sink: Sink) -> bytes | None:
        """A chunk that equals an earlier one of the same image, read back from where that was written."""
        earlier = self._units.stored_chunk(chunk)
        if earlier == chunk:
            return None
        if earlier == 0:
            return self._store.chunk0(self._root, self._index.chunk_hash(0))
        if earlier >= self._settled_before:
            sink.settle()
            self._settled_before = chunk
        return self._reader.read_right(self._device, earlier, chunk)

    def _from_span(self, chunk: int) -> tuple[bytes | memoryview, Sequence[bytes | memoryview]]:
        """A chunk out of the spans that arrive in plan order, and those that came with it."""
        if self._unpacker is None:
            raise RuntimeError("a chunk was asked for while nothing is fetched")
        contents = self._unpacker.next(chunk)
        if contents is None:
            contents = [self._units.decoded(chunk, self._units.fetched_alone(chunk))]
        self.meter.check(self.what)
        return contents[0], contents[1:]
