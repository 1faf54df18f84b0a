"""tidewaiter-updater as a process under each boot loader: what it reads, decides and refuses on the loader's own storage."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_core.varlink import VarlinkError

from tests.sim.boot.installed import GrubFolder, InstalledLoader, SimulatedFile, UbootDevice
from tests.sim.loop import loop_device
from tests.sim.packs import random_image
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

A, B = SlotName.A, SlotName.B
OLD = random_image(8, seed=1)
NEW = random_image(8, seed=2)
LOADERS = ["simulated", "grub", pytest.param("uboot", marks=pytest.mark.privileged)]
ENV_BYTES = 1024 * 1024


@pytest.fixture
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InstalledLoader]:
    if request.param == "simulated":
        yield SimulatedFile(tmp_path / "env")
    elif request.param == "grub":
        yield GrubFolder(tmp_path / "grub")
    else:
        with loop_device(tmp_path / "env.img", size_bytes=ENV_BYTES) as device:
            yield UbootDevice(device, tmp_path / "fw.lock")


@pytest.fixture
def updater(loader: InstalledLoader, tmp_path: Path) -> Iterator[UpdaterProcess]:
    with updater_process(tmp_path / "d", tmp_path / "injector", loader=loader) as (device, _):
        device.manufacture(OLD, "1.0", 1)
        device.knows(NEW, "2.0", 2)
        device.boot()
        yield device


def install(updater: UpdaterProcess) -> None:
    made = updater.repository.add_release(NEW, "2.0", 2)
    assert updater.call("Check", source="relay", release=made.path)["offer"]["installable"]
    updater.call("Install", digest=str(made.digest), consent=None)


@pytest.mark.parametrize("loader", LOADERS, indirect=True)
def test_a_release_is_staged_and_its_slot_disarmed_first(updater: UpdaterProcess) -> None:
    install(updater)
    status = updater.until_phase("STAGED", "FAILED")
    assert status["phase"] == "STAGED", status["last"]
    assert updater.slot(B).read_bytes() == NEW
    env = updater.env()
    assert (env.committed, env.ok_a, env.ok_b, env.trial) == (A, True, False, None)


@pytest.mark.parametrize("loader", ["grub", LOADERS[2]], indirect=True)
@pytest.mark.parametrize("said", ["tidewaiter.slot=B", "ro", "tidewaiter.slot=A tidewaiter.slot=B"])
def test_a_booted_slot_that_the_witnesses_dispute_degrades_and_writes_nothing(
    updater: UpdaterProcess, said: str
) -> None:
    assert updater.stop() == 0
    before = updater.env()
    (updater.home / "cmdline").write_text(said)
    updater.start()
    assert updater.status()["degraded"] == "boot.slot-mismatch"
    with pytest.raises(VarlinkError):
        install(updater)
    assert updater.env() == before
    assert updater.slot(B).read_bytes() == OLD


@pytest.mark.parametrize("loader", ["grub"], indirect=True)
def test_a_root_device_that_is_not_the_slot_of_the_command_line_degrades(updater: UpdaterProcess) -> None:
    assert updater.stop() == 0
    updater.mount_root(B)
    updater.start()
    assert updater.status()["degraded"] == "boot.slot-mismatch"


@pytest.mark.parametrize("loader", ["grub"], indirect=True)
def test_a_slot_that_is_gone_degrades_and_is_no_crash(updater: UpdaterProcess) -> None:
    assert updater.stop() == 0
    updater.slot(B).unlink()
    updater.start()
    assert updater.status()["degraded"] == "boot.slot-mismatch"


@pytest.mark.parametrize("loader", ["grub"], indirect=True)
def test_an_environment_that_committed_the_other_slot_degrades(
    loader: InstalledLoader, updater: UpdaterProcess
) -> None:
    assert updater.stop() == 0
    env = updater.env()
    loader.control().write(type(env)(committed=B, ok_a=True, ok_b=True))
    updater.start()
    assert updater.status()["degraded"] == "boot.slot-mismatch"


@pytest.mark.privileged
def test_a_partition_too_small_for_two_copies_is_refused_at_start(tmp_path: Path) -> None:
    with (
        loop_device(tmp_path / "env.img", size_bytes=ENV_BYTES) as whole,
        loop_device(tmp_path / "small.img", size_bytes=ENV_BYTES // 2) as small,
        updater_process(
            tmp_path / "d", tmp_path / "injector", loader=UbootDevice(whole, tmp_path / "fw.lock")
        ) as (updater, _),
    ):
        updater.manufacture(OLD, "1.0", 1)
        updater.boot()
        assert updater.stop() == 0
        updater.config.write_text(updater.config.read_text().replace(str(whole), str(small)))
        done = subprocess.run(
            updater.command(), env=updater.environment(), capture_output=True, text=True, timeout=30
        )
    assert done.returncode == 78, done.stderr
    assert "boot.env-layout" in done.stderr and str(small) in done.stderr
