"""A whole update with a data step: real updater, HAL, injector simulator, and tidewaiter-migrate where systemd would start it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_core.varlink import VarlinkError

from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator
from tests.sim.migrate_process import FIRST, SECOND
from tests.sim.packs import random_image
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

OLD = random_image(24, seed=1)
NEW = random_image(24, seed=2)
LAST = {**SECOND, "reversible": False}


@pytest.fixture
def updater(tmp_path: Path) -> Iterator[UpdaterProcess]:
    with (
        InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim"),
        updater_process(tmp_path / "d", tmp_path / "injector") as (device, _),
    ):
        device.data_of = {"1.0": FIRST, "2.0": SECOND}
        device.manufacture(OLD, "1.0", 1)
        device.knows(NEW, "2.0", 2)
        device.boot()
        (device.data(1) / "settings").write_text("volume=1\n")
        yield device


@pytest.fixture
def hal(updater: UpdaterProcess, tmp_path: Path) -> Iterator[HalProcess]:
    with HalProcess(
        updater.home, tmp_path / "injector", hal={"bench": True, "quiet_after_injection_s": 1}
    ) as running:
        yield running


def publish(updater: UpdaterProcess, **options: object) -> str:
    made = updater.repository.add_release(NEW, "2.0", 2, data_writes=2, data_reads_max=2, **options)
    offer = updater.call("Check", source="relay", release=made.path)["offer"]
    assert offer["installable"], offer
    return str(made.digest)


def activate(updater: UpdaterProcess, hal: HalProcess, digest: str) -> None:
    updater.until_phase("STAGED")
    hal.until_allowed("activate", timeout_s=60)
    updater.call("Activate", digest=digest, window_open=True)
    updater.until(lambda: not updater.settle() and updater.reboots, "the reboot is requested")
    updater.kill()


def test_a_release_with_a_data_step_commits_on_migrated_data(
    updater: UpdaterProcess, hal: HalProcess
) -> None:
    updater.migration("1-2-x", "sed -i s/=1/=one/ settings")
    digest = publish(updater)
    updater.call("Install", digest=digest, consent=None)
    activate(updater, hal, digest)
    updater.boot()
    assert updater.unit("health").returncode == 0
    assert updater.unit("commit").returncode == 0
    updater.until(updater.settle, "the updater asks for the sets to be settled")
    assert (updater.data(2) / "settings").read_text() == "volume=one\n"
    assert (updater.data(1) / "settings").read_text() == "volume=1\n"
    assert '"data_schema": 2' in (updater.sets / "LIVE").read_text()
    updater.until(lambda: not updater.settle(), "nothing is left to be settled")


def test_a_failed_data_step_rolls_back_to_untouched_data(updater: UpdaterProcess, hal: HalProcess) -> None:
    updater.migration("1-2-x", "rm settings; echo the database is newer than expected; exit 4")
    digest = publish(updater)
    updater.call("Install", digest=digest, consent=None)
    activate(updater, hal, digest)
    updater.boot()
    health = updater.unit("health")
    assert health.returncode == 1
    assert "data.program" in health.stdout
    assert updater.env().left == 0
    updater.kill()
    updater.boot()
    assert updater.booted == "A"
    status = updater.until_phase("ROLLED_BACK")
    assert status["last"]["code"] == "health.data"
    assert (updater.data(1) / "settings").read_text() == "volume=1\n"


def test_a_release_that_cannot_be_undone_waits_for_those_words_and_closes_the_way_back(
    updater: UpdaterProcess, hal: HalProcess
) -> None:
    updater.data_of = {"1.0": FIRST, "2.0": LAST}
    updater.migration("1-2-x", "true")
    digest = publish(updater, data_reversible=False)
    updater.call("Install", digest=digest, consent=None)
    waiting = ["update.consent", "update.irreversible"]
    updater.until(lambda: updater.status()["waiting_for"] == waiting, "it waits for a person")
    updater.consent(digest, "install", "activate")
    assert updater.status()["waiting_for"] == waiting
    with pytest.raises(VarlinkError):
        updater.consent(digest, "whatever")
    updater.consent(digest, "install", "activate", "irreversible")
    activate(updater, hal, digest)
    updater.boot()
    assert updater.unit("health").returncode == 0
    assert updater.unit("commit").returncode == 0
    assert not updater.env().ok_a
