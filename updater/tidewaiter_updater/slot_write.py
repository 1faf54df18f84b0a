"""One attempt to make a slot hold an image: the ways there, cheapest first, each with a plan of its own inside the byte budget.

1. copy: a slot is recorded to hold the very image, the running one or the target itself. Nothing is fetched.
2. patch: the release has one from the image that the running slot is recorded to hold.
3. pack: index and stored chunks; planned again after reading the running slot if that is not what its record says.
A way that closes (RouteClosedError) is never widened: the next one is planned anew, must fit into what is left of the budget, and
is announced before its first byte is fetched (I9). What the closed way wrote is right and is kept.

Source: update-engine.md section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum

from tidewaiter_core.clock import Clock
from tidewaiter_core.errors import StateWriteError
from tidewaiter_core.payload.components import PatchRef
from tidewaiter_core.payload.patch import PatchReader, require_patch_match
from tidewaiter_core.payload.release import SlotComponent

from tidewaiter_updater.copy_supply import CopySupply
from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.errors import BudgetError, RouteClosedError, SourceError, SourceRefusedError
from tidewaiter_updater.index_store import HashTable, IndexStore
from tidewaiter_updater.pack_fallback import PackFallback
from tidewaiter_updater.patch import PatchSupply
from tidewaiter_updater.plan import ChunkHashes
from tidewaiter_updater.ports import Notice, Notify, Report
from tidewaiter_updater.readback import intact_chunks
from tidewaiter_updater.slots import ActiveSlot, InstallResult, fill, install
from tidewaiter_updater.sources import Source, hashed_path
from tidewaiter_updater.stage import Control, Step
from tidewaiter_updater.supply import Meter, Supply
from tidewaiter_updater.zstd import ZstdCodec

logger = logging.getLogger(__name__)

_WRONG_BYTES = frozenset({"source.bad-bytes", "source.bad-range"})


class Route(StrEnum):
    """A way to the image."""

    COPY = "copy"
    PATCH = "patch"
    PACK = "pack"


def patch_from(component: SlotComponent, root: str | None) -> PatchRef | None:
    """The patch of a release that starts from the image `root`, if it is the cheaper way."""
    for patch in component.patches:
        if patch.from_root == root and patch.length < component.index.length + component.pack.length:
            return patch
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What an attempt starts with."""

    component: SlotComponent
    target: SlotDevice
    active: SlotDevice | None
    """The running slot, if a table of what it is recorded to hold is kept."""
    active_table: HashTable | None
    promised: HashTable | None
    """The recorded table of the target."""
    source: Source
    resume: bool
    cap_bytes: int | None


