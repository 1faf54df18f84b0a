"""lint says what is wrong with a repository, and nothing about one that is right."""

from __future__ import annotations

import hashlib
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from tidewaiter_core.payload import build_release
from tidewaiter_release.repository import Finding, Severity, Side, Store, lint, renew_media
from tidewaiter_release.repository.keys import generate
from tidewaiter_release.repository.signing import commit, prepare_online, write_files

from tests.sim.clock import FakeClock
from tests.sim.release_document import changed, release_fields
from tests.sim.repository import TestRepository

IMAGE = bytes(range(256)) * 1024
DAY_S = 86_400


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def repository(tmp_path: Path, clock: FakeClock) -> TestRepository:
    made = TestRepository(tmp_path / "world", clock=clock)
    made.add_release(IMAGE, "1.0", 1)
    return made


def findings(repository: TestRepository) -> list[Finding]:
    return lint(repository.store, clock=repository.clock)


def texts(repository: TestRepository, check: str, severity: Severity = Severity.ERROR) -> str:
    """The findings of one check."""
    return "\n".join(
        finding.text
        for finding in findings(repository)
        if (finding.check, finding.severity) == (check, severity)
    )


def test_a_repository_without_a_fault_has_no_findings(repository: TestRepository) -> None:
    repository.rotate_root("root")
    repository.add_release(IMAGE + b"x", "1.1", 2)
    assert findings(repository) == []


def test_a_role_in_the_last_quarter_of_its_life_is_a_warning(
    repository: TestRepository, clock: FakeClock
) -> None:
    clock.advance(0.7 * DAY_S)
    assert findings(repository) == []
    clock.advance(0.1 * DAY_S)
    assert texts(repository, "expiry", Severity.WARNING).startswith(
        "timestamp: expires at 2026-11-25T12:00:00Z"
    )


def test_an_expired_role_is_an_error(repository: TestRepository, clock: FakeClock) -> None:
    clock.advance(181 * DAY_S)
    repository.refresh()
    assert texts(repository, "expiry").startswith("os: expired at 2027-05-23")


def test_a_role_that_lives_longer_than_planned_is_an_error(tmp_path: Path, clock: FakeClock) -> None:
    repository = TestRepository(tmp_path / "long", clock=clock, lifetimes={"timestamp": timedelta(days=30)})
    assert texts(repository, "expiry") == "timestamp: valid for 30 days, at most 1 are allowed"


def test_a_missing_root_is_named(repository: TestRepository) -> None:
    repository.rotate_root()
    repository.rotate_root()
    (repository.metadata / "2.root.json").unlink()
    assert texts(repository, "roots").startswith("2.root.json is missing")


def test_an_empty_directory_is_no_repository(tmp_path: Path, clock: FakeClock) -> None:
    found = lint(Store(tmp_path), clock=clock)
    assert [str(finding).partition(":")[0] for finding in found] == ["error roots", "error metadata"]


@pytest.mark.parametrize("role", ["root", "targets", "os", "snapshot", "timestamp"])
def test_a_forged_role_does_not_verify(repository: TestRepository, role: str) -> None:
    repository.forge_metadata(role)
    assert "does not verify" in texts(repository, "metadata")


def test_a_lowered_threshold_is_an_error(repository: TestRepository) -> None:
    state = repository.store.load()
    delegations = state.targets.signed.delegations
    assert delegations is not None and delegations.roles is not None
    delegations.roles["os"].threshold = 1
    commit(repository.store, state, repository.desk, changed=["targets"])
    assert texts(repository, "threshold") == "os: 1 of 3 keys, expected 2 of 3"


def test_wider_paths_and_a_delegation_that_goes_on_are_errors(repository: TestRepository) -> None:
    state = repository.store.load()
    delegations = state.targets.signed.delegations
    assert delegations is not None and delegations.roles is not None
    delegations.roles["os"].paths = ["*/*/*/*"]
    delegations.roles["injector-firmware"].terminating = False
    commit(repository.store, state, repository.desk, changed=["targets"])
    found = texts(repository, "roles")
    assert (
        "os: signs ['*/*/*/*']" in found and "injector-firmware: its delegation is not terminating" in found
    )


