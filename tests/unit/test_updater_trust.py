"""One trust session, in this process and as a child: what it accepts, what it refuses, and what that leaves behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.durable import InstanceLock
from tidewaiter_core.errors import SecondInstanceError, StateWriteError
from tidewaiter_core.model import Sha256
from tidewaiter_release.repository.signing import prepare_online, write_files
from tidewaiter_updater.errors import SourceError, TrustError
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.sources import RelaySource
from tidewaiter_updater.trust_session import verify
from tidewaiter_updater.trust_tuf import TufSession
from tidewaiter_updater.trust_versions import RoleFloor
from tidewaiter_updater.trust_wire import Subject

from tests.sim.relay import Answer, Ask, relaying
from tests.sim.repository import MadeRelease, TestRepository
from tests.sim.trust_device import TrustDevice

IMAGE = b"\7" * 4096 * 20


@pytest.fixture
def repository(tmp_path: Path) -> TestRepository:
    return TestRepository(tmp_path / "desk")


@pytest.fixture
def made(repository: TestRepository) -> MadeRelease:
    return repository.add_release(IMAGE, "1.0", 1)


@pytest.fixture
def device(repository: TestRepository, made: MadeRelease, tmp_path: Path) -> Iterator[TrustDevice]:
    with relaying(repository.repo, tmp_path / "s") as relay:
        yield TrustDevice(repository, relay, tmp_path / "state")


def test_the_child_returns_the_signed_release_and_raises_the_floors(
    device: TrustDevice, made: MadeRelease
) -> None:
    data = device.child().check("relay", made.path)
    assert Sha256.of(data) == made.digest
    versions = FloorStore(device.state / "floor.json").versions("online")
    assert set(versions) >= {"root", "timestamp", "snapshot", "targets", "os", "injector-firmware"}
    assert device.floors.effective().time_utc == "2026-01-01T00:00:00.000Z"


def test_a_fault_of_the_child_reaches_the_service_with_its_code(
    device: TrustDevice, repository: TestRepository
) -> None:
    with pytest.raises(TrustError) as caught:
        device.child().check("relay", "releases/contrast-injector/9.9/release.json")
    assert caught.value.code == "trust.target"


@pytest.mark.parametrize(
    "script", ["exit 0", "kill -9 $$", "head -c 300000 /dev/zero", "echo '{\"format\":1}'"]
)
def test_a_child_that_does_not_answer_soundly_changes_no_floor(
    device: TrustDevice, made: MadeRelease, script: str
) -> None:
    session = device.child(command=("/bin/sh", "-c", script))
    with pytest.raises(TrustError) as caught:
        session.check("relay", made.path)
    assert (caught.value.code, device.floors.versions("online")) == ("trust.child", {})


def test_child_killed_at_every_reply_byte_changes_no_floor(device: TrustDevice, made: MadeRelease) -> None:
    reply = device.session(made.path).encode()
    device.floors = FloorStore(device.state / "fresh.json")
    (device.state / "reply").write_bytes(reply)
    for size in [0, 1, *range(7, len(reply), len(reply) // 12), len(reply) - 1]:
        command = ("/bin/sh", "-c", f"head -c {size} {device.state}/reply; kill -9 $$")
        with pytest.raises(TrustError):
            device.child(command=command).check("relay", made.path)
    assert device.floors.versions("online") == {}
    assert not (device.state / "fresh.json").exists()


def test_a_child_that_hangs_is_ended_as_slow(device: TrustDevice, made: MadeRelease) -> None:
    session = device.child(command=("/bin/sh", "-c", "exec sleep 60"), timeout_s=0.2)
    with pytest.raises(SourceError) as caught:
        session.check("relay", made.path)
    assert caught.value.code == "source.slow"


def test_two_sessions_at_once_are_refused(device: TrustDevice, made: MadeRelease) -> None:
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
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    old = repository.keep_copy("old")
    repository.refresh()
    device.session(made.path)
    repository.rollback_to(old)
    assert device.code(made.path) == "trust.rollback"
    for path in device.metadata.glob("*.json"):
        path.write_bytes(b"")
    assert device.code(made.path) == "trust.rollback"


def test_metadata_that_python_tuf_believes_is_refused_by_the_trusted_time(
    device: TrustDevice, made: MadeRelease
) -> None:
    # The wall clock says today and python-tuf is content; the floor says that timestamp.json expired long ago.
    assert device.code(made.path, now=datetime.now(UTC) + timedelta(days=30)) == "trust.expired"


def test_the_time_floor_is_the_trusted_time_of_a_clock_at_1970(
    device: TrustDevice, made: MadeRelease
) -> None:
    device.session(made.path)

    class Reset(SystemClock):
        def now_utc(self) -> datetime:
            return datetime(1970, 1, 1, tzinfo=UTC)

    assert device.floors.trusted_now(Reset()) == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "os"])
def test_expired_metadata_of_each_role_is_refused_with_both_times(
    device: TrustDevice, repository: TestRepository, made: MadeRelease, role: str
) -> None:
    repository.expire(role)
    with pytest.raises(TrustError, match=r"expired 20.*it is 20") as caught:
        device.session(made.path)
    assert caught.value.code == "trust.expired"


@pytest.mark.parametrize("floors_only", [False, True])
def test_rotated_timestamp_key_restarts_the_version_floors(
    device: TrustDevice, repository: TestRepository, made: MadeRelease, floors_only: bool
) -> None:
    for _ in range(3):
        repository.refresh()
    device.session(made.path)
    high = device.floors.versions("online")["timestamp"]
    if floors_only:
        shutil.rmtree(device.state / "tuf")
    state = repository.store.load()
    state.timestamp.signed.version = 0  # whoever held the old key had counted ahead
    write_files(repository.store, prepare_online(state, repository.desk, renew_snapshot=False))
    assert device.code(made.path) == "trust.rollback"
    repository.rotate_root("timestamp")
    device.session(made.path)
    found = device.floors.versions("online")["timestamp"]
    assert found.version < high.version
    assert found.keys != high.keys
    assert device.floors.versions("online")["root"].version == 2


def test_an_old_root_is_refused_after_a_newer_one_was_seen(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    old = repository.keep_copy("old")
    repository.rotate_root("timestamp")
    device.session(made.path)
    repository.rollback_to(old)
    for path in [*device.metadata.glob("*.json"), *(device.metadata / "root_history").iterdir()]:
        path.unlink()
    assert device.code(made.path) == "trust.rollback"


def test_md5_only_target_is_refused(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    path = "releases/contrast-injector/6.6/release.json"
    repository.add_target("os", path, b"{}", hashes={"md5": "99914b932bd37a50b983c5e7c90ae93b"})
    assert device.code(path) == "trust.hash-policy"


def test_a_release_signed_by_another_role_is_refused(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    path = "releases/contrast-injector/6.7/release.json"
    repository.add_target("targets", path, b"{}")
    assert device.code(path) == "trust.target"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "os"])
def test_forged_metadata_of_each_role_is_refused(
    device: TrustDevice, repository: TestRepository, made: MadeRelease, role: str
) -> None:
    repository.forge_metadata(role, with_online_keys=role in ("targets", "os"))
    assert device.code(made.path) in ("trust.threshold", "trust.repository")


def test_too_few_signatures_are_a_threshold_fault(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    repository.sign_with_foreign_keys("timestamp")
    assert device.code(made.path) == "trust.threshold"


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "os"])
def test_block_page_is_a_source_fault_not_a_repository_fault(
    device: TrustDevice, made: MadeRelease, role: str
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
    device: TrustDevice, made: MadeRelease, role: str
) -> None:
    device.relay.lie = lambda ask, honest: (
        Answer(total=7, length=7, body=b'{"a":1}') if f"{role}.json" in ask.path else None
    )
    assert device.code(made.path) == "trust.repository"


@pytest.mark.parametrize(
    ("role", "limit"),
    [
        ("root", 512_000),
        ("timestamp", 16_384),
        ("snapshot", 2_000_000),
        ("targets", 5_000_000),
        ("os", 5_000_000),
    ],
)
def test_endless_metadata_of_each_role_stops_at_its_limit(
    device: TrustDevice, made: MadeRelease, role: str, limit: int
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
    device: TrustDevice, made: MadeRelease, damage: bytes
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
    device: TrustDevice, made: MadeRelease, name: str
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


def test_a_lost_floor_file_falls_back_to_the_image_and_is_reported(
    device: TrustDevice, made: MadeRelease
) -> None:
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
def test_only_release_documents_can_be_asked_for(device: TrustDevice, path: str) -> None:
    assert device.code(path) == "trust.target"


def test_a_changed_release_document_is_not_used(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    repository.flip_byte(made.path, 3)
    assert device.code(made.path) == "source.bad-bytes"


def test_an_unreachable_relay_is_unavailable(device: TrustDevice, made: MadeRelease) -> None:
    device.relay.lie = lambda ask, honest: Answer(status="unavailable", detail="offline")
    assert device.code(made.path) == "source.unavailable"


def test_the_child_compares_with_the_floors_itself_before_it_keeps_anything(
    device: TrustDevice, made: MadeRelease
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


def test_a_role_that_the_snapshot_no_longer_names_is_a_rollback_unless_its_keys_are_new(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
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


def test_a_state_directory_that_takes_no_metadata_is_a_refusal_and_not_the_end_of_the_service(
    device: TrustDevice, made: MadeRelease
) -> None:
    (device.state / "tuf").write_text("in the way")
    with pytest.raises(StateWriteError, match="cannot be created"):
        device.child().check("relay", made.path)
