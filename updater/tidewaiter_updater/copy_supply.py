"""Chunks by copy: the running slot, or the target itself, is recorded to hold the very image. Nothing is to be fetched."""

from __future__ import annotations

import contextlib

from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.errors import RouteClosedError, SlotError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pack_fallback import PackFallback
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes, Origin
from tidewaiter_updater.stage import Control
from tidewaiter_updater.supply import ChunkReader, Meter, Supplied, Wrong


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