def test_a_key_in_two_roles_is_an_error(repository: TestRepository) -> None:
    state = repository.store.load()
    root = state.root.signed
    root.add_key(root.keys[root.roles["snapshot"].keyids[0]], "timestamp")
    repository.desk.add_signatures("root", state.root, root)
    root.version += 1
    state.root.signatures.clear()
    repository.desk.add_signatures("root", state.root, root)
    repository.store.write(repository.metadata, "2.root.json", state.root.to_bytes())
    assert "shares key" in texts(repository, "keys")
    assert "timestamp: 1 of 2 keys" in texts(repository, "threshold")


def test_consistent_snapshot_turned_off_is_an_error(repository: TestRepository) -> None:
    state = repository.store.load()
    state.root.signed.consistent_snapshot = False
    state.root.signed.version += 1
    state.root.signatures.clear()
    repository.desk.add_signatures("root", state.root, state.root.signed)
    repository.store.write(repository.metadata, "2.root.json", state.root.to_bytes())
    assert "consistent_snapshot is off" in texts(repository, "roles")


def test_a_snapshot_that_names_too_much_or_says_too_little_is_an_error(repository: TestRepository) -> None:
    state = repository.store.load()
    meta = state.snapshot.signed.meta
    meta["extra.json"] = meta["targets.json"]
    meta["os.json"].hashes = None
    write_files(repository.store, prepare_online(state, repository.desk, renew_snapshot=True))
    found = texts(repository, "snapshot")
    assert "extra.json: named, but delegated by nobody" in found and "os.json: expected its length" in found


def test_a_target_outside_its_role_is_an_error(repository: TestRepository) -> None:
    repository.add_target("os", "firmware/head/1.0/image.bin", b"x")
    repository.add_target("targets", "releases/a/1/file", b"x")
    found = texts(repository, "target")
    assert (
        "firmware/head/1.0/image.bin: signed by os" in found
        and "releases/a/1/file: signed by targets" in found
    )


def test_a_permit_of_the_targets_role_is_in_order(repository: TestRepository) -> None:
    repository.add_target("targets", "permits/contrast-injector/0123456789abcdef.json", b"{}")
    renew_media(repository.store, repository.desk)
    assert findings(repository) == []


def test_a_path_that_no_device_accepts_is_an_error(repository: TestRepository) -> None:
    repository.add_target("os", "releases/a/.hidden/file", b"x")
    assert "no path that a device accepts" in texts(repository, "target")


def test_an_md5_only_or_double_hashed_target_is_an_error(repository: TestRepository) -> None:
    md5 = hashlib.md5(b"x", usedforsecurity=False).hexdigest()
    repository.add_target("os", "releases/a/1/md5", b"x", hashes={"md5": md5})
    both = {"sha256": hashlib.sha256(b"x").hexdigest(), "sha512": hashlib.sha512(b"x").hexdigest()}
    repository.add_target("os", "releases/a/1/two", b"x", hashes=both)
    found = texts(repository, "target")
    assert (
        "releases/a/1/md5: hashes ['md5']" in found
        and "releases/a/1/two: hashes ['sha256', 'sha512']" in found
    )


def test_a_damaged_shortened_or_missing_file_is_an_error(repository: TestRepository) -> None:
    slot = repository.add_release(IMAGE + b"y", "1.1", 2).release.slot
    repository.flip_byte(slot.pack.path, 64)
    repository.file_of(slot.index.path).unlink()
    path = repository.file_of("releases/contrast-injector/1.0/pack.twpk")
    path.write_bytes(path.read_bytes()[:-1])
    found = texts(repository, "file")
    assert f"{slot.pack.path}: sha256" in found
    assert f"{slot.index.path}: [Errno 2]" in found
    assert "releases/contrast-injector/1.0/pack.twpk:" in found and "bytes, signed as" in found


