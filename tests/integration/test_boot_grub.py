"""The shipped GRUB script in the real GRUB: its decisions, and the environment blocks that both sides write."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater import decision
from tidewaiter_updater.boot import grubenv
from tidewaiter_updater.boot.envcopy import from_variables, to_variables
from tidewaiter_updater.boot.grub import FILES, EnvFiles, GrubBoot
from tidewaiter_updater.model import BootEnv

from tests.sim.boot import TwoCopyScript
from tests.sim.boot.grub_emu import SCRIPT, GrubEmu
from tests.sim.boot.installed import GrubFolder
from tests.sim.loop import tool

pytestmark = [pytest.mark.integration, pytest.mark.req("UP-15")]

A, B = SlotName.A, SlotName.B
TXN = "00112233445566aa"
FACTORY = BootEnv(committed=A, ok_a=True, ok_b=True, epoch=7)
ARMED = decision.arm(FACTORY, B, tries=3, txn=TXN, boot_id="c0ffee00" * 4)


class Grub:
    """A device with GRUB, the updater's adapter on its blocks, and the model of the script that all other tests boot by."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "env"
        self.machine = GrubEmu(root / "machine", self.folder)
        GrubFolder(self.folder).format()
        self.boot = GrubBoot(EnvFiles(self.folder), booted=lambda: A)
        self.broken: set[SlotName] = set()

    def write(self, *envs: BootEnv) -> None:
        for env in envs:
            self.boot.write(env)

    def read(self) -> BootEnv:
        env = self.boot.read()
        assert env is not None
        return env

    def breaks(self, *slots: SlotName) -> None:
        for slot in slots:
            self.machine.install(slot, kernel=b"")
            self.broken.add(slot)

    def blocks(self) -> tuple[bytes, ...]:
        return tuple((self.folder / name).read_bytes() for name in FILES)

    def model(self) -> tuple[SlotName | None, tuple[bytes, ...]]:
        """What the model makes of the same blocks; they are left as they were."""
        before = self.blocks()
        chosen = TwoCopyScript(EnvFiles(self.folder), grubenv.LAYOUT).run(
            lambda slot: slot not in self.broken
        )
        after = self.blocks()
        for name, raw in zip(FILES, before, strict=True):
            (self.folder / name).write_bytes(raw)
        return chosen, after


@pytest.fixture
def grub(tmp_path: Path) -> Grub:
    return Grub(tmp_path)


def block(env: BootEnv, number: int) -> bytes:
    return grubenv.encode(to_variables(env), number=number)


def test_the_script_parses() -> None:
    done = subprocess.run(
        [tool("grub-script-check", "grub-common"), str(SCRIPT)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


ENVIRONMENTS = {
    "committed A": FACTORY,
    "committed B": replace(FACTORY, committed=B),
    "fallback forbidden": replace(FACTORY, ok_b=False),
    **{f"trial with {left} left": replace(ARMED, left=left) for left in range(10)},
    "trial of A": replace(ARMED, committed=B, trial=A),
}


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("broken", [(), (A,), (B,)], ids=["both load", "A broken", "B broken"])
def test_real_grub_decides_and_writes_as_the_model_does(
    grub: Grub, env: BootEnv, broken: tuple[SlotName, ...]
) -> None:
    grub.write(env)
    grub.breaks(*broken)
    chosen, blocks = grub.model()
    if chosen is None and env.trial is None:
        pytest.skip("nothing loads: the script waits half a minute before it tries again")
    if chosen is None and env.left == 0:
        pytest.skip("nothing loads: the script waits half a minute before it tries again")
    assert grub.machine.run() is chosen
    assert grub.blocks() == blocks


@pytest.mark.parametrize("number", range(4))
def test_every_number_is_followed_by_a_newer_one_in_grub_too(grub: Grub, number: int) -> None:
    older = replace(ARMED, left=1)
    for name, raw in zip(FILES, (block(ARMED, number), block(older, (number - 1) % 4)), strict=True):
        (grub.folder / name).write_bytes(raw)
    assert grub.machine.run() is B
    assert grub.read().left == 2


@pytest.mark.parametrize("lost", FILES)
def test_empty_grub_file_boots_the_committed_slot(grub: Grub, lost: str) -> None:
    """What a power cut leaves of `grub-editenv set`, which truncates first."""
    grub.write(replace(FACTORY, committed=B), replace(FACTORY, committed=B))
    (grub.folder / lost).write_bytes(b"")
    assert grub.machine.run() is B
    grub.write(replace(FACTORY, committed=A))
    assert {len(raw) for raw in grub.blocks()} == {grubenv.BLOCK_BYTES}, "our next write fills it again"
    assert grub.machine.run() is A


@pytest.mark.parametrize("torn", [0, 1])
def test_grub_files_with_unequal_head_and_tail_count_as_absent(grub: Grub, torn: int) -> None:
    """One of the two sectors of the newer block arrived."""
    older, newer = block(replace(FACTORY, committed=B), 1), block(FACTORY, 2)
    half = grubenv.SECTOR_BYTES
    raw = newer[:half] + older[half:] if torn == 0 else older[:half] + newer[half:]
    (grub.folder / FILES[0]).write_bytes(older)
    (grub.folder / FILES[1]).write_bytes(raw)
    assert grubenv.decode(raw) is None
    assert grub.read().committed is B
    assert grub.machine.run() is B


def test_without_a_valid_block_the_first_slot_that_loads_boots(grub: Grub) -> None:
    for name in FILES:
        (grub.folder / name).write_bytes(b"")
    assert grub.machine.run() is A
    grub.breaks(A)
    assert grub.machine.run() is B


def test_fifty_power_cycles_never_change_the_slot(grub: Grub) -> None:
    before = grub.blocks()
    assert {grub.machine.run() for _ in range(50)} == {A}
    assert grub.blocks() == before


def test_a_trial_spends_its_tries_and_then_the_committed_slot_boots(grub: Grub) -> None:
    grub.write(ARMED)
    assert [grub.machine.run() for _ in range(5)] == [B, B, B, A, A]
    assert (grub.read().trial, grub.read().left) == (B, 0), "the script never clears a trial"


def test_decisions_of_both_sides_alternate_over_an_update(grub: Grub) -> None:
    grub.write(decision.disarm(grub.read(), B))
    assert grub.machine.run() is A
    grub.write(decision.arm(grub.read(), B, tries=3, txn=TXN, boot_id="c0ffee00" * 4))
    assert grub.machine.run() is B
    grub.write(decision.commit(grub.read(), B))
    assert [grub.machine.run() for _ in range(3)] == [B, B, B]


def test_unknown_variables_survive_the_writes_of_both_sides(grub: Grub) -> None:
    variables = {**to_variables(FACTORY), "saved_entry": "linux-6.1"}
    for number, name in enumerate(FILES):
        (grub.folder / name).write_bytes(grubenv.encode(variables, number=number))
    grub.write(ARMED)
    assert grub.machine.run() is B
    for raw in grub.blocks():
        copy = grubenv.decode(raw)
        assert copy is not None
        assert copy.variables["saved_entry"] == "linux-6.1"


def test_grub_editenv_lists_our_block(grub: Grub) -> None:
    grub.write(ARMED)
    for name in FILES:
        done = subprocess.run(
            [tool("grub-editenv", "grub-common"), str(grub.folder / name), "list"],
            capture_output=True,
            text=True,
            check=True,
        )
        listed = dict(line.split("=", 1) for line in done.stdout.splitlines())
        copy = grubenv.decode((grub.folder / name).read_bytes())
        assert copy is not None
        assert from_variables(listed) == from_variables(copy.variables)
