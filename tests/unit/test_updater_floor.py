"""Floors rise, survive, and never sink; versions of replaced keys start anew."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tidewaiter_core.errors import StateError
from tidewaiter_updater.errors import TrustError
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.model import FloorValues
from tidewaiter_updater.trust_versions import RoleFloor, Versions, require_not_below

BUILT = datetime(2026, 3, 1, tzinfo=UTC)


def at(version: int, keys: str = "a") -> RoleFloor:
    return RoleFloor(version=version, keys=keys * 64)


def all_at(version: int, **changed: RoleFloor) -> Versions:
    return {role: at(version) for role in ("root", "timestamp", "snapshot", "targets", "os")} | changed


def refused(floors: Versions, found: Versions) -> bool:
    try:
        require_not_below(floors, found)
    except TrustError as err:
        assert err.code == "trust.rollback"
        return True
    return False


@pytest.mark.parametrize("role", ["root", "timestamp", "snapshot", "targets", "os"])
def test_a_lower_version_of_any_role_is_refused(role: str) -> None:
    assert refused(all_at(5), all_at(5, **{role: at(4)}))
    assert not refused(all_at(5), all_at(5, **{role: at(6)}))


@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_new_keys_of_an_online_role_restart_every_history_but_that_of_root(role: str) -> None:
    found = all_at(5, timestamp=at(1), snapshot=at(1), targets=at(1), os=at(1))
    assert refused(all_at(5), found)
    found = {**found, role: at(1, "b")}
    assert not refused(all_at(5), found)
    assert refused(all_at(5), {**found, "root": at(4)})


def test_a_version_that_only_a_stolen_snapshot_key_named_ends_with_that_key() -> None:
    # The floor of a role comes from the snapshot, whether or not anybody fetched the role's own file.
    floors = all_at(5, os=at(2**31))
    assert refused(floors, all_at(6))
    assert not refused(floors, all_at(6, snapshot=at(6, "b")))


def test_new_keys_of_a_role_restart_its_own_history_but_never_that_of_root() -> None:
    assert not refused(all_at(5), all_at(5, os=at(1, "b")))
    assert refused(all_at(5), all_at(5, root=at(4, "b")))


def test_a_restarted_floor_is_the_new_version(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floor.json")
    floors.record_session("online", all_at(9), proven_utc=None)
    floors.record_session("online", all_at(9, timestamp=at(2, "b")), proven_utc=None)
    assert FloorStore(tmp_path / "floor.json").versions("online")["timestamp"] == at(2, "b")


def test_a_role_that_is_not_named_keeps_its_floor_until_its_history_restarts(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floor.json")
    floors.record_session("online", all_at(5, os=at(2**31)), proven_utc=None)
    unnamed = {role: floor for role, floor in all_at(6).items() if role != "os"}
    floors.record_session("online", unnamed, proven_utc=None)
    assert floors.versions("online")["os"] == at(2**31)
    floors.record_session("online", {**unnamed, "snapshot": at(7, "b")}, proven_utc=None)
    assert "os" not in floors.versions("online")


def test_a_session_below_the_floors_changes_nothing(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floor.json")
    floors.record_session("online", all_at(9), proven_utc=BUILT)
    before = (tmp_path / "floor.json").read_bytes()
    with pytest.raises(TrustError):
        floors.record_session("online", all_at(10, os=at(8)), proven_utc=None)
    assert (tmp_path / "floor.json").read_bytes() == before


def test_each_repository_has_its_own_versions(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floor.json")
    floors.record_session("online", all_at(9), proven_utc=None)
    floors.record_session("media", all_at(2), proven_utc=None)
    assert floors.versions("online")["os"].version == 9
    assert floors.versions("media")["os"].version == 2


def test_the_effective_floor_is_the_maximum_of_all_copies(tmp_path: Path) -> None:
    (tmp_path / "image.json").write_text('{"schema": 1, "sequence": 5, "security_epoch": 1}')
    floors = FloorStore(
        tmp_path / "floor.json", image_file=tmp_path / "image.json", image_utc=BUILT, boot_epoch=lambda: 2
    )
    floors.raise_committed(FloorValues(sequence=4, security_epoch=1, time_utc="2026-02-01T00:00:00.000Z"))
    values = floors.effective()
    assert (values.sequence, values.security_epoch, values.time_utc) == (5, 2, "2026-03-01T00:00:00.000Z")


def test_committed_floors_never_sink(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floor.json")
    floors.raise_committed(FloorValues(sequence=7, security_epoch=3, time_utc=""))
    floors.raise_committed(FloorValues(sequence=6, security_epoch=2, time_utc=""))
    again = FloorStore(tmp_path / "floor.json").effective()
    assert (again.sequence, again.security_epoch) == (7, 3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"schema": 1, "sequence": -1}',
        '{"schema": 1, "sequence": "7"}',
        '{"schema": 1, "time_utc": "yesterday"}',
        '{"schema": 1, "repositories": []}',
        '{"schema": 1, "repositories": {"online": {"os": {"version": 0, "keys": "aa"}}}}',
        '{"schema": 9}',
    ],
)
def test_damaged_floors_are_kept_aside_and_reported(tmp_path: Path, text: str) -> None:
    (tmp_path / "floor.json").write_text(text)
    floors = FloorStore(tmp_path / "floor.json", image_utc=BUILT)
    assert floors.lost is not None and "corrupt" in floors.lost
    assert [path.read_text() for path in tmp_path.glob("floor.json.corrupt-*")] == [text]
    assert floors.effective().sequence == 0
    floors.raise_committed(FloorValues(sequence=1, security_epoch=0, time_utc=""))
    assert FloorStore(tmp_path / "floor.json").lost is None


def test_a_damaged_floor_file_in_the_image_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "image.json").write_text("{}")
    with pytest.raises(StateError, match=r"image\.json"):
        FloorStore(tmp_path / "floor.json", image_file=tmp_path / "image.json")


def test_version_floors_of_a_newer_image_outlast_an_older_floor_file(tmp_path: Path) -> None:
    FloorStore(tmp_path / "image.json").record_session("online", all_at(9), proven_utc=None)
    FloorStore(tmp_path / "floor.json").record_session("online", all_at(8, os=at(12)), proven_utc=None)
    floors = FloorStore(tmp_path / "floor.json", image_file=tmp_path / "image.json")
    assert floors.versions("online") == all_at(9, os=at(12))
    with pytest.raises(TrustError):
        floors.record_session("online", all_at(8, os=at(12)), proven_utc=None)


def test_a_history_restarted_under_new_keys_is_not_held_to_the_image(tmp_path: Path) -> None:
    FloorStore(tmp_path / "image.json").record_session("online", all_at(9), proven_utc=None)
    floors = FloorStore(tmp_path / "floor.json", image_file=tmp_path / "image.json")
    floors.record_session("online", all_at(9, timestamp=at(1, "b"), snapshot=at(1)), proven_utc=None)
    assert floors.versions("online")["timestamp"] == at(1, "b")
    assert floors.versions("online")["snapshot"] == at(1)
