"""The real systemd-boot on UEFI firmware: it counts names as our rules say, and our rules name what it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_updater import decision
from tidewaiter_updater.boot.esp import ENTRIES, Esp
from tidewaiter_updater.boot.sdboot import SdBoot
from tidewaiter_updater.boot.staged import StagedUki
from tidewaiter_updater.boot.ukiname import UkiName, is_before
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.phases import Phase, classify

from tests.sim.boot.fat import ROOT, FatDisk, Records, format_esp
from tests.sim.boot.sdboot_qemu import install, kernel_image, power_on, require
from tests.sim.boot.staging import stage_whole

pytestmark = [pytest.mark.integration, pytest.mark.req("UP-15")]

A, B = SlotName.A, SlotName.B
KERNEL = kernel_image(B, "2.0")
TXN, BOOT, NEXT_BOOT = "00112233445566aa", "c0ffee00" * 4, "0badcafe" * 4


class Machine:
    """A machine from the factory, and the updater's adapter on its partition."""

    def __init__(self, home: Path) -> None:
        require()
        self.fat = FatDisk(home / "esp.img")
        format_esp(self.fat, kernel=kernel_image(A, "1.0"), spare=kernel_image(B, "1.0"))
        install(self.fat)
        self.esp = Esp(ROOT, disk=self.fat)

    def control(self, booted: SlotName) -> SdBoot:
        return SdBoot(self.esp, Records(self.fat), booted=lambda: booted)

    def record(self) -> BootEnv:
        env = self.control(A).read()
        assert env is not None
        return env

    def names(self) -> set[str]:
        return set(self.esp.files(ENTRIES))

    def arm(self) -> None:
        boot = self.control(A)
        boot.write(decision.disarm(self.record(), B))
        uki = StagedUki(txn=TXN, sha256=Sha256.of(KERNEL), version="2.0", slot=B)
        stage_whole(self.esp, uki, KERNEL)
        boot.write(decision.arm(self.record(), B, tries=2, txn=TXN, boot_id=BOOT))

    def put(self, entry: UkiName) -> None:
        self.fat.put(ROOT / ENTRIES / str(entry), kernel_image(entry.slot, entry.version))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_real_systemd_boot_spends_the_tries_of_a_trial_and_then_starts_the_committed_slot(
    machine: Machine,
) -> None:
    assert power_on(machine.fat) is A
    machine.arm()
    seen = []
    for _ in range(3):
        slot = power_on(machine.fat)
        seen.append((slot, machine.record().left, *sorted(machine.names() - {"tidewaiter-1.0.A.efi"})))
    assert seen == [
        (B, 1, "tidewaiter-2.0.B+1-1.efi"),
        (B, 0, "tidewaiter-2.0.B+0-2.efi"),
        (A, 0, "tidewaiter-2.0.B+0-2.efi"),
    ]
    start = classify(machine.record(), A, NEXT_BOOT, hint=None, finished=True)
    assert start.phase is Phase.ROLLED_BACK


def test_a_commit_in_the_trial_is_what_real_systemd_boot_starts_from_then_on(machine: Machine) -> None:
    machine.arm()
    assert power_on(machine.fat) is B
    machine.control(B).write(decision.commit(machine.record(), B))
    before = machine.names()
    assert {power_on(machine.fat) for _ in range(2)} == {B}
    assert machine.names() == before, "outside a trial nothing is counted"


@pytest.mark.parametrize("outcome", ["both", "neither"])
def test_real_systemd_boot_starts_what_a_cut_rename_left(machine: Machine, outcome: str) -> None:
    machine.fat.watched = "tidewaiter-2.0.B+2"
    machine.arm()
    machine.fat.cut(is_new=outcome == "both", is_old=outcome == "both")
    assert power_on(machine.fat) is (B if outcome == "both" else A)


PAIRS = [
    (UkiName(version="1.9", slot=A), UkiName(version="1.10", slot=B, left=1)),
    (UkiName(version="2.0", slot=A), UkiName(version="2.0-rc1", slot=B)),
    (UkiName(version="2.0", slot=A), UkiName(version="2.0", slot=B)),
    (UkiName(version="1.0", slot=A), UkiName(version="9.0", slot=B, left=0, done=3)),
]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " or ".join(map(str, pair)))
def test_real_systemd_boot_takes_the_entry_that_our_order_puts_first(
    machine: Machine, pair: tuple[UkiName, UkiName]
) -> None:
    for name in machine.names():
        machine.esp.remove(f"{ENTRIES}/{name}")
    first, second = pair
    for entry in pair:
        machine.put(entry)
    assert power_on(machine.fat) is (first.slot if is_before(first, second) else second.slot)
