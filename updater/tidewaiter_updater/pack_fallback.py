"""The pack for single chunks that another way could not give: its index is fetched only then, and only within the meter."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from tidewaiter_core.payload.index import require_match
from tidewaiter_core.payload.release import SlotComponent

from tidewaiter_updater.errors import RouteClosedError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pack_units import PackUnits
from tidewaiter_updater.sources import Source
from tidewaiter_updater.supply import Meter


class PackFallback:
    """Gives proven chunks out of the pack, one request each."""

    def __init__(
        self,
        component: SlotComponent,
        source: Source,
        *,
        store: IndexStore,
        meter: Meter,
        step: Callable[[], None],
    ) -> None:
        self._component = component
        self._source = source
        self._store = store
        self._meter = meter
        self._step = step
        self._units: PackUnits | None = None
        self._open = ExitStack()

    def fetched(self, chunk: int) -> bytes:
        """The bytes of a chunk.

        Raises:
            RouteClosedError: That would be more than was planned; nothing was fetched. A new plan is needed.
            SourceError, PayloadError: As for a transfer by pack.
        """
        component = self._component
        # A unit has at most the bytes of its chunk.
        needed = component.chunk_bytes + (
            self._store.missing_bytes(component.index) if self._units is None else 0
        )
        if not self._meter.has_room_for(needed):
            raise RouteClosedError(
                f"{component.pack.path}: chunk {chunk} has to be fetched, which the plan of {self._meter.expected_bytes} bytes "
                f"has no room for ({self._meter.fetched_bytes} arrived); a new plan is needed"
            )
        if self._units is None:
            index = self._open.enter_context(
                self._store.opened(component.index, self._source, step=self._step)
            )
            require_match(index.header, component)
            self._units = PackUnits(component, index, self._source, self._meter)
        return self._units.fetched(chunk)

    def close(self) -> None:
        """Close the index."""
        self._units = None
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
