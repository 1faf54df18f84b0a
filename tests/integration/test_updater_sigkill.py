"""The real updater, killed with SIGKILL in each phase of a real update: what is right is kept, and a restart decides nothing."""

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tidewaiter_core.audit import verify
from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.phases import CANCELABLE, Phase

from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator
from tests.sim.packs import random_image
from tests.sim.repository import MadeRelease
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

OLD = random_image(160, seed=1)
NEW = random_image(160, seed=2)
SICK = random_image(160, seed=3)
TRIES = 12
"""Phases that last milliseconds are tried for so often."""
BLINDLY_S = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.21, 0.34)
"""Kills at moments that nobody chose."""


class Life:
    """One device, and what it was killed in."""

    def __init__(self, updater: UpdaterProcess) -> None:
        self.updater = updater
        self.killed_in: set[str] = set()

    def dies_in(self, phase: Phase) -> None:
        """Killed while it says that it is in `phase`, then started again in the same boot."""
        self.updater.until_phase(phase.value)
        self._dies(phase.value)

    def dies_somewhere_in(self, phase: Phase, begin: Callable[[], None]) -> None:
        """The same for a phase that may be over before anybody saw it."""
        for _ in range(TRIES):
            begin()
            found = self._first_after(Phase.WAIT_CONSENT)
            while found != phase and found in (Phase.PREPARE, Phase.TRANSFER, Phase.VERIFY):
                found = self.updater.status()["phase"]
            if found == phase:
                self._dies(found)
                return
        raise AssertionError(f"{phase} was never seen in {TRIES} tries; killed in {sorted(self.killed_in)}")

    def _first_after(self, phase: Phase) -> str:
        found = str(self.updater.status()["phase"])
        while found in (phase, Phase.IDLE):
            found = self.updater.status()["phase"]
        return found

    def dies(self) -> None:
        """Wherever it is."""
        self._dies("?")

    def _dies(self, phase: str) -> None:
        self.updater.kill()
        before = self.updater.env()
        self.updater.start()
        self.killed_in.add(phase)
        assert self.updater.env().committed is before.committed, "a restart commits nothing"
        assert self.updater.env().trial is before.trial, "a restart arms nothing"
        assert_bootable_slots_are_whole(self.updater, self.updater.env())


def assert_bootable_slots_are_whole(updater: UpdaterProcess, env: BootEnv) -> None:
    for slot in SlotName:
        if slot is env.committed or slot is env.trial or env.is_ok(slot):
            assert updater.slot(slot).read_bytes() in updater.identities, f"slot {slot}"


@pytest.fixture
def updater(tmp_path: Path) -> Iterator[UpdaterProcess]:
    with updater_process(tmp_path / "d", tmp_path / "injector") as (device, _):
        device.manufacture(OLD, "1.0", 1)
        device.knows(NEW, "2.0", 3)
        device.knows(SICK, "3.0", 4)
        device.boot()
        yield device


def begin(updater: UpdaterProcess, made: MadeRelease) -> Callable[[], None]:
    """Cancel what is in hand, spoil the target, install: each time the whole way."""

    def install() -> None:
        status = updater.status()
        if status["phase"] in CANCELABLE:
            updater.call("Cancel", digest=status["digest"])
            updater.until_phase("IDLE")
        updater.call("Check", source="relay", release=made.path)
        updater.call("Install", digest=str(made.digest), consent=None)

    return install


def run_unit(updater: UpdaterProcess, name: str) -> int:
    program = f"import sys; from tidewaiter_updater.units import {name}_main; sys.exit({name}_main())"
    command = [updater.command()[0], "-c", program, *updater.command()[3:]]
    environment = updater.environment()
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90).returncode


def restarts_into(updater: UpdaterProcess, hal: HalProcess, made: MadeRelease) -> None:
    """Activate, and the reboot that follows."""
    hal.until_allowed("activate", timeout_s=60)
    updater.call("Activate", digest=str(made.digest), window_open=True)
    updater.until(lambda: updater.reboots, "the reboot is requested")


def reboots(updater: UpdaterProcess) -> None:
    updater.kill()
    updater.boot()


@pytest.mark.req("UP-16")
def test_every_phase_survives_sigkill(tmp_path: Path, updater: UpdaterProcess) -> None:
    add = updater.repository.add_release
    asking = add(NEW, "1.5", 2, consent="local")
    made, sick = add(NEW, "2.0", 3), add(SICK, "3.0", 4, health_required=("no-such-check",))
    life = Life(updater)
    simulator = InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim")
    hal_settings = {"bench": True, "quiet_after_injection_s": 1}
    with simulator, HalProcess(updater.home, tmp_path / "injector", hal=hal_settings) as hal:
        life.dies_in(Phase.IDLE)
        begin(updater, asking)()
        life.dies_in(Phase.WAIT_CONSENT)
        for phase in (Phase.PREPARE, Phase.TRANSFER, Phase.VERIFY):
            life.dies_somewhere_in(phase, begin(updater, made))
        for delay_s in BLINDLY_S:
            begin(updater, made)()
            time.sleep(delay_s)
            life.dies()
        begin(updater, made)()
        life.dies_in(Phase.STAGED)
        updater.until_phase("STAGED")
        updater.call("Activate", digest=str(made.digest), window_open=False)
        life.dies_in(Phase.WAIT_WINDOW)
        updater.until_phase("STAGED")
        restarts_into(updater, hal, made)
        life.dies_in(Phase.ARMED)
        assert updater.env().trial == "B"
        reboots(updater)
        life.dies_in(Phase.TRIAL)
        assert run_unit(updater, "health") == 0
        life.dies_in(Phase.HEALTH)
        assert updater.env().committed == "A"
        assert run_unit(updater, "commit") == 0
        life.dies_in(Phase.COMMITTED)
        assert (updater.env().committed, updater.status()["running"]["version"]) == ("B", "2.0")

        begin(updater, sick)()
        updater.until_phase("STAGED")
        restarts_into(updater, hal, sick)
        reboots(updater)
        assert updater.booted is SlotName.A
        assert run_unit(updater, "health") != 0
        updater.until(lambda: updater.reboots, "it goes back")
        reboots(updater)
        life.dies_in(Phase.ROLLED_BACK)
        offer = updater.call("Check", source="relay", release=sick.path)["offer"]
        assert offer["code"] == "release.quarantined"

        bad = add(random_image(160, seed=4), "4.0", 5)
        updater.repository.flip_pack_byte(bad, offset=200_000)
        begin(updater, bad)()
        life.dies_in(Phase.FAILED)
        assert updater.env().committed == "B"
    never_left = {Phase.OFFERED}  # Check answers within it
    assert life.killed_in >= set(Phase) - never_left
    assert updater.stop() == 0
    report = verify(updater.home / "audit/updater")
    assert report.intact, report
