"""The boot script of the device, as update-engine.md section 8 fixes it, on the very environment that the updater writes.

Real boot loaders carry the same contract in their own language; these models are what every test and the demo boot by.
`TwoCopyScript` is U-Boot's, GRUB's and the simulated one; systemd-boot, which goes by file names, is in `sdboot`. `grub_emu` and
`uboot_qemu` run the shipped scripts in the real loaders, to compare.
`step` is called between any two actions of the script, so that a test can pull the plug there.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.copies import CopyStore
from tidewaiter_updater.boot.envcopy import (
    COPY_BYTES,
    COPY_OFFSETS,
    LAYOUT,
    encode,
    from_variables,
    to_variables,
)
from tidewaiter_updater.boot.layout import EnvCopy, Layout
from tidewaiter_updater.boot.medium import FileMedium
from tidewaiter_updater.boot.simulated import EnvMedium, PlacedCopies
from tidewaiter_updater.model import BootEnv

Probe = Callable[[SlotName], bool]
"""Whether kernel and root of a slot can be loaded."""


def format_environment(path: Path, *, committed: SlotName = SlotName.A, epoch: int = 0) -> None:
    """What the factory writes: both slots hold the same image and may be booted."""
    env = BootEnv(committed=committed, ok_a=True, ok_b=True, epoch=epoch)
    with path.open("wb") as file:
        for flag, offset in enumerate(COPY_OFFSETS):
            file.seek(offset)
            file.write(encode(to_variables(env), flag=flag))
        file.truncate(COPY_OFFSETS[1] + COPY_BYTES)


def choose(path: Path, *, probe: Probe) -> SlotName | None:
    """One run of the script on an environment file; see `TwoCopyScript.run`."""
    return BootScript(FileMedium(path)).run(probe)


class TwoCopyScript:
    """One power-on. Stateless: everything it knows is in the environment."""

    def __init__(
        self, store: CopyStore, layout: Layout, *, step: Callable[[str], None] = lambda name: None
    ) -> None:
        self._store = store
        self._layout = layout
        self._step = step

    def run(self, probe: Probe) -> SlotName | None:
        """The slot that gets control; None is a reset, because the chosen slot would not load."""
        copies = (self._copy(0), self._copy(1))
        index = self._layout.newest(copies)
        self._step("read")
        copy = copies[index] if index is not None else None
        env = from_variables(copy.variables) if copy is not None else None
        if index is None or copy is None or env is None:
            return self._compiled_in_order(probe)
        if env.trial is not None and env.left > 0 and self._spend_try(index, copy, env):
            # A try is spent before anything of the trial is touched; whatever hangs from here on, it counts.
            self._step("spent")
            return env.trial if probe(env.trial) else None
        return self._committed(env, probe)

    def _committed(self, env: BootEnv, probe: Probe) -> SlotName | None:
        if probe(env.committed):
            return env.committed
        other = env.committed.other
        return other if env.is_ok(other) and probe(other) else None

    def _compiled_in_order(self, probe: Probe) -> SlotName | None:
        return next((slot for slot in (SlotName.A, SlotName.B) if probe(slot)), None)

    def _spend_try(self, index: int, copy: EnvCopy, env: BootEnv) -> bool:
        """False if the counter could not be written; then the committed slot boots, never an uncounted trial."""
        variables = {**copy.variables, **to_variables(replace(env, left=env.left - 1))}
        raw = self._layout.encode(variables, (copy.flag + 1) % self._layout.numbers)
        self._step("spend")
        try:
            self._store.write(1 - index, raw)
            return self._store.read(1 - index) == raw
        except (OSError, BootEnvError):
            return False

    def _copy(self, index: int) -> EnvCopy | None:
        return self._layout.decode(self._store.read(index))


class BootScript(TwoCopyScript):
    """The script of the simulated loader and of U-Boot."""

    def __init__(self, medium: EnvMedium, *, step: Callable[[str], None] = lambda name: None) -> None:
        super().__init__(PlacedCopies(medium), LAYOUT, step=step)