def test_a_file_that_nobody_signs_is_a_warning(repository: TestRepository) -> None:
    (repository.targets / "releases/contrast-injector/1.0/left-over").write_bytes(b"x")
    assert "left-over: no target" in texts(repository, "file", Severity.WARNING)


def test_releases_that_share_a_sequence_or_lower_the_epoch_are_errors(repository: TestRepository) -> None:
    first = repository.make_release(IMAGE + b"1", "2.0", 7, security_epoch=4)
    same = repository.make_release(IMAGE + b"2", "2.1", 7, security_epoch=4)
    lower = repository.make_release(IMAGE + b"3", "2.2", 8, security_epoch=3)
    for made in (first, same, lower):
        for part in (made.release.slot.index.path, made.release.slot.pack.path, made.path):
            repository.add_target("os", part, (made.directory / part.rpartition("/")[2]).read_bytes())
    found = texts(repository, "sequence")
    assert "versions 2.0 and 2.1 share 7" in found
    assert "security_epoch 3 is below 4" in found


def test_a_release_whose_parts_are_no_targets_of_the_right_role_is_an_error(
    repository: TestRepository,
) -> None:
    data = build_release(changed("components.2.version", "1.5.0"))
    repository.add_target("os", "releases/contrast-injector/2.4.1/release.json", data)
    repository.add_target("os", "firmware/head/1.4.0/image.bin", b"x")
    found = texts(repository, "release")
    assert "index.twci, which is no target of role os" in found
    assert "firmware/head/1.4.0/image.bin, which is no target of role injector-firmware" in found
    assert "brings head 1.5.0, outside its own firmware_compat" in texts(repository, "firmware")


def test_a_kernel_image_that_is_not_made_of_its_pieces_is_an_error(repository: TestRepository) -> None:
    repository.add_target(
        "os", "releases/contrast-injector/2.4.1/release.json", build_release(release_fields())
    )
    repository.add_target("os", "releases/contrast-injector/2.4.1/a.efi", bytes(9_000_000))
    assert "a.efi: the piece at 0 is not the one" in texts(repository, "kernel")


def test_a_release_document_under_another_name_is_an_error(repository: TestRepository) -> None:
    repository.add_target(
        "os", "releases/contrast-injector/9.9/release.json", build_release(changed("sequence", 9))
    )
    assert "9.9/release.json: says it is contrast-injector 2.4.1" in texts(repository, "release")


def test_a_signed_document_that_breaks_the_schema_is_an_error(repository: TestRepository) -> None:
    repository.add_target("os", "releases/contrast-injector/3.0/release.json", b'{"format":1}')
    assert "missing" in texts(repository, "release")


def test_an_index_that_contradicts_its_release_is_an_error(repository: TestRepository) -> None:
    made = repository.make_release(IMAGE + b"z", "1.1", 2)
    index = bytearray((made.directory / "index.twci").read_bytes())
    index[170] ^= 1  # the hash table no longer gives image_root
    pack = (made.directory / "pack.twpk").read_bytes()
    repository.add_target("os", made.path, (made.directory / "release.json").read_bytes())
    repository.add_target("os", made.release.slot.index.path, bytes(index))
    repository.add_target("os", made.release.slot.pack.path, pack)
    assert "release is refused" in texts(repository, "index")
    assert "with another length or hash" in texts(repository, "release")


def test_a_key_file_is_never_overwritten(repository: TestRepository) -> None:
    before = (repository.keys / "os-1.pem").read_bytes()
    with pytest.raises(Exception, match="never overwritten"):
        generate(repository.keys, "os", 1)
    assert (repository.keys / "os-1.pem").read_bytes() == before


def test_a_media_side_that_is_behind_is_a_warning(repository: TestRepository) -> None:
    for path in repository.keys.glob("media-timestamp-*"):
        path.unlink()
    repository.add_release(IMAGE + b"x", "1.1", 2)
    assert texts(repository, "media", Severity.WARNING).startswith("is behind the online side")


