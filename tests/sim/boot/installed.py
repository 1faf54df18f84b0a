"""A boot loader as it is installed on a device: its place on real storage, its configuration, its script, what it has decided.

For tests that start the real updater. What the factory writes is written with the product's own layouts; the loaders themselves
are the models beside this file.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tidewaiter_core.disk import SYSTEM_DISK
from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot import grubenv as grub_env
from tidewaiter_updater.boot.envcopy import COPY_OFFSETS, LAYOUT, encode, to_variables
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, Esp
from tidewaiter_updater.boot.grub import FILES, EnvFiles, GrubBoot
from tidewaiter_updater.boot.medium import FileMedium
from tidewaiter_updater.boot.sdboot import SdBoot
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.boot.uboot import EnvPartition, UbootBoot
from tidewaiter_updater.boot.ukiname import UkiName
from tidewaiter_updater.model import BootEnv

from tests.sim.boot import Probe, TwoCopyScript, choose, format_environment
from tests.sim.boot.sdboot import SdBootScript

FACTORY = BootEnv(committed=SlotName.A, ok_a=True, ok_b=True)


def _nowhere() -> SlotName:
    raise AssertionError("nobody runs here")


class InstalledLoader(Protocol):
    """One boot loader on one device."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Keys of `[updater]`."""

    def format(self) -> None:
        """What the factory writes."""

    def choose(self, probe: Probe) -> SlotName | None:
        """One run of its script; None is a reset."""

    def control(self) -> BootControl:
        """The adapter, to look at what is decided or to decide for the updater."""


@dataclass(frozen=True, slots=True)
class SimulatedFile:
    """The simulated loader of the demo."""

    path: Path

    @property
    def settings(self) -> Mapping[str, str]:
        return {"boot_env": str(self.path)}

    def format(self) -> None:
        format_environment(self.path)

    def choose(self, probe: Probe) -> SlotName | None:
        return choose(self.path, probe=probe)

    def control(self) -> BootControl:
        return SimulatedBoot(FileMedium(self.path), cmdline=lambda: "")


@dataclass(frozen=True, slots=True)
class UbootDevice:
    """U-Boot with its environment on a block device."""

    device: Path
    lock_file: Path

    @property
    def settings(self) -> Mapping[str, str]:
        return {
            "boot_backend": "uboot",
            "boot_env": str(self.device),
            "boot_lock_file": str(self.lock_file),
        }

    def format(self) -> None:
        assert stat.S_ISBLK(self.device.stat().st_mode)
        for flag, offset in enumerate(COPY_OFFSETS):
            FileMedium(self.device).write(offset, encode(to_variables(FACTORY), flag=flag))

    def choose(self, probe: Probe) -> SlotName | None:
        return TwoCopyScript(EnvPartition(self.device, lock_file=self.lock_file), LAYOUT).run(probe)

    def control(self) -> BootControl:
        return UbootBoot(EnvPartition(self.device, lock_file=self.lock_file), booted=_nowhere)


@dataclass(frozen=True, slots=True)
class GrubFolder:
    """GRUB with two environment blocks in a folder."""

    folder: Path

    @property
    def settings(self) -> Mapping[str, str]:
        return {"boot_backend": "grub", "boot_env": str(self.folder)}

    def format(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for number, name in enumerate(FILES):
            (self.folder / name).write_bytes(grub_env.encode(to_variables(FACTORY), number=number))

    def choose(self, probe: Probe) -> SlotName | None:
        return TwoCopyScript(EnvFiles(self.folder), grub_env.LAYOUT).run(probe)

    def control(self) -> BootControl:
        return GrubBoot(EnvFiles(self.folder), booted=_nowhere)


@dataclass(frozen=True, slots=True)
class SdBootFolder:
    """systemd-boot with its partition mounted, or a folder that plays it. `kernel` is what the factory's entries hold."""

    esp: Path
    version: str = "1.0"
    kernel: bytes = b"kernel of the factory"

    @property
    def settings(self) -> Mapping[str, str]:
        return {"boot_backend": "systemd-boot", "boot_env": "", "esp": str(self.esp)}

    def format(self) -> None:
        for folder in (ENTRIES, PRIVATE):
            (self.esp / folder).mkdir(parents=True, exist_ok=True)
        spare = UkiName(version=self.version, slot=SlotName.B, left=0)
        for entry in (UkiName(version=self.version, slot=SlotName.A), spare):
            (self.esp / ENTRIES / str(entry)).write_bytes(self.kernel)
        GrubFolder(self.esp / PRIVATE).format()

    def choose(self, probe: Probe) -> SlotName | None:
        return SdBootScript(SYSTEM_DISK, self.esp, starts=lambda entry, data: True).run(probe)

    def control(self) -> BootControl:
        return SdBoot(Esp(self.esp), EnvFiles(self.esp / PRIVATE), booted=_nowhere)

    def names(self) -> set[str]:
        """What systemd-boot offers."""
        return {path.name for path in (self.esp / ENTRIES).iterdir()}

    def private(self) -> set[str]:
        """What it does not look at, apart from the record."""
        return {path.name for path in (self.esp / PRIVATE).iterdir()} - set(FILES)
