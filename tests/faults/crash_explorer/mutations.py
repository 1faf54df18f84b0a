"""Mistakes that were made in the field, seeded into one part each; an explorer that does not find them proves nothing.

A mutation replaces a port, a boot adapter, a boot script or the phase table; no code of the product is patched. To come with its
code: a data set used without COMPLETE (issue 3 item 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tidewaiter_core.model import SlotName
from tidewaiter_updater import decision
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot.envcopy import (
    COPY_BYTES,
    COPY_OFFSETS,
    EnvCopy,
    decode,
    encode,
    newest,
    to_variables,
)
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.phases import EFFECTS, TABLE, Effect, Hint, Phase, PhaseTable, Start, classify

from tests.faults.crash_explorer.backends import SIMULATED, Backend, Cmdline, Probe, Script, ScriptMedium
from tests.faults.crash_explorer.explorer import Effort, Explorer
from tests.faults.crash_explorer.mutations_data import DATA_MUTATIONS
from tests.faults.crash_explorer.scenarios import SCENARIOS
from tests.faults.crash_explorer.seen import Seen
from tests.faults.crash_explorer.world import Parts
from tests.sim.storage import SimDisk, SlotMedium, Storage

# --- slots ------------------------------------------------------------------------------------------------------------


class UnsyncedMedium(SlotMedium):
    """Nobody asks the slot to make its writes durable."""

    def sync(self) -> None: ...


class CachedMedium(SlotMedium):
    """Reads back what the kernel believes in."""

    def _fetched(self, offset: int, length: int) -> bytes:
        return self._device.read(offset, length, cached=True)


# --- the boot environment ---------------------------------------------------------------------------------------------


class CarelessBoot:
    """A writer of the simulated environment that leaves things out; reading is the product's."""

    def __init__(self, storage: Storage, cmdline: Cmdline) -> None:
        self._sound = SIMULATED.control(storage, cmdline=cmdline)
        self._device = SIMULATED.device(storage)
        self._medium = ScriptMedium(self._device)
        self.read = self._sound.read
        self.booted = self._sound.booted

    def write(self, env: BootEnv) -> None:
        raise NotImplementedError

    def _newest(self) -> tuple[int, int]:
        """Which copy is in force, and its flag."""
        copies = (self._copy(0), self._copy(1))
        index = newest(copies)
        copy = copies[index or 0]
        return index or 0, copy.flag if copy is not None else 0

    def _copy(self, index: int) -> EnvCopy | None:
        return decode(self._medium.read(COPY_OFFSETS[index], COPY_BYTES))


class InPlaceBoot(CarelessBoot):
    """grub-editenv's way: empty the record in force, then write it anew."""

    def write(self, env: BootEnv) -> None:
        index, flag = self._newest()
        self._device.write(COPY_OFFSETS[index], bytes(COPY_BYTES))
        self._device.write(COPY_OFFSETS[index], encode(to_variables(env), flag=flag))
        self._device.sync()


class BothCopiesBoot(CarelessBoot):
    """Both copies at once, so that they always agree."""

    def write(self, env: BootEnv) -> None:
        _, flag = self._newest()
        for offset in COPY_OFFSETS:
            self._device.write(offset, encode(to_variables(env), flag=flag + 1))
        self._device.sync()


class UnprovenBoot(CarelessBoot):
    """Writes the older copy and takes the medium's word for it."""

    def write(self, env: BootEnv) -> None:
        index, flag = self._newest()
        self._device.write(COPY_OFFSETS[1 - index], encode(to_variables(env), flag=flag + 1))
        self._device.sync()


def _boot(kind: type[CarelessBoot]) -> Callable[[Backend, Storage, Cmdline], BootControl]:
    return lambda backend, storage, cmdline: kind(storage, cmdline)


# --- the boot script --------------------------------------------------------------------------------------------------


class ClearingScript:
    """Takes back a trial that has no tries left, so that the system never learns of it."""

    def __init__(self, storage: Storage) -> None:
        self._sound = SIMULATED.script(storage)
        self._control = SIMULATED.control(storage, cmdline=lambda: "")

    def run(self, probe: Probe) -> SlotName | None:
        env = self._control.read()
        if env is not None and env.trial is not None and env.left == 0:
            self._control.write(decision.clear(env))
        return self._sound.run(probe)


class LateScript(ClearingScript):
    """Spends a try once the trial was loaded."""

    def run(self, probe: Probe) -> SlotName | None:
        env = self._control.read()
        if env is None or env.trial is None or env.left == 0:
            return self._sound.run(probe)
        if not probe(env.trial):
            return None
        self._control.write(replace(env, left=env.left - 1))
        return env.trial


