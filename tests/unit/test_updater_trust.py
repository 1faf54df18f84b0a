"""Trust sessions over a real repository, a real relay socket and the real child process or its code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.clock import SystemClock, format_utc
from tidewaiter_core.durable import InstanceLock
from tidewaiter_core.errors import SecondInstanceError, TidewaiterError
from tidewaiter_core.model import Sha256
from tidewaiter_release.repository import export, renew_media
from tidewaiter_release.repository.signing import prepare_online, write_files
from tidewaiter_updater.directory_source import DirectorySource
from tidewaiter_updater.errors import SourceError, TrustError
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.model import FloorValues
from tidewaiter_updater.sources import Patience, RelaySource
from tidewaiter_updater.trust_call import TrustSession
from tidewaiter_updater.trust_session import verify
from tidewaiter_updater.trust_tuf import TufSession
from tidewaiter_updater.trust_versions import RoleFloor
from tidewaiter_updater.trust_wire import Repository, Subject, Verified

from tests.sim.relay import Answer, Ask, Relay, relaying
from tests.sim.repository import MadeRelease, TestRepository

IMAGE = b"\7" * 4096 * 20
STICK = "directory:/media/stick"
PAST = datetime(2020, 1, 1, tzinfo=UTC)


class Device:
    """A device with a state directory and an embedded root; sessions run in this process, floors as in the service."""

    def __init__(self, repository: TestRepository, relay: Relay, state: Path) -> None:
        self.relay = relay
        self.state = state
        self.state.mkdir()
        self.root = repository.trusted_root.read_bytes()
        (state / "root.json").write_bytes(self.root)
        self.floors = FloorStore(state / "floor.json", image_utc=PAST)

    @property
    def metadata(self) -> Path:
        return self.state / "tuf" / "online"

    def session(self, path: str, *, now: datetime | None = None) -> Verified:
        source = RelaySource(
            self.relay.socket_path,
            clock=SystemClock(),
            patience=Patience(backoff_base_s=0.001, backoff_cap_s=0.002),
        )
        trusted_now = now or self.floors.trusted_now(SystemClock())
        session = TufSession(
            source,
            metadata_dir=self.metadata,
            root=self.root,
            trusted_now=trusted_now,
            floors=self.floors.versions("online"),
        )
        verified = verify(session, Subject.RELEASE, path)
        self.floors.record_session("online", verified.versions, proven_utc=verified.proven_utc)
        return verified

    def code(self, path: str, *, now: datetime | None = None) -> str:
        """How a session that must fail ends; it must not move a floor."""
        before = self.floors.versions("online")
        with pytest.raises(TidewaiterError) as caught:
            self.session(path, now=now)
        assert self.floors.versions("online") == before
        assert isinstance(caught.value, TrustError | SourceError)
        return caught.value.code

    def child(self, **more: object) -> TrustSession:
        fields: dict[str, Any] = {
            "state_dir": self.state,
            "roots": {Repository.ONLINE: self.state / "root.json"},
            "relay_socket": self.relay.socket_path,
            "floors": self.floors,
            "clock": SystemClock(),
        }
        return TrustSession(**fields | more)


@pytest.fixture
def repository(tmp_path: Path) -> TestRepository:
    return TestRepository(tmp_path / "desk")


@pytest.fixture
def made(repository: TestRepository) -> MadeRelease:
    return repository.add_release(IMAGE, "1.0", 1)


@pytest.fixture
def device(repository: TestRepository, made: MadeRelease, tmp_path: Path) -> Iterator[Device]:
    with relaying(repository.repo, tmp_path / "s") as relay:
        yield Device(repository, relay, tmp_path / "state")


def test_the_child_returns_the_signed_release_and_raises_the_floors(
    device: Device, made: MadeRelease
) -> None:
    data = device.child().check("relay", made.path)
    assert Sha256.of(data) == made.digest
    versions = FloorStore(device.state / "floor.json").versions("online")
    assert set(versions) >= {"root", "timestamp", "snapshot", "targets", "os", "injector-firmware"}
    assert device.floors.effective().time_utc == "2026-01-01T00:00:00.000Z"


def test_a_fault_of_the_child_reaches_the_service_with_its_code(
    device: Device, repository: TestRepository
) -> None:
    with pytest.raises(TrustError) as caught:
        device.child().check("relay", "releases/contrast-injector/9.9/release.json")
    assert caught.value.code == "trust.target"


@pytest.mark.parametrize(
    "script", ["exit 0", "kill -9 $$", "head -c 300000 /dev/zero", "echo '{\"format\":1}'"]
)
def test_a_child_that_does_not_answer_soundly_changes_no_floor(
    device: Device, made: MadeRelease, script: str
) -> None:
    session = device.child(command=("/bin/sh", "-c", script))
    with pytest.raises(TrustError) as caught:
        session.check("relay", made.path)
    assert (caught.value.code, device.floors.versions("online")) == ("trust.child", {})


def test_child_killed_at_every_reply_byte_changes_no_floor(device: Device, made: MadeRelease) -> None:
    reply = device.session(made.path).encode()
    device.floors = FloorStore(device.state / "fresh.json")
    (device.state / "reply").write_bytes(reply)
    for size in [0, 1, *range(7, len(reply), len(reply) // 12), len(reply) - 1]:
        command = ("/bin/sh", "-c", f"head -c {size} {device.state}/reply; kill -9 $$")
        with pytest.raises(TrustError):
            device.child(command=command).check("relay", made.path)
    assert device.floors.versions("online") == {}
    assert not (device.state / "fresh.json").exists()


def test_a_child_that_hangs_is_ended_as_slow(device: Device, made: MadeRelease) -> None:
    session = device.child(command=("/bin/sh", "-c", "exec sleep 60"), timeout_s=0.2)
    with pytest.raises(SourceError) as caught:
        session.check("relay", made.path)
    assert caught.value.code == "source.slow"


def test_two_sessions_at_once_are_refused(device: Device, made: MadeRelease) -> None:
    with InstanceLock(device.state / "trust.lock"), pytest.raises(SecondInstanceError):
        device.child().check("relay", made.path)


def test_service_process_imports_neither_tuf_nor_cryptography_nor_ssl() -> None:
    code = (
        "import sys, tidewaiter_updater.trust_call, tidewaiter_updater.slots, tidewaiter_updater.sources\n"
        "import tidewaiter_updater.index_store, tidewaiter_updater.floor\n"
        "bad = {'tuf', 'cryptography', 'ssl', 'requests', 'securesystemslib', 'urllib3'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_replay_of_an_older_repository_after_zeroed_metadata_is_refused(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    old = repository.keep_copy("old")
    repository.refresh()
    device.session(made.path)
    repository.rollback_to(old)
    assert device.code(made.path) == "trust.rollback"
    for path in device.metadata.glob("*.json"):
        path.write_bytes(b"")
    assert device.code(made.path) == "trust.rollback"


def test_metadata_that_only_the_wall_clock_believes_is_refused(device: Device, made: MadeRelease) -> None:
    # The wall clock says today and python-tuf is content; the floor says that timestamp.json expired long ago.
    assert device.code(made.path, now=datetime.now(UTC) + timedelta(days=30)) == "trust.expired"


def test_the_time_floor_is_the_trusted_time_of_a_clock_at_1970(device: Device, made: MadeRelease) -> None:
    device.session(made.path)

    class Reset(SystemClock):
        def now_utc(self) -> datetime:
            return datetime(1970, 1, 1, tzinfo=UTC)

    assert device.floors.trusted_now(Reset()) == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "os"])
def test_expired_metadata_of_each_role_is_refused_with_both_times(
    device: Device, repository: TestRepository, made: MadeRelease, role: str
) -> None:
    repository.expire(role)
    with pytest.raises(TrustError, match=r"expired 20.*it is 20") as caught:
        device.session(made.path)
    assert caught.value.code == "trust.expired"


def test_rotated_timestamp_key_restarts_the_version_floors(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    for _ in range(3):
        repository.refresh()
    device.session(made.path)
    high = device.floors.versions("online")["timestamp"]
    repository.rotate_root("timestamp")
    lowered = repository.file_of_role("timestamp")
    assert json.loads(lowered.read_bytes())["signed"]["version"] >= 1
    device.session(made.path)
    found = device.floors.versions("online")["timestamp"]
    assert found.keys != high.keys
    assert device.floors.versions("online")["root"].version == 2


def test_an_old_root_is_refused_after_a_newer_one_was_seen(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    old = repository.keep_copy("old")
    repository.rotate_root("timestamp")
    device.session(made.path)
    repository.rollback_to(old)
    for path in [*device.metadata.glob("*.json"), *(device.metadata / "root_history").iterdir()]:
        path.unlink()
    assert device.code(made.path) == "trust.rollback"


def test_md5_only_target_is_refused(device: Device, repository: TestRepository, made: MadeRelease) -> None:
    path = "releases/contrast-injector/6.6/release.json"
    repository.add_target("os", path, b"{}", hashes={"md5": "99914b932bd37a50b983c5e7c90ae93b"})
    assert device.code(path) == "trust.hash-policy"


def test_a_release_signed_by_another_role_is_refused(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    path = "releases/contrast-injector/6.7/release.json"
    repository.add_target("targets", path, b"{}")
    assert device.code(path) == "trust.target"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "os"])
def test_forged_metadata_of_each_role_is_refused(
    device: Device, repository: TestRepository, made: MadeRelease, role: str
) -> None:
    repository.forge_metadata(role, with_online_keys=role in ("targets", "os"))
    assert device.code(made.path) in ("trust.threshold", "trust.repository")


def test_too_few_signatures_are_a_threshold_fault(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    repository.sign_with_foreign_keys("timestamp")
    assert device.code(made.path) == "trust.threshold"


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "os"])
def test_block_page_is_a_source_fault_not_a_repository_fault(
    device: Device, made: MadeRelease, role: str
) -> None:
    page = b"\r\n <!DOCTYPE html><html>Blocked by policy</html>" + b" " * 20_000

    def blocked(ask: Ask, honest: Answer) -> Answer | None:
        body = page[: ask.max_bytes]
        return Answer(total=len(page), length=len(body), body=body) if f"{role}.json" in ask.path else None

    device.relay.lie = blocked
    with pytest.raises(SourceError) as caught:
        device.session(made.path)
    assert (caught.value.code, caught.value.retryable) == ("source.not-metadata", True)
    device.relay.lie = lambda ask, honest: None
    device.session(made.path)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "os"])
def test_garbage_instead_of_metadata_is_a_repository_fault(
    device: Device, made: MadeRelease, role: str
) -> None:
    device.relay.lie = lambda ask, honest: (
        Answer(total=7, length=7, body=b'{"a":1}') if f"{role}.json" in ask.path else None
    )
    assert device.code(made.path) == "trust.repository"


@pytest.mark.parametrize(
    ("role", "limit"),
    [("root", 512_000), ("timestamp", 16_384), ("snapshot", 2_000_000), ("targets", 5_000_000)],
)
def test_endless_metadata_of_each_role_stops_at_its_limit(
    device: Device, made: MadeRelease, role: str, limit: int
) -> None:
    sent = 0

    def endless(ask: Ask, honest: Answer) -> Answer | None:
        nonlocal sent
        if f"{role}.json" not in ask.path:
            return None
        sent += ask.max_bytes
        return Answer(offset=ask.offset, length=ask.max_bytes, body=b"x" * ask.max_bytes)

    device.relay.lie = endless
    assert device.code(made.path) == "trust.repository"
    assert sent <= limit + 1


@pytest.mark.parametrize("damage", [b"", b"garbage", b"{}", b"[" * 5000])
def test_each_corrupted_cached_file_heals_on_the_next_run(
    device: Device, made: MadeRelease, damage: bytes
) -> None:
    device.session(made.path)
    files = [*device.metadata.glob("*.json"), *(device.metadata / "root_history").iterdir()]
    assert len(files) >= 6
    for path in files:
        path.write_bytes(damage)
        device.session(made.path)
    for path in device.metadata.glob("*.json"):
        assert json.loads(path.read_bytes())["signed"]


@pytest.mark.parametrize("name", ["timestamp.json", "root.json", "os.json", "root_history", "tmpabc"])
def test_whatever_lies_in_the_way_in_the_cache_is_removed(
    device: Device, made: MadeRelease, name: str
) -> None:
    device.session(made.path)
    place = device.metadata / name
    if place.is_dir():
        for inner in place.iterdir():
            inner.unlink()
        place.rmdir()
        place.write_bytes(b"a file where a folder should be")
    else:
        place.unlink(missing_ok=True)
        (place / "inner").mkdir(parents=True)
    device.session(made.path)


def test_a_lost_floor_file_falls_back_to_the_image_and_is_reported(device: Device, made: MadeRelease) -> None:
    device.session(made.path)
    image = device.state / "image-floor.json"
    image.write_text('{"schema": 1, "sequence": 7, "security_epoch": 3, "time_utc": "2026-02-01T00:00:00Z"}')
    (device.state / "floor.json").write_bytes(b"\0" * 100)
    floors = FloorStore(device.state / "floor.json", image_file=image)
    assert floors.lost is not None
    values = floors.effective()
    assert (values.sequence, values.security_epoch, values.time_utc) == (7, 3, "2026-02-01T00:00:00.000Z")


@pytest.mark.parametrize(
    "path", ["release.json", "releases/../x/release.json", "releases/a/1/pack.twpk", "../a"]
)
def test_only_release_documents_can_be_asked_for(device: Device, path: str) -> None:
    assert device.code(path) == "trust.target"


def test_a_changed_release_document_is_not_used(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    repository.flip_byte(made.path, 3)
    assert device.code(made.path) == "source.bad-bytes"


def test_an_unreachable_relay_is_unavailable(device: Device, made: MadeRelease) -> None:
    device.relay.lie = lambda ask, honest: Answer(status="unavailable", detail="offline")
    assert device.code(made.path) == "source.unavailable"


def test_twenty_root_rotations_asleep_then_updates(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    for number in range(20):
        repository.rotate_root(*(("snapshot",) if number % 5 == 0 else ()))
    device.session(made.path)
    assert device.floors.versions("online")["root"].version == 21


def test_the_child_compares_with_the_floors_itself_before_it_keeps_anything(
    device: Device, made: MadeRelease
) -> None:
    seen = device.session(made.path).versions
    above = {**seen, "os": RoleFloor(version=seen["os"].version + 1, keys=seen["os"].keys)}
    source = RelaySource(device.relay.socket_path, clock=SystemClock())
    now = device.floors.trusted_now(SystemClock())
    session = TufSession(
        source, metadata_dir=device.metadata, root=device.root, trusted_now=now, floors=above
    )
    with pytest.raises(TrustError) as caught:
        verify(session, Subject.RELEASE, made.path)
    assert caught.value.code == "trust.rollback"


class Stick:
    """A stick that the release tool made, in the device's bay."""

    def __init__(self, device: Device, repository: TestRepository, directory: Path) -> None:
        self.device = device
        self.repository = repository
        self.directory = directory
        self.roots = {
            Repository.ONLINE: device.state / "root.json",
            Repository.MEDIA: device.state / "media-root.json",
        }
        self.roots[Repository.MEDIA].write_bytes(
            (repository.store.media.metadata / "1.root.json").read_bytes()
        )
        self.bay = MediaBay()
        self.write("1.0")

    def write(self, *versions: str) -> None:
        """Make the stick again."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        export(self.repository.store, self.directory, versions, clock=self.repository.clock)

    def session(self, directory: Path | None = None) -> TrustSession:
        """A session that finds `directory`, or else what `write` made, as the medium STICK."""
        place = directory or self.directory / "TIDEWAITER"
        self.bay.insert(STICK, DirectorySource(os.open(place, os.O_PATH | os.O_DIRECTORY)))
        return self.device.child(roots=self.roots, media=self.bay)


@pytest.fixture
def stick(device: Device, repository: TestRepository, tmp_path: Path) -> Stick:
    return Stick(device, repository, tmp_path / "stick")


def test_a_release_on_a_stick_is_verified_under_the_media_root(stick: Stick, made: MadeRelease) -> None:
    data = stick.session().check(STICK, made.path)
    assert Sha256.of(data) == made.digest
    floors = stick.device.floors
    assert floors.versions("online") == {}
    assert floors.versions("media")["timestamp"].version >= 1
    assert floors.effective().time_utc == "2026-01-01T00:00:00.000Z"


def test_a_listing_names_the_releases_that_the_stick_holds(
    stick: Stick, repository: TestRepository, made: MadeRelease
) -> None:
    second = repository.add_release(IMAGE, "1.1", 2)
    stick.write("1.0", "1.1")
    listed = stick.session().releases(STICK, "contrast-injector")
    assert [(one.path, one.sha256) for one in listed] == [
        (made.path, made.digest),
        (second.path, second.digest),
    ]
    stick.write("1.1")
    assert [one.path for one in stick.session().releases(STICK, "contrast-injector")] == [second.path]
    assert stick.session().releases(STICK, "another") == ()


def test_stick_metadata_under_the_online_root_is_refused(
    stick: Stick, made: MadeRelease, tmp_path: Path
) -> None:
    with (
        relaying(stick.directory / "TIDEWAITER", tmp_path / "m") as relay,
        pytest.raises(TrustError) as caught,
    ):
        stick.device.child(roots=stick.roots, relay_socket=relay.socket_path).check("relay", made.path)
    assert caught.value.code == "trust.threshold"
    assert stick.device.floors.versions("online") == {}


def test_online_metadata_under_the_media_root_is_refused(
    stick: Stick, repository: TestRepository, made: MadeRelease
) -> None:
    with pytest.raises(TrustError) as caught:
        stick.session(repository.repo).check(STICK, made.path)
    assert caught.value.code == "trust.threshold"
    assert stick.device.floors.versions("media") == {}


def test_an_older_stick_is_refused_after_a_newer_one(
    stick: Stick, repository: TestRepository, made: MadeRelease, tmp_path: Path
) -> None:
    older = shutil.copytree(stick.directory / "TIDEWAITER", tmp_path / "older")
    renew_media(repository.store, repository.desk)
    stick.write("1.0")
    stick.session().check(STICK, made.path)
    shutil.rmtree(stick.device.state / "tuf")
    with pytest.raises(TrustError) as caught:
        stick.session(older).check(STICK, made.path)
    assert caught.value.code == "trust.rollback"


def test_a_stick_older_than_its_lifetime_is_refused(stick: Stick, made: MadeRelease) -> None:
    later = FloorValues(time_utc=format_utc(datetime.now(UTC) + timedelta(days=100)))
    stick.device.floors.raise_committed(later)
    with pytest.raises(TrustError) as caught:
        stick.session().check(STICK, made.path)
    assert caught.value.code == "trust.expired"


def test_the_time_that_a_stick_proved_is_the_floor_of_the_network_too(
    stick: Stick, repository: TestRepository, made: MadeRelease
) -> None:
    late = repository.add_release(IMAGE, "1.1", 2, built_utc=datetime(2026, 6, 1, tzinfo=UTC))
    stick.write("1.1")
    stick.session().check(STICK, late.path)
    assert stick.device.floors.effective().time_utc == "2026-06-01T00:00:00.000Z"


def test_without_a_media_root_no_stick_is_read(stick: Stick, made: MadeRelease) -> None:
    with pytest.raises(SourceError, match="no root for the media repository"):
        stick.device.child().check(STICK, made.path)


def test_a_stick_that_was_taken_out_is_awaited(stick: Stick, made: MadeRelease) -> None:
    session = stick.session()
    stick.bay.eject_all()
    with pytest.raises(SourceError) as caught:
        session.check(STICK, made.path)
    assert caught.value.code == "source.vanished"


def test_a_directory_without_a_repository_starts_no_session(
    stick: Stick, made: MadeRelease, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no update medium"):
        stick.session(tmp_path / "empty").check(STICK, made.path)


def test_an_unknown_kind_of_source_is_not_asked(device: Device, made: MadeRelease) -> None:
    with pytest.raises(SourceError, match="expected relay or directory:"):
        device.child().check("https://example", made.path)


def test_a_role_that_the_snapshot_no_longer_names_is_a_rollback_unless_its_keys_are_new(
    device: Device, repository: TestRepository, made: MadeRelease
) -> None:
    device.session(made.path)
    state = repository.store.load()
    del state.snapshot.signed.meta["support-authority.json"]
    write_files(repository.store, prepare_online(state, repository.desk, renew_snapshot=True))
    with pytest.raises(TrustError) as caught:
        device.session(made.path)
    assert caught.value.code in ("trust.rollback", "trust.repository")
    shutil.rmtree(device.state / "tuf")  # without a cache, python-tuf itself sees nothing wrong
    assert device.code(made.path) == "trust.rollback"
