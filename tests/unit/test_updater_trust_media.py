"""Media under their own root, and downgrade permits, through the child."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import Sha256
from tidewaiter_release.repository import renew_media
from tidewaiter_updater.errors import SourceError, TrustError
from tidewaiter_updater.model import FloorValues

from tests.sim.relay import relaying
from tests.sim.repository import MadeRelease, TestRepository
from tests.sim.trust_device import STICK, Stick, TrustDevice

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


@pytest.fixture
def stick(device: TrustDevice, repository: TestRepository, tmp_path: Path) -> Stick:
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


def test_an_unknown_kind_of_source_is_not_asked(device: TrustDevice, made: MadeRelease) -> None:
    with pytest.raises(SourceError, match="expected relay or directory:"):
        device.child().check("https://example", made.path)


PERMIT = "permits/contrast-injector/0123456789abcdef.json"


def test_a_permit_is_what_the_targets_role_signs(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    assert device.child().permit("relay", PERMIT) is None
    repository.add_target("targets", PERMIT, b"{}")
    assert device.child().permit("relay", PERMIT) == b"{}"


def test_a_permit_that_the_os_role_signs_is_none(
    device: TrustDevice, repository: TestRepository, made: MadeRelease
) -> None:
    repository.add_target("os", PERMIT, b"{}")
    assert device.child().permit("relay", PERMIT) is None


def test_only_permits_can_be_asked_for_as_permits(device: TrustDevice, made: MadeRelease) -> None:
    with pytest.raises(TrustError) as caught:
        device.child().permit("relay", made.path)
    assert caught.value.code == "trust.target"