def _script(kind: type[ClearingScript]) -> Callable[[Backend, Storage], Script]:
    return lambda backend, storage: kind(storage)


# --- the state directory ----------------------------------------------------------------------------------------------


class UnsyncedNames(SimDisk):
    """A rename counts as done when it returns."""

    def sync_directory(self, directory: Path) -> None: ...


class UnsyncedFiles(SimDisk):
    """A file counts as written when it is closed."""

    def sync(self, fd: int) -> None: ...


# --- the phase table --------------------------------------------------------------------------------------------------


def _effects(**orders: tuple[Effect, ...]) -> PhaseTable:
    """The product's table with other effects for some phases."""
    changed = {Phase(name): effects for name, effects in orders.items()}
    return replace(TABLE, effects={**EFFECTS, **changed})


def _moved(phase: Phase, effect: Effect, *, before: Effect) -> tuple[Effect, ...]:
    """The effects of `phase` with one of them earlier."""
    rest = [one for one in EFFECTS[phase] if one is not effect]
    rest.insert(rest.index(before), effect)
    return tuple(rest)


def journal_first(
    env: BootEnv | None, booted: SlotName | None, boot_id: str, *, hint: Hint | None, finished: bool
) -> Start:
    """Believes a journal that says ARMED: whatever the environment tells, the reboot is still ahead."""
    if hint is not None and not hint.closed and hint.phase is Phase.ARMED and hint.target is not booted:
        return Start(phase=Phase.ARMED)
    return classify(env, booted, boot_id, hint=hint, finished=finished)


# --- all of them ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """One mistake, and the stories that show it."""

    name: str
    parts: Parts
    scenarios: tuple[str, ...]


MUTATIONS = (
    Mutation("no slot fsync", Parts(medium=UnsyncedMedium), ("full",)),
    Mutation(
        "arm before verify",
        Parts(table=_effects(VERIFY=(Effect.ARM, Effect.READ_BACK))),
        ("full", "slot loses a sector at sync 1"),
    ),
    Mutation(
        "disarm after write",
        Parts(
            table=_effects(
                PREPARE=(Effect.AUDIT_INSTALLING, Effect.JOURNAL), TRANSFER=(Effect.WRITE_SLOT, Effect.DISARM)
            )
        ),
        ("full",),
    ),
    Mutation("buffered read-back", Parts(medium=CachedMedium), ("slot loses a sector at sync 1",)),
    Mutation("environment truncated in place", Parts(control=_boot(InPlaceBoot)), ("full",)),
    Mutation("both copies written", Parts(control=_boot(BothCopiesBoot)), ("full",)),
    Mutation(
        "no read-back of the environment",
        Parts(control=_boot(UnprovenBoot)),
        ("environment loses write 0", "environment loses write 1", "environment loses write 2"),
    ),
    Mutation(
        "journal trusted over environment",
        Parts(table=replace(TABLE, classify=journal_first)),
        ("hanging trial",),
    ),
    Mutation(
        "floor raised before COMMIT",
        Parts(table=_effects(COMMITTED=_moved(Phase.COMMITTED, Effect.FLOORS, before=Effect.COMMIT))),
        ("full",),
    ),
    Mutation(
        "RAISE before COMMIT",
        Parts(table=_effects(COMMITTED=_moved(Phase.COMMITTED, Effect.RAISE, before=Effect.COMMIT))),
        ("epoch raise",),
    ),
    Mutation("trial cleared by the script", Parts(script=_script(ClearingScript)), ("hanging trial",)),
    Mutation("decrement after load", Parts(script=_script(LateScript)), ("trial that does not load",)),
    Mutation("rename without directory fsync", Parts(disk=UnsyncedNames), ("full", "failing health")),
    Mutation("file renamed without fsync", Parts(disk=UnsyncedFiles), ("full", "failing health")),
    Mutation(
        "quarantine after CLEAR",
        Parts(table=_effects(ROLLED_BACK=_moved(Phase.ROLLED_BACK, Effect.CLEAR, before=Effect.QUARANTINE))),
        ("failing health", "hanging trial"),
    ),
    *(Mutation(name, parts, scenarios) for name, parts, scenarios in DATA_MUTATIONS),
)


def find(mutation: Mutation) -> str | None:
    """How the explorer shows the mistake, None if it does not."""
    for scenario in SCENARIOS:
        if scenario.name in mutation.scenarios:
            effort = Effort(second_in=0, stop_at_first=True)
            figures = Explorer(scenario, seen=Seen(), parts=mutation.parts, effort=effort).run()
            if figures.findings:
                finding = figures.findings[0]
                return f"{scenario.name}, cut after {' and '.join(finding.cuts)}: {finding.text}"
    return None
