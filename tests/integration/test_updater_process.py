"""tidewaiter-updater as a process: real TUF metadata, real slots as files, the real HAL and a simulated injector."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_core.audit import verify
from tidewaiter_core.varlink import VarlinkError

from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator
from tests.sim.packs import random_image
from tests.sim.relay import Answer, Ask
from tests.sim.repository import MadeRelease
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

OLD = random_image(24, seed=1)
NEW = random_image(24, seed=2, zero=(3, 4))


@pytest.fixture
def updater(tmp_path: Path) -> Iterator[UpdaterProcess]:
    with updater_process(tmp_path / "d", tmp_path / "injector") as (device, _):
        device.manufacture(OLD, "1.0", 1)
        device.knows(NEW, "2.0", 2)
        device.boot()
        yield device


@pytest.fixture
def made(updater: UpdaterProcess) -> MadeRelease:
    return updater.repository.add_release(NEW, "2.0", 2)


def install(updater: UpdaterProcess, made: MadeRelease) -> None:
    offer = updater.call("Check", source="relay", release=made.path)["offer"]
    assert offer["installable"], offer
    updater.call("Install", digest=str(made.digest), consent=None)


def test_a_signed_release_is_staged_byte_for_byte(updater: UpdaterProcess, made: MadeRelease) -> None:
    install(updater, made)
    status = updater.until_phase("STAGED", "FAILED")
    assert status["phase"] == "STAGED", status["last"]
    assert (updater.home / "slot-b").read_bytes() == NEW
    assert not updater.env().ok_b


def test_a_flipped_byte_in_the_pack_ends_the_attempt_and_never_reaches_the_slot(
    updater: UpdaterProcess, made: MadeRelease
) -> None:
    updater.repository.flip_pack_byte(made, offset=200_000)
    install(updater, made)
    status = updater.until_phase("STAGED", "FAILED")
    assert (status["phase"], status["last"]["code"]) == ("FAILED", "source.bad-bytes")
    assert not updater.env().ok_b
    assert updater.env().trial is None


def test_forged_metadata_is_refused_with_its_code(updater: UpdaterProcess, made: MadeRelease) -> None:
    updater.repository.forge_metadata("os")
    with pytest.raises(VarlinkError) as caught:
        updater.call("Check", source="relay", release=made.path)
    assert caught.value.code.startswith("trust."), caught.value


def test_a_killed_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    image = random_image(160, seed=3)
    with updater_process(tmp_path / "d", tmp_path / "injector") as (updater, relay):
        updater.manufacture(bytes(len(image)), "1.0", 1)
        updater.boot()
        made = updater.repository.add_release(image, "2.0", 2)
        pack = f"{made.release.slot.pack.sha256}.pack.twpk"
        killed = threading.Event()

        def stall(ask: Ask, honest: Answer) -> Answer | None:
            if ask.path.endswith(pack) and ask.offset > made.release.slot.pack.length // 2:
                honest.hold = killed
            return None

        def fetched() -> int:
            return sum(ask.max_bytes for ask in relay.asks if ask.path.endswith(pack))

        relay.lie = stall
        install(updater, made)
        # What the status calls written may be in a buffer of the process still; only the slot survives the kill.
        third = slice(len(image) // 4, len(image) // 3)
        updater.until(
            lambda: (updater.home / "slot-b").read_bytes()[third] == image[third], "a third is in the slot"
        )
        updater.kill()
        killed.set()
        relay.lie = lambda ask, honest: None
        before = fetched()
        updater.start()
        status = updater.until_phase("STAGED", "FAILED")
        assert status["phase"] == "STAGED", status["last"]
        assert (updater.home / "slot-b").read_bytes() == image
        again = fetched() - before
        assert again < made.release.slot.pack.length * 0.75, "chunks that were written are not fetched again"


def test_a_whole_update_with_hal_and_injector_commits(
    tmp_path: Path, updater: UpdaterProcess, made: MadeRelease
) -> None:
    with (
        InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim"),
        HalProcess(
            updater.home, tmp_path / "injector", hal={"bench": True, "quiet_after_injection_s": 1}
        ) as hal,
    ):
        install(updater, made)
        updater.until_phase("STAGED")
        hal.until_allowed("activate", timeout_s=60)
        updater.call("Activate", digest=str(made.digest), window_open=True)
        updater.until(lambda: updater.reboots, "the reboot is requested")
        assert updater.env().trial == "B"
        updater.kill()
        updater.boot()
        assert updater.booted == "B"
        assert updater.status()["phase"] == "TRIAL"
        for unit in ("health", "commit"):
            done = subprocess.run(
                [
                    updater.command()[0],
                    "-c",
                    f"import sys; from tidewaiter_updater.units import {unit}_main; sys.exit({unit}_main())",
                    *updater.command()[3:],
                ],
                env=updater.environment(),
                capture_output=True,
                text=True,
                timeout=90,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        status = updater.status()
        assert (status["phase"], status["committed"], status["running"]["version"]) == (
            "COMMITTED",
            "B",
            "2.0",
        )
        assert status["floors"]["sequence"] == 2
        assert updater.stop() == 0
    report = verify(updater.home / "audit/updater")
    assert report.intact, report


def test_without_a_hal_a_staged_release_waits(updater: UpdaterProcess, made: MadeRelease) -> None:
    install(updater, made)
    updater.until_phase("STAGED")
    updater.call("Activate", digest=str(made.digest), window_open=True)
    updater.until(
        lambda: updater.status()["waiting_for"] == ["update.interlock:hal-unreachable"],
        "it waits for the HAL",
    )
    assert not updater.reboots


def test_a_second_instance_is_refused_with_75(updater: UpdaterProcess) -> None:
    done = subprocess.run(
        updater.command(), env=updater.environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 75
    assert "lock" in done.stderr
    assert updater.status()["phase"] == "IDLE"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        (r"^boot_env = .*$", 'boot_env = "/nowhere/env"', "/nowhere/env"),
        (r"^\[updater\]$", "[updater]\nnonsense = 1", "nonsense"),
        (r"^image_identity = .*$", 'image_identity = "/nowhere/image.json"', "/nowhere/image.json"),
        (r"^boot_env = .*$", 'boot_backend = "lilo"\nboot_env = "/env"', '"grub"'),
        (r"^boot_env = .*$", 'boot_backend = "grub"', "updater.boot_env"),
        (
            r"^boot_env = .*$",
            'boot_backend = "grub"\nboot_env = "/nowhere"',
            "boot.env-layout: /nowhere/env_a",
        ),
        (r"^boot_env = .*$", 'boot_backend = "systemd-boot"', "updater.esp"),
        (
            r"^boot_env = .*$",
            'boot_backend = "systemd-boot"\nesp = "/nowhere"',
            "boot.env-layout: /nowhere/EFI",
        ),
        (r"^boot_env = (.*)$", r'boot_backend = "uboot"\nboot_env = \1', "boot.env-layout"),
    ],
)
def test_a_wrong_configuration_ends_with_78_and_names_the_fault(
    updater: UpdaterProcess, old: str, new: str, named: str
) -> None:
    assert updater.stop() == 0
    updater.config.write_text(re.sub(old, new, updater.config.read_text(), flags=re.MULTILINE))
    done = subprocess.run(
        updater.command(), env=updater.environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 78, done.stderr
    assert named in done.stderr


def test_an_unreadable_journal_costs_nothing_but_itself(updater: UpdaterProcess) -> None:
    assert updater.stop() == 0
    (updater.home / "state/updater/journal.json").write_text("{")
    updater.start()
    assert updater.status()["phase"] == "IDLE"


def test_the_service_process_imports_neither_tuf_nor_cryptography_nor_ssl() -> None:
    program = "import json, sys, tidewaiter_updater.main; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert not loaded & {"tuf", "cryptography", "ssl", "requests", "urllib3", "securesystemslib"}
