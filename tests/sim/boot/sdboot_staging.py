"""systemd-boot for tests that know decisions only: whatever is armed gets a toy kernel image staged right before.

On a device the transfer stages it (`tidewaiter_updater.kernels`), and so it does in the crash explorer.
"""

from __future__ import annotations

from collections.abc import Callable

from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot.esp import ENTRIES, Esp
from tidewaiter_updater.boot.staged import StagedUki
from tidewaiter_updater.boot.ukiname import UkiName
from tidewaiter_updater.model import BootEnv

from tests.sim.boot.sdboot import ESP, SdBootBackend, toy_uki
from tests.sim.boot.staging import stage_whole
from tests.sim.storage import SimDisk, Storage


class StagingSdBoot:
    """BootControl that stages a toy image before it arms."""

    def __init__(self, inner: BootControl, esp: Esp) -> None:
        self._inner = inner
        self._esp = esp
        self.read = inner.read
        self.booted = inner.booted

    def write(self, env: BootEnv) -> None:
        before = self._inner.read()
        begins = before is None or before.trial is not env.trial or env.trial not in self._slots()
        if env.trial is not None and env.left > 0 and begins:
            entry = UkiName(version=self._next_version(env.committed), slot=env.trial)
            data = toy_uki(entry)
            uki = StagedUki(txn=env.txn, sha256=Sha256.of(data), version=entry.version, slot=entry.slot)
            stage_whole(self._esp, uki, data, pieces=1)
        self._inner.write(env)

    def _slots(self) -> set[SlotName]:
        """Those that have an entry."""
        names = (UkiName.parse(name) for name in self._esp.files(ENTRIES))
        return {name.slot for name in names if name is not None}

    def _next_version(self, committed: SlotName) -> str:
        names = (UkiName.parse(name) for name in self._esp.files(ENTRIES))
        versions = [name.version for name in names if name is not None and name.slot is committed]
        return f"{1 + max(int(version.partition('.')[0]) for version in versions)}.0"


class StagingBackend(SdBootBackend):
    """Port Backend of the crash explorer, without the explorer's releases."""

    def control(self, storage: Storage, *, cmdline: Callable[[], str]) -> BootControl:
        return StagingSdBoot(
            super().control(storage, cmdline=cmdline), Esp(ESP, disk=SimDisk(storage, fat=ESP))
        )