def test_a_media_file_that_differs_from_the_online_one_is_an_error(repository: TestRepository) -> None:
    path = repository.store.media.metadata / "2.os.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert texts(repository, "media") == "2.os.json: differs from the online file of the same version"


def test_a_repository_without_a_media_side_is_an_error(repository: TestRepository) -> None:
    shutil.rmtree(repository.repo / "media")
    assert texts(repository, "media") == "missing; no stick can be made from this repository"


def test_the_media_side_is_checked_like_the_online_side(repository: TestRepository, clock: FakeClock) -> None:
    (repository.store.media.metadata / "timestamp.json").write_bytes(b"x")
    assert "does not verify" in texts(repository, "metadata")
    renewed = TestRepository(repository.directory / "other", clock=clock)
    clock.advance(91 * DAY_S)
    assert "media-timestamp: expired at" in texts(renewed, "expiry")


def test_a_key_on_both_sides_is_an_error(repository: TestRepository) -> None:
    state, media = repository.store.load(), repository.store.media.load()
    root = media.root.signed
    shared = state.root.signed.keys[state.root.signed.roles["root"].keyids[0]]
    root.add_key(shared, "root")
    root.version += 1
    media.root.signatures.clear()
    repository.desk.add_signatures("root", media.root, root, side=Side.MEDIA)
    write_files(repository.store.media, {"2.root.json": media.root.to_bytes()})
    assert "media-root: shares key" in texts(repository, "keys")
    assert "media-root: 3 of 6 keys, expected 3 of 5" in texts(repository, "threshold")


def test_a_release_that_admits_devices_whose_data_it_cannot_read_is_an_error(
    repository: TestRepository,
) -> None:
    repository.add_release(IMAGE + b"x", "2.0", 2, data_writes=3, data_reads_min=2, data_reads_max=3)
    assert "admits sequence 1, whose data schema 1 it cannot read (2..3)" in texts(repository, "data")
    repository.add_release(
        IMAGE + b"y", "2.1", 3, data_writes=3, data_reads_min=2, data_reads_max=3, from_min=2
    )
    assert "2.1" not in texts(repository, "data")


def test_a_release_that_nobody_here_may_install_is_a_warning(repository: TestRepository) -> None:
    repository.add_release(IMAGE + b"x", "2.0", 5, from_min=4)
    assert "no release of this repository may install it directly" in texts(
        repository, "from", Severity.WARNING
    )


def test_an_irreversible_release_without_local_consent_is_a_warning(repository: TestRepository) -> None:
    repository.add_release(IMAGE + b"x", "2.0", 2, data_reversible=False)
    assert "devices ask for local consent" in texts(repository, "data", Severity.WARNING)


def test_expired_superseded_snapshots_go_and_every_root_stays(
    repository: TestRepository, clock: FakeClock
) -> None:
    repository.rotate_root()
    clock.advance(5 * DAY_S)
    repository.refresh()
    assert (
        repository.metadata / "2.snapshot.json"
    ).exists()  # a client in the middle of a session may ask for it
    clock.advance(5 * DAY_S)
    repository.refresh()
    left = sorted(path.name for path in repository.metadata.glob("*.snapshot.json"))
    assert "2.snapshot.json" not in left and len(left) == 2
    assert (repository.metadata / "1.root.json").exists() and (repository.metadata / "2.root.json").exists()


def test_a_file_that_only_the_media_side_names_is_in_order(repository: TestRepository) -> None:
    repository.add_target("support-authority", "authorities/support.json", b"{}")
    renew_media(repository.store, repository.desk)
    repository.add_target("support-authority", "authorities/support.json", b'{"a":1}')
    assert texts(repository, "file", Severity.WARNING) == ""
    renew_media(repository.store, repository.desk)
    assert "superseded, or left" in texts(repository, "file", Severity.WARNING)
