"""systemd-boot's partition as a real FAT: decisions, each outcome of a rename that was cut, and the kernel's own vfat."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tidewaiter_core.disk import SYSTEM_DISK
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.components import UkiPiece
from tidewaiter_updater import decision
from tidewaiter_updater.boot.copies import CopyStore
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, DirectEsp, Esp
from tidewaiter_updater.boot.grub import FILES, EnvFiles
from tidewaiter_updater.boot.sdboot import SdBoot
from tidewaiter_updater.boot.staged import StagedUki, is_staged
from tidewaiter_updater.boot.staging import Staging
from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.phases import Phase, classify

from tests.sim.boot.fat import ROOT, FatDisk, Records, format_esp
from tests.sim.boot.installed import SdBootFolder
from tests.sim.boot.sdboot import SdBootScript
from tests.sim.boot.staging import cut, stage_whole
from tests.sim.loop import loop_device, mounted, tool

pytestmark = [pytest.mark.integration, pytest.mark.req("UP-15")]

A, B = SlotName.A, SlotName.B
KERNEL = b"kernel of the trial " * 20_000
TXN = "00112233445566aa"
BOOT, NEXT_BOOT = "c0ffee00" * 4, "0badcafe" * 4
DONE = BootEnv(committed=B, ok_a=True, ok_b=True, txn=TXN, armboot=BOOT[:8])


class Machine:
    """A machine with systemd-boot."""

    def __init__(self, esp: Esp, records: CopyStore, script: SdBootScript) -> None:
        self.esp = esp
        self._records = records
        self._script = script

    def control(self, booted: SlotName) -> SdBoot:
        return SdBoot(self.esp, self._records, booted=lambda: booted)

    def record(self, booted: SlotName = A) -> BootEnv:
        env = self.control(booted).read()
        assert env is not None
        return env

    def power_on(self) -> SlotName | None:
        return self._script.run(lambda slot: True)

    def names(self) -> set[str]:
        return set(self.esp.files(ENTRIES))

    def arm(self) -> None:
        boot = self.control(A)
        boot.write(decision.disarm(self.record(), B))
        uki = StagedUki(txn=TXN, sha256=Sha256.of(KERNEL), version="2.0", slot=B)
        stage_whole(self.esp, uki, KERNEL)
        boot.write(decision.arm(self.record(), B, tries=3, txn=TXN, boot_id=BOOT))

    def commit(self) -> None:
        self.control(B).write(decision.commit(self.record(B), B))

    def content(self, name: str) -> bytes:
        return b"".join(self.esp.pieces(f"{ENTRIES}/{name}"))


def an_update(machine: Machine) -> None:
    machine.arm()
    assert machine.names() == {"tidewaiter-1.0.A.efi", "tidewaiter-2.0.B+3.efi"}
    assert machine.power_on() is B
    assert machine.names() == {"tidewaiter-1.0.A.efi", "tidewaiter-2.0.B+2-1.efi"}
    machine.commit()
    assert machine.names() == {"tidewaiter-1.0.A.efi", "tidewaiter-2.0.B.efi"}
    assert machine.content("tidewaiter-2.0.B.efi") == KERNEL
    assert machine.record(B) == DONE
    assert {machine.power_on() for _ in range(50)} == {B}


@pytest.fixture
def fat(tmp_path: Path) -> FatDisk:
    disk = FatDisk(tmp_path / "esp.img")
    format_esp(disk)
    return disk


@pytest.fixture
def machine(fat: FatDisk) -> Machine:
    return Machine(
        Esp(ROOT, disk=fat), Records(fat), SdBootScript(fat, ROOT, starts=lambda entry, data: True)
    )


def test_an_update_on_a_fat_is_armed_counted_and_committed(fat: FatDisk, machine: Machine) -> None:
    an_update(machine)
    assert fat.is_clean()


OUTCOMES = {
    "old": {"is_new": False, "is_old": True},
    "new": {"is_new": True, "is_old": False},
    "both": {"is_new": True, "is_old": True},
    "neither": {"is_new": False, "is_old": False},
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_fat_rename_in_each_of_four_outcomes_is_classified(
    fat: FatDisk, machine: Machine, outcome: str
) -> None:
    """The rename of ARM: armed and tried, or a trial that never ran and is staged again."""
    fat.watched = "tidewaiter-2.0.B+3"
    machine.arm()
    fat.cut(**OUTCOMES[outcome])
    is_armed = outcome in ("new", "both")
    assert fat.is_clean() is (outcome in ("old", "new")), "both: cross-linked; neither: lost clusters"
    booted = machine.power_on()
    assert booted is (B if is_armed else A)
    machine.control(booted).settle()
    start = classify(machine.record(booted), booted, NEXT_BOOT, hint=None, finished=True)
    if is_armed:
        assert (start.phase, machine.record(B).left) == (Phase.TRIAL, 2)
    else:
        assert (start.phase, start.stale_trial) == (Phase.VERIFY, True)
        machine.control(A).write(decision.clear(machine.record()))
        machine.arm()
        assert machine.power_on() is B
    machine.commit()
    assert machine.record(B) == DONE
    assert machine.content("tidewaiter-2.0.B.efi") == KERNEL
    assert {machine.power_on() for _ in range(3)} == {B}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_commit_that_is_cut_in_its_rename_is_in_force_or_not_and_can_be_made_again(
    fat: FatDisk, machine: Machine, outcome: str
) -> None:
    machine.arm()
    assert machine.power_on() is B
    fat.watched = "tidewaiter-2.0.B.efi"
    machine.commit()
    fat.cut(**OUTCOMES[outcome])
    assert machine.power_on() is B
    machine.control(B).settle()
    env = machine.record(B)
    assert (env.committed is B) is (outcome in ("new", "both"))
    if env.committed is A:
        assert classify(env, B, NEXT_BOOT, hint=None, finished=True).phase is Phase.TRIAL
    machine.commit()
    assert machine.record(B) == DONE
    assert machine.content("tidewaiter-2.0.B.efi") == KERNEL
    assert {machine.power_on() for _ in range(3)} == {B}


def test_a_kernel_image_that_was_cut_on_a_fat_is_completed_in_its_file(
    fat: FatDisk, machine: Machine
) -> None:
    uki = StagedUki(txn=TXN, sha256=Sha256.of(KERNEL), version="2.0", slot=B)
    pieces = cut(KERNEL, -(-len(KERNEL) // 8))

    def until_the_fifth(piece: UkiPiece) -> bytes:
        if piece is pieces[5]:
            raise SourceError("the relay is gone")
        return KERNEL[piece.offset : piece.offset + piece.length]

    with pytest.raises(SourceError):
        Staging(machine.esp, uki, pieces).finish(until_the_fifth)
    assert fat.is_clean()
    again = Staging(machine.esp, uki, pieces)
    assert again.missing == pieces[5:]
    again.finish(lambda piece: KERNEL[piece.offset : piece.offset + piece.length])
    assert fat.is_clean()
    assert is_staged(machine.esp, uki)


@pytest.mark.privileged
def test_an_update_on_the_vfat_of_the_kernel_is_armed_counted_and_committed(tmp_path: Path) -> None:
    image, point = tmp_path / "esp.img", tmp_path / "esp"
    image.write_bytes(bytes(16 * 1024 * 1024))
    command = [tool("mkfs.vfat", "dosfstools"), "-F", "16", str(image)]
    subprocess.run(command, check=True, capture_output=True)
    with loop_device(image) as device, mounted(device, point, "-t", "vfat"):
        SdBootFolder(point).format()
        script = SdBootScript(SYSTEM_DISK, point, starts=lambda entry, data: True)
        an_update(Machine(DirectEsp(point), EnvFiles(point / PRIVATE), script))


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_trial_that_is_called_off_before_it_ran_is_staged_again(
    fat: FatDisk, machine: Machine, outcome: str
) -> None:
    """Also where the rename back is cut: the trial stands or is gone, and can be called off again."""
    machine.arm()
    fat.watched = TXN
    machine.control(A).write(decision.clear(machine.record()))
    assert machine.names() == {"tidewaiter-1.0.A.efi"}
    (staged,) = set(machine.esp.files(PRIVATE)) - set(FILES)
    assert staged.startswith(f"{TXN}-{Sha256.of(KERNEL)}-")
    fat.cut(**OUTCOMES[outcome])
    booted = machine.power_on()
    assert booted is (B if outcome in ("old", "both") else A)
    if booted is A:
        machine.control(A).settle()
        machine.control(A).write(decision.clear(machine.record()))
        machine.arm()
        assert machine.power_on() is B
    machine.commit()
    assert machine.content("tidewaiter-2.0.B.efi") == KERNEL
    assert machine.record(B) == DONE
