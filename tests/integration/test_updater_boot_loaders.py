"""tidewaiter-updater as a process under each boot loader: what it reads, decides and refuses on the loader's own storage."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.components import UKI_PIECE_BYTES
from tidewaiter_core.varlink import VarlinkError
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE

from tests.sim.boot.installed import GrubFolder, InstalledLoader, SdBootFolder, SimulatedFile, UbootDevice
from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator
from tests.sim.loop import loop_device
from tests.sim.packs import random_image
from tests.sim.relay import Answer, Ask, Relay
from tests.sim.repository import MadeRelease
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

A, B = SlotName.A, SlotName.B
OLD = random_image(8, seed=1)
NEW = random_image(8, seed=2)
KERNEL = Random(3).randbytes(300_000)
LOADERS = ["simulated", "grub", "systemd-boot", pytest.param("uboot", marks=pytest.mark.privileged)]
ENV_BYTES = 1024 * 1024


@pytest.fixture
def loader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InstalledLoader]:
    if request.param == "simulated":
        yield SimulatedFile(tmp_path / "env")
    elif request.param == "grub":
        yield GrubFolder(tmp_path / "grub")
    elif request.param == "systemd-boot":
        yield SdBootFolder(tmp_path / "esp")
    else:
        with loop_device(tmp_path / "env.img", size_bytes=ENV_BYTES) as device:
            yield UbootDevice(device, tmp_path / "fw.lock")


@pytest.fixture
def relayed(loader: InstalledLoader, tmp_path: Path) -> Iterator[tuple[UpdaterProcess, Relay]]:
    with updater_process(tmp_path / "d", tmp_path / "injector", loader=loader) as (device, relay):
        device.manufacture(OLD, "1.0", 1)
        device.knows(NEW, "2.0", 2)
        device.boot()
        yield device, relay


@pytest.fixture
def updater(relayed: tuple[UpdaterProcess, Relay]) -> UpdaterProcess:
    return relayed[0]


def install(updater: UpdaterProcess) -> MadeRelease:
    kernel = updater.home / "kernel-b.efi"
    kernel.write_bytes(KERNEL)
    made = updater.repository.add_release(NEW, "2.0", 2, ukis={B: kernel})
    offer = updater.call("Check", source="relay", release=made.path)["offer"]
    assert offer["installable"], offer
    updater.call("Install", digest=str(made.digest), consent=None)
    return made


def unit(updater: UpdaterProcess, name: str) -> None:
    """tidewaiter-health or tidewaiter-commit."""
    python, _, _, *options = updater.command()
    program = f"import sys; from tidewaiter_updater.units import {name}_main; sys.exit({name}_main())"
    done = subprocess.run(
        [python, "-c", program, *options],
        env=updater.environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("loader", LOADERS, indirect=True)
def test_a_release_is_staged_and_its_slot_disarmed_first(updater: UpdaterProcess) -> None:
    install(updater)
    status = updater.until_phase("STAGED", "FAILED")
    assert status["phase"] == "STAGED", status["last"]
    assert updater.slot(B).read_bytes() == NEW
    env = updater.env()
    assert (env.committed, env.ok_a, env.ok_b, env.trial) == (A, True, False, None)


@pytest.mark.parametrize("loader", LOADERS[1:], indirect=True)
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


@pytest.mark.parametrize("loader", LOADERS[1:], indirect=True)
def test_a_whole_update_is_armed_tried_and_committed(tmp_path: Path, updater: UpdaterProcess) -> None:
    with (
        InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim"),
        HalProcess(
            updater.home, tmp_path / "injector", hal={"bench": True, "quiet_after_injection_s": 1}
        ) as hal,
    ):
        made = install(updater)
        updater.until_phase("STAGED")
        hal.until_allowed("activate", timeout_s=60)
        updater.call("Activate", digest=str(made.digest), window_open=True)
        updater.until(lambda: updater.reboots, "the reboot is requested")
        env = updater.env()
        assert (env.trial, env.left, env.ok_b) == (B, 3, True)
        updater.kill()
        updater.boot()
        assert (updater.booted, updater.status()["phase"], updater.env().left) == (B, "TRIAL", 2)
        unit(updater, "health")
        unit(updater, "commit")
        assert updater.status()["phase"] == "COMMITTED"
        env = updater.env()
        assert (env.committed, env.trial) == (B, None)
        assert updater.stop() == 0
        updater.boot()
        assert updater.booted is B


# --- systemd-boot ---


@pytest.mark.parametrize("loader", ["systemd-boot"], indirect=True)
def test_a_kernel_image_is_staged_and_a_cancel_removes_it(
    loader: SdBootFolder, updater: UpdaterProcess
) -> None:
    made = install(updater)
    status = updater.until_phase("STAGED", "FAILED")
    assert status["bytes"]["fetched"] >= len(KERNEL) + made.release.slot.pack.length, status["last"]
    (staged,) = loader.private()
    assert (loader.esp / PRIVATE / staged).read_bytes() == KERNEL
    assert loader.names() == {"tidewaiter-1.0.A.efi"}, "DISARM removed what started the target"
    updater.call("Cancel", digest=str(made.digest))
    updater.until_phase("IDLE")
    assert loader.private() == set()


@pytest.mark.parametrize("how", ["SIGKILL of the updater", "end of the relay"])
@pytest.mark.parametrize("loader", ["systemd-boot"], indirect=True)
def test_a_kernel_image_that_was_cut_is_completed_and_the_pieces_that_are_there_are_not_asked_for(
    loader: SdBootFolder, relayed: tuple[UpdaterProcess, Relay], how: str
) -> None:
    updater, relay = relayed
    kernel = updater.home / "kernel-b.efi"
    kernel.write_bytes(Random(4).randbytes(6 * UKI_PIECE_BYTES + 1))
    made = updater.repository.add_release(NEW, "2.0", 2, ukis={B: kernel})
    cut_at = 4 * UKI_PIECE_BYTES
    is_cut = threading.Event()

    def cut(ask: Ask, honest: Answer) -> Answer | None:
        if not ask.path.endswith("kernel-b.efi") or ask.offset < cut_at:
            return None
        is_cut.set()
        return Answer(status="unavailable", detail="the network is gone")

    relay.lie = cut
    updater.call("Check", source="relay", release=made.path)
    updater.call("Install", digest=str(made.digest), consent=None)
    assert is_cut.wait(60)
    if how == "SIGKILL of the updater":
        updater.kill()
    else:
        updater.until(lambda: "source.unavailable" in updater.status()["waiting_for"], "the way is given up")
    relay.lie = lambda ask, honest: None
    relay.asks.clear()
    if how == "SIGKILL of the updater":
        updater.start()
    else:
        updater.call("Resume")
    assert updater.until_phase("STAGED", "FAILED")["phase"] == "STAGED"
    asked = [ask.offset for ask in relay.asks if ask.path.endswith("kernel-b.efi")]
    assert asked == [cut_at, cut_at + UKI_PIECE_BYTES, cut_at + 2 * UKI_PIECE_BYTES]
    (staged,) = loader.private()
    assert (loader.esp / PRIVATE / staged).read_bytes() == kernel.read_bytes()


@pytest.mark.parametrize("loader", ["systemd-boot"], indirect=True)
def test_a_release_without_a_kernel_image_is_refused_with_its_code(updater: UpdaterProcess) -> None:
    made = updater.repository.add_release(NEW, "2.0", 2)
    offer = updater.call("Check", source="relay", release=made.path)["offer"]
    assert (offer["installable"], offer["code"]) == (False, "release.uki")


@pytest.mark.parametrize("loader", ["systemd-boot"], indirect=True)
def test_a_flipped_byte_in_the_kernel_image_ends_the_attempt(
    loader: SdBootFolder, updater: UpdaterProcess
) -> None:
    kernel = updater.home / "kernel-b.efi"
    kernel.write_bytes(KERNEL)
    made = updater.repository.add_release(NEW, "2.0", 2, ukis={B: kernel})
    part = made.release.uki(B)
    assert part is not None
    updater.repository.flip_byte(part.path, 1234)
    updater.call("Check", source="relay", release=made.path)
    updater.call("Install", digest=str(made.digest), consent=None)
    status = updater.until_phase("STAGED", "FAILED")
    assert (status["phase"], status["last"]["code"]) == ("FAILED", "source.bad-bytes")
    assert loader.private() == set()


@pytest.mark.parametrize("loader", ["systemd-boot"], indirect=True)
def test_names_that_a_cut_parted_are_settled_at_start(loader: SdBootFolder, updater: UpdaterProcess) -> None:
    assert updater.stop() == 0
    entries = loader.esp / ENTRIES
    (entries / "tidewaiter-1.0.A+2-1.efi").write_bytes(KERNEL)
    updater.start()
    assert "tidewaiter-1.0.A+2-1.efi" not in loader.names()


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
