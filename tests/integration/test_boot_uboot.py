"""U-Boot's side: the shipped script in the real U-Boot, and the redundant environment between us and libubootenv."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater import decision
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot.envcopy import COPY_BYTES, COPY_OFFSETS, from_variables
from tidewaiter_updater.model import BootEnv

from tests.sim.boot import BootScript
from tests.sim.boot.installed import InstalledLoader, SimulatedFile, UbootDevice
from tests.sim.boot.uboot_qemu import run
from tests.sim.loop import loop_device, tool
from tests.unit.test_updater_boot import Memory, control

pytestmark = [pytest.mark.integration, pytest.mark.req("UP-15")]

A, B = SlotName.A, SlotName.B
TXN = "00112233445566aa"
FACTORY = BootEnv(committed=A, ok_a=True, ok_b=True, epoch=7)
ARMED = decision.arm(FACTORY, B, tries=3, txn=TXN, boot_id="c0ffee00" * 4)


# --- the script ---

ENVIRONMENTS = {
    "committed A": FACTORY,
    "committed B": replace(FACTORY, committed=B),
    "fallback forbidden": replace(FACTORY, ok_b=False),
    "trial, 3 left": ARMED,
    "trial, 1 left": replace(ARMED, left=1),
    "trial, none left": replace(ARMED, left=0),
    "trial of A, 9 left": replace(ARMED, committed=B, trial=A, left=9),
}


@pytest.mark.parametrize("env", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
@pytest.mark.parametrize("broken", [(), (A,)], ids=["both load", "A broken"])
def test_real_uboot_decides_as_the_model_does(
    tmp_path: Path, env: BootEnv, broken: tuple[SlotName, ...]
) -> None:
    medium = Memory()
    control(medium).write(env)
    expected = BootScript(medium).run(lambda slot: slot not in broken)
    ran = run(tmp_path, env, broken=broken)
    assert ran.slot is expected, ran.screen
    is_trial = env.trial is not None and env.left > 0
    assert ("WATCHDOG" in ran.screen) is is_trial
    if is_trial:
        after = control(medium).read()
        assert after is not None
        spent = ran.screen.index(f"SPENT left {after.left}\n")
        assert spent < ran.screen.index("LOAD"), "the try is spent before anything of the trial is touched"


def test_a_try_that_the_real_saveenv_cannot_count_boots_the_committed_slot(tmp_path: Path) -> None:
    ran = run(tmp_path, ARMED, real_saveenv=True)
    if "Failed (1)" not in ran.screen:
        pytest.skip("this QEMU's flash takes the environment; nothing failed")
    assert ran.slot is A, ran.screen
    assert "WATCHDOG" not in ran.screen


@pytest.mark.parametrize(("broken", "slot"), [((), A), ((A,), B), ((A, B), None)])
def test_without_a_record_real_uboot_boots_whatever_loads(
    tmp_path: Path, broken: tuple[SlotName, ...], slot: SlotName | None
) -> None:
    ran = run(tmp_path, None, broken=broken)
    assert ran.slot is slot, ran.screen
    assert "no valid environment" in ran.screen


# --- the environment, with libubootenv ---


@pytest.fixture(params=["file", pytest.param("loop device", marks=pytest.mark.privileged)])
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InstalledLoader]:
    if request.param == "file":
        loader: InstalledLoader = SimulatedFile(tmp_path / "env")
        loader.format()
        yield loader
        return
    with loop_device(tmp_path / "env.img", size_bytes=1024 * 1024) as device:
        loader = UbootDevice(device, tmp_path / "fw.lock")
        loader.format()
        yield loader


class Fw:
    """fw_printenv and fw_setenv on the same environment."""

    def __init__(self, loader: InstalledLoader, home: Path) -> None:
        self._config = home / "fw_env.config"
        place = loader.settings["boot_env"]
        self._config.write_text("".join(f"{place} {offset:#x} {COPY_BYTES:#x}\n" for offset in COPY_OFFSETS))

    def read(self) -> dict[str, str]:
        done = self._run("fw_printenv")
        return dict(line.split("=", 1) for line in done.splitlines())

    def write(self, name: str, value: str) -> None:
        self._run("fw_setenv", name, value)

    def _run(self, program: str, *arguments: str) -> str:
        command = [tool(program, "libubootenv-tool"), "-c", str(self._config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def fw(loader: InstalledLoader, tmp_path: Path) -> Fw:
    tool("fw_printenv", "libubootenv-tool")
    return Fw(loader, tmp_path)


def record(boot: BootControl) -> BootEnv:
    env = boot.read()
    assert env is not None
    return env


def test_fw_printenv_reads_our_copy_and_we_read_fw_setenv(loader: InstalledLoader, fw: Fw) -> None:
    boot = loader.control()
    for env in (decision.disarm(FACTORY, B), ARMED, decision.commit(ARMED, B)):
        boot.write(env)
        assert from_variables(fw.read()) == env
    fw.write("tw_epoch", "00042")
    assert record(boot).epoch == 42
    boot.write(ARMED)
    assert from_variables(fw.read()) == ARMED


def test_the_newer_copy_is_the_same_for_both_over_all_flags(loader: InstalledLoader, fw: Fw) -> None:
    """More than 256 writes in turn: the flag wraps on the way."""
    boot = loader.control()
    for number in range(260):
        if number % 26 == 0:
            fw.write("tw_epoch", f"{number:05d}")
            assert record(boot).epoch == number
        else:
            boot.write(replace(FACTORY, epoch=number))
    assert from_variables(fw.read()) == replace(FACTORY, epoch=259)


def test_variables_of_fw_setenv_survive_our_write(loader: InstalledLoader, fw: Fw) -> None:
    fw.write("board_serial", "INJ 42 = x")
    loader.control().write(ARMED)
    loader.control().write(decision.clear(ARMED))
    assert fw.read()["board_serial"] == "INJ 42 = x"


def test_a_copy_that_is_torn_is_torn_for_both(loader: InstalledLoader, fw: Fw) -> None:
    boot = loader.control()
    boot.write(ARMED)
    place = Path(loader.settings["boot_env"])
    with place.open("r+b") as file:
        for offset in COPY_OFFSETS:
            file.seek(offset)
            if b"tw_trial=B" in file.read(COPY_BYTES):
                file.seek(offset + 4096)
                file.write(b"\xff" * 512)
    assert record(boot).trial is None
    assert from_variables(fw.read()) == record(boot)


@pytest.mark.privileged
def test_our_write_waits_for_the_lock_of_fw_setenv(tmp_path: Path) -> None:
    with loop_device(tmp_path / "env.img", size_bytes=1024 * 1024) as device:
        loader = UbootDevice(device, tmp_path / "fw.lock")
        loader.format()
        with loader.lock_file.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            program = (
                "import sys, pathlib; from tidewaiter_core.model import SlotName;"
                "from tidewaiter_updater.boot.uboot import EnvPartition;"
                "p = EnvPartition(pathlib.Path(sys.argv[1]), lock_file=pathlib.Path(sys.argv[2]));\n"
                "with p.locked(): print('in')"
            )
            with subprocess.Popen(
                [sys.executable, "-c", program, str(device), str(loader.lock_file)],
                stdout=subprocess.PIPE,
                text=True,
            ) as waiting:
                with pytest.raises(subprocess.TimeoutExpired):
                    waiting.wait(0.5)
                fcntl.flock(held, fcntl.LOCK_UN)
                assert waiting.communicate(timeout=10)[0] == "in\n"
