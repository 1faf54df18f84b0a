"""One simulated device: storage, boot script, the real updater, and the people and programs around it.

All that survives a power cut is in `storage`; everything else is made anew at each start. The updater is the product's engine
with the product's journal, floors, index store, slot pipeline, read-back and boot adapter; only trust, injector, audit log and
health are toys (tests/sim/device.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from tidewaiter_core.disk import Disk
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.health import CheckList, MediumCheck
from tidewaiter_updater.health_system import DataCheck
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.journal import Journal
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.model import BootEnv, RunningRelease, is_medium
from tidewaiter_updater.phases import IN_TRIAL, TABLE, Phase, PhaseTable
from tidewaiter_updater.ports import Control, Kernels, NoDataSets, Ports, SlotStore
from tidewaiter_updater.set_store import SetStore
from tidewaiter_updater.slot_store import DeviceSlots
from tidewaiter_updater.sources import Source
from tidewaiter_updater.state_files import StateFiles
from tidewaiter_updater.transaction import Site

from tests.faults.crash_explorer.backends import Backend, Cmdline, Script
from tests.faults.crash_explorer.data import DataPartition, Sets, notes_in
from tests.faults.crash_explorer.outcome import Outcome, first_act
from tests.faults.crash_explorer.releases import IMAGE_BYTES, LIMITS, Blocks, Made, Repository
from tests.faults.crash_explorer.remembered import remembered
from tests.faults.crash_explorer.stick import stick
from tests.faults.crash_explorer.toys import (
    HalCheck,
    LedgerAudit,
    SealingInjector,
    SigningTrust,
    consent_for,
    new_boot_id,
)
from tests.faults.crash_explorer.watch import (
    DEVICES,
    Moment,
    Watch,
    WatchedBoot,
    WatchedDocuments,
    WatchedFloors,
    slot_blocks,
)
from tests.sim.clock import FakeClock
from tests.sim.device import HW, PRODUCT, Power, ToyReboot, Violation
from tests.sim.storage import Content, SimDisk, SimTrees, SlotMedia, SlotMedium, Storage

STATE = Path("/state")
BOOT_LIMIT = 12
ROUNDS = 30
STEPS = 80


def _control(backend: Backend, storage: Storage, cmdline: Cmdline) -> BootControl:
    return backend.control(storage, cmdline=cmdline)


def _script(backend: Backend, storage: Storage) -> Script:
    return backend.script(storage)


def _sets(folder: Path, trees: SimTrees, disk: Disk) -> SetStore:
    return SetStore(folder, trees=trees, disk=disk)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the updater is made of; a mutation replaces one of them by a mistaken one."""

    table: PhaseTable = TABLE
    disk: Callable[[Storage], Disk] = SimDisk
    medium: type[SlotMedium] = SlotMedium
    trees: type[SimTrees] = SimTrees
    sets: Sets = _sets
    control: Callable[[Backend, Storage, Cmdline], BootControl] = _control
    script: Callable[[Backend, Storage], Script] = _script


SOUND = Parts()


@dataclass(kw_only=True)
class Circumstances:
    """What happens to the device that is not the updater's doing."""

    offered: Made
    known: tuple[Made, ...]
    """Every release that may be in a slot, the offered one included."""
    is_sick: bool = False
    """Its health checks fail."""
    hangs: bool = False
    """It never gets as far as its health checks; the watchdog resets it."""
    hang_limit: int = 0
    """So many times in its life, if it does not hang always."""
    is_rejected: bool = False
    """An operator rejects it when it is on trial."""
    source: str = "relay"
    """Where it comes from."""
    does_not_load: bool = False
    """Its kernel does not start, although its content is right."""
    faulty_answers: int = 0
    """How many answers of the server are damaged in a run."""
    slot_lies: frozenset[int] = field(default_factory=frozenset)
    """Syncs of the target (counted from 0) that lose a sector."""
    env_lies: frozenset[int] = field(default_factory=frozenset)
    """Syncs of the environment that lose everything."""
    keeps_data: bool = False
    """The product has data of its own, and a program for its next schema."""
    migration_fails: bool = False
    """That program does not succeed."""
    cancel_in: Phase | None = None
    """Where a person cancels, once."""