class SlotWrite:
    """The attempt."""

    def __init__(
        self,
        given: Given,
        *,
        store: IndexStore,
        clock: Clock,
        control: Control,
        report: Report,
        notify: Notify,
    ) -> None:
        self._given = given
        self._component = given.component
        self._store = store
        self._clock = clock
        self._control = control
        self._report = report
        self._notify = notify
        self._step = Step(f"{given.target.name}: writing", control, clock)
        self._began_bytes = given.source.received_bytes
        self._resume = given.resume
        self._doubts_active = self._was_checked = False

    def run(self) -> None:
        """Go the cheapest way that leads there.

        Raises:
            BudgetError: None does within the budget; the message has both numbers.
            TidewaiterError: As for `slots.install`.
        """
        closed: RouteClosedError | None = None
        for route in self._routes():
            try:
                if closed is not None:
                    self._announce(route, closed)
                result = self._go(route)
            except RouteClosedError as err:
                logger.warning("%s: the way by %s is closed: %s", self._given.target.name, route, err)
                closed, self._resume = err, True
                self._doubts_active = self._doubts_active or err.code == "slot.active-differs"
                continue
            if result.active_differs:
                self._report_differing(result)
            return
        raise BudgetError(str(closed)) from closed

    def _routes(self) -> Iterator[Route]:
        tables = (self._given.active_table, self._given.promised)
        if self._component.image_root in {table.image_root for table in tables if table is not None}:
            yield Route.COPY
        active = self._given.active_table
        if patch_from(self._component, active.image_root if active else None) is not None:
            yield Route.PATCH
        yield Route.PACK
        if not self._was_checked:
            yield Route.PACK  # again, because copies were not where the records say

    def _go(self, route: Route) -> InstallResult:
        meter = Meter(self._given.source, began_bytes=self._began_bytes, cap_bytes=self._given.cap_bytes)
        with ExitStack() as stack:
            if route is Route.COPY:
                return self._by_copy(meter, stack)
            if route is Route.PATCH:
                return self._by_patch(meter, stack)
            return self._by_pack(meter, stack)

    def _by_copy(self, meter: Meter, stack: ExitStack) -> InstallResult:
        component, given = self._component, self._given
        table = self._table(stack)
        if table is None:
            raise RouteClosedError(
                f"{component.name}: no hash table of its image is kept; nothing to copy by"
            )
        is_running = given.active_table is not None and given.active_table.image_root == table.image_root
        supply = CopySupply(
            table,
            what=component.pack.path,
            active=given.active if is_running else None,
            store=self._store,
            fallback=self._fallback(meter, stack),
            meter=meter,
        )
        return self._fill(table, supply)

    def _by_patch(self, meter: Meter, stack: ExitStack) -> InstallResult:
        component, given = self._component, self._given
        active, active_table = given.active, given.active_table
        patch = patch_from(component, active_table.image_root if active_table else None)
        if patch is None or active is None or active_table is None:
            raise RouteClosedError(f"{component.name}: no patch starts from the running image")
        path = hashed_path(patch.path, patch.sha256)
        self._require_room(meter, self._store.missing_bytes(patch), path)
        try:
            reader = stack.enter_context(self._store.opened_head(patch, given.source, step=self._step))
            require_patch_match(reader.header, component, patch)
            reader.verify(ZstdCodec(), step=self._step)
            supply = PatchSupply(
                given.target,
                self._table(stack) or self._rebuilt_table(reader, active_table, stack),
                reader,
                given.source,
                path=path,
                active=active,
                store=self._store,
                fallback=self._fallback(meter, stack),
                meter=meter,
                step=self._step,
            )
            return self._fill(supply.table, supply)
        except SourceError as err:
            if isinstance(err, SourceRefusedError) or err.code in _WRONG_BYTES:
                raise RouteClosedError(str(err), code=err.code) from err
            raise

    def _by_pack(self, meter: Meter, stack: ExitStack) -> InstallResult:
        component, given = self._component, self._given
        self._require_room(meter, self._store.missing_bytes(component.index), component.index.path)
        index = stack.enter_context(self._store.opened(component.index, given.source, step=self._step))
        copies = self._copies()
        return install(
            given.target,
            component,
            index,
            given.source,
            store=self._store,
            clock=self._clock,
            control=self._control,
            progress=self._report,
            promised=given.promised,
            active=copies,
            resume=True if self._resume else None,
            cap_bytes=given.cap_bytes,
            began_bytes=self._began_bytes,
        )

    def _copies(self) -> ActiveSlot | None:
        """The running slot to copy from: by its record, or once that proved wrong by reading all of it."""
        active, table = self._given.active, self._given.active_table
        if active is None or table is None:
            return None
        intact = None
        if self._doubts_active:
            intact = intact_chunks(active, table, self._control)
            self._was_checked = True
        return ActiveSlot(device=active, table=table, intact=intact)

    def _fill(self, table: ChunkHashes, supply: Supply) -> InstallResult:
        return fill(
            self._given.target,
            self._component,
            table,
            supply,
            store=self._store,
            clock=self._clock,
            control=self._control,
            progress=self._report,
            promised=self._given.promised,
            resume=True if self._resume else None,
        )

    def _table(self, stack: ExitStack) -> HashTable | None:
        """The new image's table, if it is kept from before."""
        table = self._store.hashes(self._component.image_root)
        if table is not None:
            stack.callback(table.close)
        return table

    def _rebuilt_table(self, reader: PatchReader, old: HashTable, stack: ExitStack) -> HashTable:
        """The new image's table out of the running one's and the difference in the patch."""
        header = reader.header
        self._store.keep_table(
            reader.new_hashes(old.chunk_hash),
            image_root=header.new_root,
            image_bytes=header.new_bytes,
            chunk_bytes=header.chunk_bytes,
        )
        table = self._table(stack)
        if table is None:
            raise StateWriteError(
                f"hash table of {header.new_root[:16]}: written, but not there; nothing was installed"
            )
        return table

    def _fallback(self, meter: Meter, stack: ExitStack) -> PackFallback:
        fallback = PackFallback(
            self._component, self._given.source, store=self._store, meter=meter, step=self._step
        )
        return stack.enter_context(fallback)

    def _require_room(self, meter: Meter, missing_bytes: int, what: str) -> None:
        """Refuse before the first byte what cannot fit into the budget even without its content."""
        meter.expect(missing_bytes)
        meter.require_cap(what)

    def _announce(self, route: Route, closed: RouteClosedError) -> None:
        """Audit the change of plan before the first byte of the new one."""
        cap = self._given.cap_bytes
        allowed = "no cap" if cap is None else f"at most {cap} in all"
        self._notify(
            Notice(
                code=closed.code,
                text=f"planned anew by {route}, {allowed}: {closed}",
            )
        )

    def _report_differing(self, result: InstallResult) -> None:
        self._notify(
            Notice(
                code="slot.active-differs",
                text=f"{result.active_differs} chunks of the running slot are not what was installed; they were fetched",
            )
        )
