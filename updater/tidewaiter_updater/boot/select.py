"""The boot loader that the configuration names, composed from its parts and looked at before anything relies on it.

What is refused here (boot.env-layout) cannot be changed safely at all, so the updater does not start. A booted slot about which
the witnesses disagree is no such thing: the updater starts, says DEGRADED boot.slot-mismatch and writes nothing.

Source: update-engine.md sections 7 and 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidewaiter_core.errors import ConfigError
from tidewaiter_core.model import SlotName
from tidewaiter_core.settings import BootBackend, Updater

from tidewaiter_updater.block_stack import FileTree
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot.booted import BootedSlot
from tidewaiter_updater.boot.esp import PRIVATE, DirectEsp, Esp
from tidewaiter_updater.boot.grub import EnvFiles, GrubBoot
from tidewaiter_updater.boot.medium import FileMedium
from tidewaiter_updater.boot.sdboot import SdBoot
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.boot.uboot import EnvPartition, UbootBoot


@dataclass(frozen=True, slots=True, kw_only=True)
class BootLoader:
    """What the rest of the updater needs of it."""

    control: BootControl
    esp: Esp | None = None
    """Where it starts kernel images from, if they are not inside the slots."""


def boot_loader(settings: Updater) -> BootLoader:
    """The loader of this device, with names in order that an earlier cut left parted.

    Raises:
        BootEnvError: boot.env-layout; its environment is not where or what it has to be.
        ConfigError: A key that it needs is not set.
    """
    return _MAKERS[settings.boot_backend](settings)


def _simulated(settings: Updater) -> BootLoader:
    medium = FileMedium(_needed(settings.boot_env, "boot_env"))
    medium.check_layout()
    cmdline = settings.cmdline_file
    return BootLoader(control=SimulatedBoot(medium, cmdline=lambda: cmdline.read_text(encoding="utf-8")))


def _uboot(settings: Updater) -> BootLoader:
    partition = EnvPartition(_needed(settings.boot_env, "boot_env"), lock_file=settings.boot_lock_file)
    partition.check_layout()
    return BootLoader(control=UbootBoot(partition, booted=_booted(settings), locked=partition.locked))


def _grub(settings: Updater) -> BootLoader:
    files = EnvFiles(_needed(settings.boot_env, "boot_env"))
    files.check_layout()
    return BootLoader(control=GrubBoot(files, booted=_booted(settings)))


def _systemd_boot(settings: Updater) -> BootLoader:
    mount = _needed(settings.esp, "esp")
    esp, files = DirectEsp(mount), EnvFiles(mount / PRIVATE)
    esp.check_layout()
    files.check_layout()
    control = SdBoot(esp, files, booted=_booted(settings))
    control.settle()
    return BootLoader(control=control, esp=esp)


_MAKERS: dict[BootBackend, Callable[[Updater], BootLoader]] = {
    BootBackend.SIMULATED: _simulated,
    BootBackend.UBOOT: _uboot,
    BootBackend.GRUB: _grub,
    BootBackend.SYSTEMD_BOOT: _systemd_boot,
}


def _booted(settings: Updater) -> Callable[[], SlotName]:
    cmdline = settings.cmdline_file
    return BootedSlot(
        cmdline=lambda: cmdline.read_text(encoding="utf-8"),
        kernel=FileTree(settings.kernel_files),
        slots={SlotName.A: settings.slot_a, SlotName.B: settings.slot_b},
    )


def _needed(place: Path | None, key: str) -> Path:
    if place is None:
        raise ConfigError(f"updater.{key} is not set; the updater does not start")
    return place
