"""Going back to an older release, from the release desk to the device: tool, signatures, updater, HAL and injector are real."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.audit import read_records, verify
from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import SlotName
from tidewaiter_core.varlink import VarlinkError
from tidewaiter_release.cli import main as release_tool
from tidewaiter_release.repository.documents import build_permit
from tidewaiter_updater.permit import permit_path

from tests.sim.boot.installed import InstalledLoader, SdBootFolder
from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator
from tests.sim.packs import random_image
from tests.sim.repository import MadeRelease, TestRepository
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

OLD = random_image(8, seed=1)
NEW = random_image(8, seed=2)
SERIAL = "INJ-000001"
REASON = "2.0 shows the wrong volume"
MEDIA_DESK = ("media-snapshot-1", "media-snapshot-2", "media-timestamp-1", "media-timestamp-2")
HAL = {"bench": True, "quiet_after_injection_s": 1}


class Desk:
    """Who may sign a way back, with the folder of keys that each of them brings."""

    def __init__(self, repository: TestRepository, folder: Path) -> None:
        self.repository = repository
        self.folder = folder
        self.online = self._keys("online", "snapshot-1", "timestamp-1")
        self._requests = 0

    def permit(self, *who: str, serial: str = SERIAL, days: int = 30) -> int:
        """Stage a permit from 2.0 to 1.0, let `who` sign it, publish it; the exit code of the step that refuses, or 0."""
        self._requests += 1
        request = self.folder / f"request-{self._requests}"
        until = format_utc(datetime.now(UTC) + timedelta(days=days))
        what = ["--product", self.repository.product, "--from-release", "2.0", "--to-release", "1.0"]
        terms = ["--serial", serial, "--not-after", until, "--reason", REASON]
        repo = ["--repo", str(self.repository.repo)]
        staged = release_tool(["stage", "permit", *repo, "--out", str(request), *what, *terms])
        if staged:
            return staged
        for name in (*who, *MEDIA_DESK):
            key = self.repository.keys / f"{name}.pem"
            assert release_tool(["sign", str(request), "--key", str(key), "--yes"]) == 0
        return release_tool(["publish", *repo, "--keys", str(self.online), "--request", str(request)])

    def _keys(self, name: str, *keys: str) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True, mode=0o700)
        for key in keys:
            shutil.copy2(self.repository.keys / f"{key}.pem", folder / f"{key}.pem")
        return folder


class World:
    """A device that was updated from 1.0 to 2.0; both are published."""

    def __init__(self, updater: UpdaterProcess, hal: HalProcess, **newer: Any) -> None:
        self.updater, self.hal = updater, hal
        self.desk = Desk(updater.repository, updater.home / "desk")
        kernel = updater.home / "kernel.efi"
        kernel.write_bytes(b"a kernel image")
        ukis = {SlotName.A: kernel, SlotName.B: kernel}
        self.older = updater.repository.add_release(OLD, "1.0", 1, ukis=ukis)
        self.newer = updater.repository.add_release(NEW, "2.0", 2, ukis=ukis, **newer)
        updater.manufacture(OLD, "1.0", 1)
        updater.knows(NEW, "2.0", 2)
        updater.epochs["2.0"] = newer.get("security_epoch", 0)
        updater.boot()
        self.check(self.newer)
        updater.call("Install", digest=str(self.newer.digest), consent=None)
        self.activate(self.newer)
        self.commit()
        assert updater.status()["running"]["digest"] == str(self.newer.digest)

    def check(self, made: MadeRelease) -> str:
        """The code with which it is refused, empty if it may be installed."""
        code: str = self.updater.call("Check", source="relay", release=made.path)["offer"]["code"]
        return code

    def activate(self, made: MadeRelease) -> None:
        status = self.updater.until_phase("STAGED", "FAILED")
        assert status["phase"] == "STAGED", status["last"]
        self.hal.until_allowed("activate", timeout_s=60)
        self.updater.call("Activate", digest=str(made.digest), window_open=True)
        self.updater.until(lambda: self.updater.reboots, "the reboot is requested")
        self.updater.kill()
        self.updater.boot()

    def commit(self) -> None:
        for name in ("health", "commit"):
            done = self.updater.unit(name)
            assert done.returncode == 0, done.stdout + done.stderr
        assert self.updater.status()["phase"] == "COMMITTED"

    def site_consent(self) -> dict[str, Any]:
        """What the agent claims that somebody agreed to elsewhere."""
        now = datetime.now(UTC)
        return {
            "digest": str(self.older.digest),
            "scope": ["install", "activate"],
            "channel": "site",
            "who": "fleet manager",
            "given_utc": format_utc(now),
            "expires_utc": format_utc(now + timedelta(hours=1)),
        }

    def audit(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in read_records(self.updater.home / "audit/updater")]

    def refusals(self) -> list[str]:
        return [record["fields"]["code"] for record in self.audit() if record["kind"] == "update.refused"]


@contextmanager
def world(tmp_path: Path, *, loader: InstalledLoader | None = None, **newer: Any) -> Iterator[World]:
    with (
        InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim"),
        updater_process(tmp_path / "d", tmp_path / "injector", loader=loader) as (updater, _),
        HalProcess(updater.home, tmp_path / "injector", hal=HAL) as hal,
    ):
        yield World(updater, hal, **newer)


def test_a_device_goes_back_with_a_signed_permit_and_a_person_and_not_without(tmp_path: Path) -> None:
    with world(tmp_path) as one:
        updater, desk, digest = one.updater, one.desk, str(one.older.digest)
        assert one.check(one.older) == "release.sequence"
        with pytest.raises(VarlinkError) as caught:
            updater.call("Install", digest=digest, consent=None)
        assert caught.value.parameters["code"] == "release.sequence"

        assert desk.permit("targets-1") == 1, "one signature is not the threshold"
        assert one.check(one.older) == "release.sequence"
        assert desk.permit("targets-1", "targets-3", serial="INJ-000002") == 0
        assert one.check(one.older) == "release.permit"
        assert updater.slot(SlotName.A).read_bytes() == OLD and updater.env().ok_a, "nothing was touched"

        assert desk.permit("targets-1", "targets-2") == 0
        assert one.check(one.older) == ""
        updater.call("Install", digest=digest, consent=one.site_consent())
        updater.until(lambda: updater.status()["waiting_for"] == ["update.consent"], "it waits for a person")
        updater.consent(digest, "install", "activate")
        one.activate(one.older)
        assert (updater.booted, updater.status()["phase"]) == ("A", "TRIAL")
        one.commit()

        status = updater.status()
        assert (status["running"]["version"], status["committed"]) == ("1.0", "A")
        assert status["floors"]["sequence"] == 2, "a way back lowers no floor"
        assert one.check(one.newer) == "release.sequence", "what was left behind is not offered again"
        assert updater.stop() == 0
    assert verify(updater.home / "audit/updater").intact
    records = one.audit()
    details = [r["fields"].get("detail", "") for r in records if r["kind"] == "update.installing"]
    assert any("goes back from sequence 2 to 1" in text and REASON in text for text in details), details
    assert one.refusals()[:2] == ["release.sequence", "release.permit"]
    consents = [
        (r["fields"]["channel"], r["fields"]["digest"]) for r in records if r["kind"] == "consent.given"
    ]
    assert consents == [("site", digest), ("local", digest)]


def test_no_permit_leads_below_the_security_epoch(tmp_path: Path) -> None:
    with world(tmp_path, security_epoch=1) as one:
        assert one.updater.status()["floors"]["security_epoch"] == 1
        assert one.desk.permit("targets-1", "targets-2") == 1, "the tool stages no such permit"
        sign_without_the_tool(one)
        assert one.check(one.older) == "release.epoch"
        assert not one.updater.env().ok_a, "the slot below the epoch is closed"


def test_a_permit_ends_with_its_day(tmp_path: Path) -> None:
    with world(tmp_path) as one:
        assert one.desk.permit("targets-1", "targets-2", days=-1) == 0
        assert one.check(one.older) == "release.permit"
        assert one.refusals() == ["release.permit"]
        with pytest.raises(VarlinkError) as caught:
            one.updater.call("Install", digest=str(one.older.digest), consent=None)
        assert caught.value.parameters["code"] == "release.permit"


def test_a_loader_that_starts_the_newest_version_takes_no_permit(tmp_path: Path) -> None:
    loader = SdBootFolder(tmp_path / "esp")
    with world(tmp_path, loader=loader) as one:
        assert one.desk.permit("targets-1", "targets-2") == 0
        before = loader.names()
        offer = one.updater.call("Check", source="relay", release=one.older.path)["offer"]
        assert (offer["code"], "starts the newest version" in offer["detail"]) == ("release.permit", True)
        assert loader.names() == before


def sign_without_the_tool(one: World) -> None:
    """What people who hold the targets keys could sign without a tool of ours."""
    data = build_permit(
        from_digest=one.newer.digest,
        to_digest=one.older.digest,
        serials=[SERIAL],
        not_after_utc=datetime.now(UTC) + timedelta(days=30),
        reason=REASON,
    )
    path = permit_path(one.updater.repository.product, one.older.digest)
    one.updater.repository.add_target("targets", path, data)
