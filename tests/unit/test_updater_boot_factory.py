"""The record that a device is born with, as each backend reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_core.settings import BootBackend
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot.esp import PRIVATE, Esp
from tidewaiter_updater.boot.grub import EnvFiles, GrubBoot
from tidewaiter_updater.boot.medium import FileMedium
from tidewaiter_updater.boot.sdboot import SdBoot
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.boot_factory import main
from tidewaiter_updater.model import BootEnv


def control(backend: BootBackend, place: Path) -> BootControl:
    if backend is BootBackend.GRUB:
        EnvFiles(place).check_layout()
        return GrubBoot(EnvFiles(place), booted=lambda: SlotName.A)
    if backend is BootBackend.SYSTEMD_BOOT:
        Esp(place).check_layout()
        return SdBoot(Esp(place), EnvFiles(place / PRIVATE), booted=lambda: SlotName.A)
    FileMedium(place).check_layout()
    return SimulatedBoot(FileMedium(place), cmdline=lambda: "")


@pytest.mark.parametrize("backend", BootBackend)
def test_a_new_device_has_slot_a_committed_and_both_slots_bootable(
    tmp_path: Path, backend: BootBackend
) -> None:
    assert main(["--backend", backend.value, "--epoch", "3", str(tmp_path / "env")]) == 0
    assert control(backend, tmp_path / "env").read() == BootEnv(
        committed=SlotName.A, ok_a=True, ok_b=True, epoch=3
    )


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--backend", "grub", str(tmp_path / "file/env")]) == 1
    assert "file" in capsys.readouterr().err
