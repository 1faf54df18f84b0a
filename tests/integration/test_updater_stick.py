"""A stick in a real device: the release tool's export, the command line, updater, HAL and injector as processes; no agent."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tidewaiter_core.audit import read_records, verify
from tidewaiter_release.repository import export

from tests.sim.clock import FakeClock
from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator
from tests.sim.loop import loop_device, mounted, tool
from tests.sim.old_clock import python_of_1970
from tests.sim.packs import random_image
from tests.sim.relay import Answer, Ask, Relay
from tests.sim.repository import MadeRelease, TestRepository
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

OLD = random_image(96, seed=1)
NEW = random_image(96, seed=2, zero=(3, 4))
LIMIT_S = 90.0


@contextmanager
def device(folder: Path) -> Iterator[tuple[UpdaterProcess, Relay]]:
    with updater_process(folder / "d", folder / "injector") as (updater, relay):
        updater.manufacture(OLD, "1.0", 1)
        updater.knows(NEW, "2.0", 2)
        yield updater, relay


@contextmanager
def device_of_1970(folder: Path) -> Iterator[tuple[UpdaterProcess, Relay]]:
    """Its battery is empty: service, trust child and command line begin ten seconds after the epoch."""
    daemon = python_of_1970(folder / "daemon", waits=True)
    person = python_of_1970(folder / "person", waits=False)
    for python in (daemon, person):
        asked = [str(python), "-I", "-c", "import time, tidewaiter_updater; print(time.time())"]
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        assert float(told) < 3600
    with device(folder) as (updater, relay):
        updater.python, updater.person_python = str(daemon), str(person)
        yield updater, relay


def write_stick(folder: Path, repository: TestRepository, *versions: str) -> Path:
    stick = folder / "stick"
    shutil.rmtree(stick, ignore_errors=True)
    stick.mkdir()
    export(repository.store, stick, versions, clock=repository.clock)
    return stick


def without_agent(updater: UpdaterProcess) -> None:
    (updater.home / "run/agent/relay.sock").unlink()


def install(updater: UpdaterProcess, stick: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        updater.cli("update", "install", "--from", str(stick), "--yes", *words),
        env=updater.environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


def unit(updater: UpdaterProcess, name: str) -> None:
    """tidewaiter-health or tidewaiter-commit."""
    call = f"import sys; from tidewaiter_updater.units import {name}_main; sys.exit({name}_main())"
    command = [updater.python, "-c", call, *updater.command()[3:]]
    subprocess.run(command, env=updater.environment(), check=True, timeout=LIMIT_S)


def sources_in_audit(updater: UpdaterProcess) -> list[str]:
    records = [json.loads(line) for line in read_records(updater.home / "audit/updater")]
    return [
        record["fields"]["detail"]
        for record in records
        if record["kind"] == "update.installing" and "detail" in record["fields"]
    ]


def test_stick_install_works_with_agent_stopped_and_clock_at_1970(tmp_path: Path) -> None:
    with (
        device_of_1970(tmp_path) as (updater, relay),
        InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim"),
        HalProcess(
            updater.home, tmp_path / "injector", hal={"bench": True, "quiet_after_injection_s": 1}
        ) as hal,
    ):
        updater.repository.add_release(NEW, "2.0", 2, consent="local")
        stick = write_stick(tmp_path, updater.repository, "2.0")
        without_agent(updater)
        updater.boot()
        hal.until_allowed("activate", timeout_s=60)
        person = subprocess.Popen(
            updater.cli("update", "install", "--from", str(stick), "--yes", "--activate"),
            env=updater.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            updater.until(lambda: updater.reboots or person.poll() is not None, "the reboot is requested")
            assert updater.reboots, person.communicate()[0]
            assert updater.env().trial == "B"
            time.sleep(1.5)  # the person's screen shows ARMED before the device goes down
            updater.kill()
            said, _ = person.communicate(timeout=LIMIT_S)
        finally:
            person.kill()
            person.wait()
        assert person.returncode == 0, said
        assert "the device restarts into the new release" in said
        updater.boot()
        unit(updater, "health")
        unit(updater, "commit")
        status = updater.status()
        assert (status["phase"], status["running"]["version"]) == ("COMMITTED", "2.0")
        assert status["floors"]["time_utc"] == "2026-01-01T00:00:00.000Z", "a floor, not the clock"
        assert updater.stop() == 0
        assert relay.asks == []
    assert verify(updater.home / "audit/updater").intact
    assert sources_in_audit(updater) == [f"from directory:{stick}"]


def test_a_stick_that_expired_before_the_floor_is_refused_with_the_clock_at_1970(tmp_path: Path) -> None:
    clock = FakeClock(datetime(2025, 6, 1, tzinfo=UTC))
    with device_of_1970(tmp_path) as (updater, _):
        old = TestRepository(tmp_path / "old-vendor", clock=clock)
        old.add_release(NEW, "2.0", 2)
        stick = write_stick(tmp_path, old, "2.0")
        config = updater.config.read_text()
        root = old.store.media.metadata / "1.root.json"
        updater.config.write_text(
            re.sub(r"^media_root = .*$", f'media_root = "{root}"', config, flags=re.MULTILINE)
        )
        without_agent(updater)
        updater.boot()
        done = install(updater, stick)
        assert (done.returncode, "trust.expired" in done.stderr) == (4, True), done.stdout + done.stderr
        assert updater.env().ok_b


def test_a_stick_goes_on_where_the_network_died_and_only_with_what_is_missing(tmp_path: Path) -> None:
    with device(tmp_path) as (updater, relay):
        made = updater.repository.add_release(NEW, "2.0", 2)
        stick = write_stick(tmp_path, updater.repository, "2.0")
        updater.boot()
        break_after(relay, made, made.release.slot.pack.length - 100_000)
        updater.call("Check", source="relay", release=made.path)
        updater.call("Install", digest=str(made.digest), consent=None)
        updater.until(lambda: updater.status()["bytes"]["written"] > len(NEW) // 3, "a third is written")
        done = install(updater, stick)
        status = updater.status()
        assert (done.returncode, status["phase"]) == (0, "STAGED"), done.stdout + done.stderr
        assert (updater.home / "slot-b").read_bytes() == NEW
        assert status["by_source"]["resume"] > 0
        assert status["bytes"]["fetched"] < made.release.slot.pack.length
        assert updater.stop() == 0
    assert sources_in_audit(updater) == ["from relay", f"from directory:{stick}, before from relay"]


def test_the_command_goes_on_after_it_was_interrupted_and_the_updater_killed(tmp_path: Path) -> None:
    with device(tmp_path) as (updater, _):
        made = updater.repository.add_release(NEW, "2.0", 2)
        stick = write_stick(tmp_path, updater.repository, "2.0")
        without_agent(updater)
        updater.boot()
        hidden = hide(stick, made)
        first = subprocess.Popen(
            updater.cli("update", "install", "--from", str(stick), "--yes"),
            env=updater.environment(),
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            # As from a person's shell: what a script runs in the background inherits that SIGINT is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - no thread here
        )
        assert first.stdout is not None
        assert any("Put the medium back in" in line for line in first.stdout), "it ended by itself"
        first.send_signal(signal.SIGINT)
        said, _ = first.communicate(timeout=LIMIT_S)
        assert (first.returncode, "left in phase TRANSFER" in said) == (5, True), said
        updater.kill()
        updater.start()
        hidden.rename(hidden.with_suffix(""))
        done = install(updater, stick)
        assert (done.returncode, updater.status()["phase"]) == (0, "STAGED"), done.stdout + done.stderr
        assert (updater.home / "slot-b").read_bytes() == NEW


def test_the_medium_is_let_go_once_the_release_is_in_its_slot(tmp_path: Path) -> None:
    with device(tmp_path) as (updater, _):
        updater.repository.add_release(NEW, "2.0", 2)
        stick = write_stick(tmp_path, updater.repository, "2.0")
        updater.boot()
        assert install(updater, stick).returncode == 0
        updater.until(lambda: not holds_open(updater, stick), "the medium is let go", limit_s=10)


@pytest.mark.privileged
def test_a_stick_that_the_updater_cannot_see_is_installed_from_all_the_same(tmp_path: Path) -> None:
    unshare = tool("unshare", "util-linux")
    with device(tmp_path) as (updater, _):
        updater.repository.add_release(NEW, "2.0", 2)
        stick = write_stick(tmp_path, updater.repository, "2.0")
        image = tmp_path / "stick.img"
        subprocess.run(
            [tool("mke2fs", "e2fsprogs"), "-q", "-t", "ext4", "-d", stick, image, "64M"], check=True
        )
        alone = tmp_path / "python"  # its own view of mounts, as the unit's sandbox gives it
        alone.write_text(f'#!/bin/sh\nexec {unshare} --mount --propagation private {updater.python} "$@"\n')
        alone.chmod(0o755)
        updater.python = str(alone)
        (tmp_path / "mnt").mkdir()
        with loop_device(image) as block:
            updater.boot()
            with mounted(block, tmp_path / "mnt", "-o", "ro,nosuid,nodev,noexec") as mount:
                assert updater.process is not None
                assert not Path(f"/proc/{updater.process.pid}/root{mount}/TIDEWAITER").exists()
                done = install(updater, mount)
                assert (done.returncode, updater.status()["phase"]) == (0, "STAGED"), done.stderr
            assert (updater.home / "slot-b").read_bytes() == NEW


def test_a_release_that_is_no_newer_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with device(tmp_path) as (updater, _):
        updater.repository.add_release(NEW, "0.9", 1)
        stick = write_stick(tmp_path, updater.repository, "0.9")
        updater.boot()
        done = install(updater, stick)
        assert (done.returncode, "release.sequence" in done.stdout) == (4, True), done.stdout + done.stderr
        assert updater.env().ok_b


def test_a_forged_stick_is_refused_as_a_whole(tmp_path: Path) -> None:
    with device(tmp_path) as (updater, _):
        updater.repository.add_release(NEW, "2.0", 2)
        stick = write_stick(tmp_path, updater.repository, "2.0")
        updater.boot()
        role = next((stick / "TIDEWAITER/metadata").glob("*.os.json"))
        role.write_bytes(role.read_bytes().replace(b"2.0", b"2.1"))
        done = install(updater, stick)
        assert (done.returncode, "trust." in done.stderr) == (4, True), done.stdout + done.stderr


def holds_open(updater: UpdaterProcess, folder: Path) -> bool:
    assert updater.process is not None
    links = list(Path(f"/proc/{updater.process.pid}/fd").iterdir())
    return any(os.readlink(link).startswith(str(folder)) for link in links)


def break_after(relay: Relay, made: MadeRelease, offset: int) -> None:
    """The network dies in the middle of the pack."""
    pack = f"{made.release.slot.pack.sha256}.pack.twpk"

    def lie(ask: Ask, honest: Answer) -> Answer | None:
        dead = ask.path.endswith(pack) and ask.offset + ask.max_bytes > offset
        return Answer(status="unavailable") if dead else None

    relay.lie = lie


def hide(stick: Path, made: MadeRelease) -> Path:
    """A stick that was copied only in part."""
    pack = next((stick / "TIDEWAITER/targets").rglob(f"{made.release.slot.pack.sha256}.pack.twpk"))
    return pack.rename(pack.with_name(pack.name + ".part"))