class World:
    """A device and its life."""

    def __init__(
        self,
        content: Content,
        backend: Backend,
        circumstances: Circumstances,
        *,
        parts: Parts = SOUND,
        is_recorded: bool = True,
    ) -> None:
        self.backend = backend
        self.given = circumstances
        self.parts = parts
        self.images: dict[Blocks, Made] = {made.blocks: made for made in circumstances.known}
        facts = replace(remembered(content, STATE), notes=notes_in(content))
        self.watch = Watch(set(self.images), backend.in_force(content), facts)
        self.data: DataPartition | None = None
        self.first_act: Outcome | None = None
        """What the first start of the updater found."""
        self.engine: Engine | None = None
        self.storage = Storage(content, is_recorded=is_recorded, facts=self._moment)
        self.boots = 0
        self.trial_boots = 0
        self.began_with = self.watch.env
        self.began_quarantined = self.watch.facts.quarantined
        self.is_canceled = False
        self.hangs = 0
        self.booted: SlotName | None = None
        self.boot_id = ""
        self._attach()
        self.reset_volatile()

    def _moment(self) -> Moment:
        return Moment(self.watch.facts, self.engine.transaction.phase.value if self.engine else "")

    def _attach(self) -> None:
        for name in DEVICES.values():
            device = self.storage.device(name)
            device.on_write = self._slot_writes(name)
        self.storage.device(DEVICES[SlotName.B]).lies.syncs = set(self.given.slot_lies)
        env = self.backend.device(self.storage)
        env.lies.syncs, env.lies.whole = set(self.given.env_lies), True

    def _slot_writes(self, name: str) -> Callable[[int, bytes], None]:
        def written(offset: int, data: bytes) -> None:
            self.watch.slot_written(name, offset, data)
            self._perhaps_cancel(Phase.TRANSFER)

        return written

    def reset_volatile(self) -> None:
        """What a power cycle makes anew."""
        power = Power()
        self.clock = FakeClock()
        self.injector = SealingInjector(power, on_seal=lambda: self._perhaps_cancel(Phase.ARMED))
        self.reboot = ToyReboot(power)
        self.engine = None
        self.data = None
        self.booted = None

    # --- power ----------------------------------------------------------------------------------------------------

    def power_on(self) -> Engine:
        """Boot until a slot gets control, then start its updater."""
        while True:
            self.boots += 1
            if self.boots > BOOT_LIMIT:
                raise Violation(f"not at rest after {BOOT_LIMIT} boots: {self.in_force()}")
            self.watch.script_runs()
            before = self.in_force()
            booted = self.parts.script(self.backend, self.storage).run(self._loads)
            if booted is None:
                self.watch.booted(None, self.in_force())
            tried = before is not None and before.trial is not None and before.left > 0
            # A loader that lost the entry, or could not count, boots the committed slot instead.
            if tried and before is not None and booted is not before.committed:
                self.trial_boots += 1
            if booted is not None:
                return self._start_updater(booted)

    def power_cycle(self, *, orderly: bool) -> None:
        """The end of a reboot, or a reset that nobody was asked about."""
        self.storage.power_cycle(orderly=orderly)
        self.reset_volatile()

    def in_force(self) -> BootEnv | None:
        """The record by which the script would go now."""
        return self.backend.in_force(self.storage.view)

    def _loads(self, slot: SlotName) -> bool:
        """Booting a slot that does not hold exactly a signed image is what must never happen."""
        found = self.images.get(slot_blocks(self.storage.view, slot))
        if found is None:
            raise Violation(f"I2: slot {slot} gets control and holds no signed image")
        return not (self.given.does_not_load and found is self.given.offered)

    def _start_updater(self, booted: SlotName) -> Engine:
        self.booted = booted
        running = self.images[slot_blocks(self.storage.view, booted)]
        is_sick = self.given.is_sick and running is self.given.offered
        self.boot_id = new_boot_id(self.storage.state)
        disk = self.parts.disk(self.storage)
        control = self.parts.control(self.backend, self.storage, lambda: f"ro tidewaiter.slot={booted}")
        # An adapter may settle names that a cut parted; until then the loader's business is not finished.
        self.watch.booted(booted, self.in_force())
        boot = WatchedBoot(control, self.watch, lambda: self.storage.state)

        self.data = self._data_partition(running.identity, control, booted) if self.given.keeps_data else None

        def boot_epoch() -> int:
            env = control.read()
            return env.epoch if env is not None else 0

        floors = FloorStore(STATE / "floor.json", boot_epoch=boot_epoch, disk=disk)
        documents = WatchedDocuments(StateFiles(STATE, disk=disk), self.watch)
        slots, kernels = self._slots(disk, documents)
        sets = self.data.port if self.data is not None else NoDataSets()
        ports = Ports(
            clock=self.clock,
            boot=boot,
            documents=documents,
            trust=SigningTrust(self.given.known, floors),
            floors=WatchedFloors(floors, self.watch),
            slots=slots,
            kernels=kernels,
            interlock=self.injector,
            injector=self.injector,
            reboot=self.reboot,
            audit=LedgerAudit(self.storage),
            health=CheckList(
                [
                    MediumCheck(slots),
                    HalCheck(is_sick=is_sick),
                    DataCheck(lambda: None, sets=sets, identity=running.identity),
                ]
            ),
            data=sets,
        )
        self.engine = Engine(
            ports,
            site=Site(serial="INJ-1", product=PRODUCT, hw=HW),
            identity=running.identity,
            boot_id=self.boot_id,
            rng=Random(1),
            table=self.parts.table,
            limits=LIMITS,
        )
        if self.first_act is None:
            self.first_act = first_act(self.engine, runs_offered=running is self.given.offered)
        return self.engine

    def _data_partition(
        self, running: RunningRelease, control: BootControl, booted: SlotName
    ) -> DataPartition:
        """The root program runs before everything else, the product before the updater."""
        partition = DataPartition(
            self.storage,
            self.watch,
            trees=self.parts.trees(self.storage),
            sets=self.parts.sets,
            running=running,
            control=control,
            booted=booted,
            boot_id=self.boot_id,
            clock=self.clock,
            fails=self.given.migration_fails,
        )
        partition.boot()
        return partition

    def _slots(self, disk: Disk, documents: WatchedDocuments) -> tuple[SlotStore, Kernels]:
        paths = {slot: Path("/dev") / name for slot, name in DEVICES.items()}
        devices = {paths[slot]: self.storage.device(name) for slot, name in DEVICES.items()}
        network = Repository(self.given.known, faulty=self.given.faulty_answers)
        bay = MediaBay()
        if is_medium(self.given.source):
            bay.insert(self.given.source, stick(self.given.known))

        def source_for(name: str, control: Control) -> Source:
            return bay.medium(name) if is_medium(name) else network

        slots = DeviceSlots(
            paths,
            store=IndexStore(STATE / "index", disk=disk, limits=LIMITS),
            records=Journal(documents).slots,
            source_for=source_for,
            clock=self.clock,
            beat=lambda stage: None,
            media=SlotMedia(devices, IMAGE_BYTES, on_proof=self.watch.slot_proven, medium=self.parts.medium),
        )
        return self.backend.kernels(self.storage, slots, source_for, clock=self.clock)

    # --- the people and programs around the updater ---------------------------------------------------------------

    def work(self) -> None:
        """Let the worker run until it waits for something that only time or somebody else brings."""
        engine = self.running()
        for _ in range(STEPS):
            if engine.transaction.phase not in (Phase.TRANSFER, Phase.ARMED):
                self._perhaps_cancel(engine.transaction.phase)
            if self.reboot.requested:
                return
            if engine.step() > 0 and not (self.data is not None and self.data.settle()):
                return
        raise Violation(f"the engine never rests in {engine.transaction.phase}")

    def offer(self) -> None:
        """What the agent does at each poll: Check, Install, Activate. A refusal is shown to people and asked for again."""
        engine, made = self.running(), self.given.offered
        with contextlib.suppress(TidewaiterError):
            entry = engine.transaction.entry
            elsewhere = entry is not None and entry.source != self.given.source
            if engine.transaction.open_digest() is None or elsewhere:
                offer = engine.check(self.given.source, made.release.path)
                if offer.installable and not self.runs_offered():
                    engine.install(made.release.digest, consent=consent_for(made), is_local=True)
        self.work()
        self._perhaps_cancel(Phase.STAGED)
        if engine.transaction.phase in (Phase.STAGED, Phase.WAIT_WINDOW) and not self.is_canceled:
            engine.activate(made.release.digest, window_open=True)
        self.work()

    def confirm(self) -> None:
        """tidewaiter-health, then tidewaiter-commit if it was green."""
        engine = self.running()
        with contextlib.suppress(TidewaiterError):
            if self.given.is_rejected:
                engine.reject(self.given.offered.release.digest, "not wanted")
            verdict = engine.health(given_up=lambda: False)
            if verdict is not None and verdict.healthy:
                engine.commit()
                if self.data is not None:
                    self.data.write()
        self.work()

    def _perhaps_cancel(self, phase: Phase) -> None:
        engine = self.engine
        if self.given.cancel_in is not phase or self.is_canceled or engine is None:
            return
        if engine.transaction.phase is phase:
            self.is_canceled = True
            engine.cancel(self.given.offered.release.digest)

    def session(self) -> None:
        """One round of what happens around the updater, until it rests or reboots."""
        if self.engine is None:
            self.power_on()
        self.work()
        if self.running().transaction.phase in IN_TRIAL:
            if self.given.hangs or self.hangs < self.given.hang_limit:
                self.hangs += 1
                self.power_cycle(orderly=False)
                return
            self.confirm()
        elif not self.is_settled():
            self.offer()
        if self.reboot.requested:
            self.power_cycle(orderly=True)

    def live(self, *, is_known: Callable[[], bool] = lambda: False) -> bool:
        """Polls, reboots and trials until nothing changes any more.

        Args:
            is_known: Asked whenever the power is off in between: does the rest of this life need no telling?

        Returns:
            False when it ended with that.
        """
        for _ in range(ROUNDS):
            self.session()
            if self.engine is None:
                if is_known():
                    return False
            elif self.is_settled():
                return True
            self.clock.advance(600)
        raise Violation(f"never at rest: {self.in_force()}")

    def runs_offered(self) -> bool:
        """Whether the offered release has control."""
        return self.booted is not None and self._in_slot(self.booted) is self.given.offered

    def is_settled(self) -> bool:
        """Committed, or given up for good."""
        env, transaction = self.in_force(), self.running().transaction
        if transaction.pending or env is None or env.trial is not None:
            return False
        runs = self.runs_offered() and env.committed is self.booted
        return runs or self.given.offered.txn in transaction.journal.quarantined()

    def running(self) -> Engine:
        """The updater; there has to be one."""
        if self.engine is None:
            raise RuntimeError("the device is off")
        return self.engine

    def _in_slot(self, slot: SlotName) -> Made | None:
        return self.images.get(slot_blocks(self.storage.view, slot))
