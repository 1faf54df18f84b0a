"""Clock, deadlines, stamps and the time floor."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from tidewaiter_core.clock import (
    ClockState,
    Deadline,
    SystemClock,
    TimeFloor,
    boot_id,
    format_utc,
    parse_utc,
)
from tidewaiter_core.errors import DeadlineError, StateError

from tests.sim.clock import START_UTC, FakeClock

IMAGE_UTC = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def synchronized(tmp_path: Path) -> Path:
    return tmp_path / "synchronized"


@pytest.fixture
def floor(tmp_path: Path, synchronized: Path) -> TimeFloor:
    return open_floor(tmp_path, synchronized)


def open_floor(tmp_path: Path, synchronized: Path, image_utc: datetime = IMAGE_UTC) -> TimeFloor:
    return TimeFloor(tmp_path / "floor.json", image_utc=image_utc, synchronized_file=synchronized)


def test_the_system_clock_is_aware_and_advances() -> None:
    clock = SystemClock()
    assert clock.now_utc().utcoffset() == timedelta(0)
    first = clock.boottime_s()
    clock.sleep(-1)
    assert clock.boottime_s() >= first


def test_a_wait_ends_when_the_event_is_set() -> None:
    event = threading.Event()
    assert SystemClock().wait(event, -5) is False
    event.set()
    assert SystemClock().wait(event, 10**12) is True


def test_a_deadline_counts_down_to_zero_and_names_what_was_late() -> None:
    clock = FakeClock()
    deadline = Deadline(clock, 5)
    clock.advance(4.5)
    deadline.check("reading the slot")
    assert deadline.remaining_s() == pytest.approx(0.5)
    clock.advance(1)
    assert deadline.expired
    assert deadline.remaining_s() == 0
    with pytest.raises(DeadlineError, match=r"reading the slot: not finished within 5 s; given up") as caught:
        deadline.check("reading the slot")
    assert caught.value.retryable


def test_a_deadline_ignores_a_step_of_the_wall_clock() -> None:
    clock = FakeClock()
    deadline = Deadline(clock, 5)
    clock.set_utc(START_UTC + timedelta(days=3000))
    assert not deadline.expired


def test_the_boot_id_comes_from_the_unit_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEWAITER_BOOT_ID", "0F1E2D3C-4B5A-6978-8796-A5B4C3D2E1F0")
    assert boot_id() == "0f1e2d3c4b5a69788796a5b4c3d2e1f0"


def test_the_boot_id_of_the_kernel_is_32_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TIDEWAITER_BOOT_ID", raising=False)
    assert len(boot_id()) == 32


def test_a_boot_id_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEWAITER_BOOT_ID", "%b")
    with pytest.raises(StateError, match="expected 32 hexadecimal digits"):
        boot_id()


def test_a_stamp_has_milliseconds_that_are_cut_not_rounded() -> None:
    assert format_utc(datetime(2026, 11, 24, 1, 2, 3, 999_999, tzinfo=UTC)) == "2026-11-24T01:02:03.999Z"


def test_a_stamp_is_utc_whatever_zone_it_came_in() -> None:
    assert (
        format_utc(datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:00:00.000Z"
    )


def test_a_time_without_zone_is_no_stamp() -> None:
    with pytest.raises(ValueError, match="without a time zone"):
        format_utc(datetime(2026, 1, 1))


def test_a_stamp_reads_back() -> None:
    assert parse_utc(format_utc(START_UTC)) == START_UTC
    assert parse_utc("2026-11-24T12:00:00Z") == START_UTC
    assert parse_utc("2026-11-24T12:00:00.25Z") == START_UTC + timedelta(milliseconds=250)


@pytest.mark.parametrize(
    "text",
    ["", "2026-11-24", "2026-11-24T12:00:00", "2026-11-24T12:00:00+00:00", "2026-11-24 12:00:00Z", "2026-13-01T00:00:00Z",
     "2026-11-24T12:00:60Z", "2026-11-24T12:00:00Z\n", "٢026-11-24T12:00:00Z"],
)  # fmt: skip
def test_another_spelling_is_no_time(text: str) -> None:
    with pytest.raises(ValueError):
        parse_utc(text)


def test_the_floor_starts_at_the_build_time_of_the_image(floor: TimeFloor) -> None:
    assert floor.utc == IMAGE_UTC


def test_a_signed_document_raises_the_floor_and_a_restart_remembers(
    floor: TimeFloor, tmp_path: Path, synchronized: Path
) -> None:
    signed_utc = datetime(2040, 5, 6, 7, 8, 9, 123_456, tzinfo=UTC)
    assert floor.raise_to(signed_utc, source="release")
    assert open_floor(tmp_path, synchronized).utc == floor.utc
    assert signed_utc - floor.utc < timedelta(milliseconds=1)


def test_an_older_document_does_not_lower_the_floor(floor: TimeFloor) -> None:
    floor.raise_to(START_UTC, source="release")
    assert not floor.raise_to(START_UTC - timedelta(days=1), source="release")
    assert not floor.raise_to(START_UTC, source="release")
    assert floor.utc == START_UTC


def test_an_older_image_does_not_lower_the_floor(
    floor: TimeFloor, tmp_path: Path, synchronized: Path
) -> None:
    floor.raise_to(START_UTC, source="release")
    older = open_floor(tmp_path, synchronized, image_utc=IMAGE_UTC - timedelta(days=900))
    assert older.utc == START_UTC


def test_a_newer_image_raises_the_floor(floor: TimeFloor, tmp_path: Path, synchronized: Path) -> None:
    floor.raise_to(START_UTC, source="release")
    newer = open_floor(tmp_path, synchronized, image_utc=START_UTC + timedelta(days=1))
    assert newer.utc == START_UTC + timedelta(days=1)


def test_a_lying_witness_moves_the_floor_by_400_days_at_most(floor: TimeFloor) -> None:
    assert floor.raise_to(datetime(2099, 1, 1, tzinfo=UTC), source="witness")
    assert floor.utc == IMAGE_UTC + timedelta(days=400)


def test_a_witness_cannot_creep_forward_400_days_at_a_time(
    floor: TimeFloor, tmp_path: Path, synchronized: Path
) -> None:
    floor.raise_to(datetime(2099, 1, 1, tzinfo=UTC), source="witness")
    again = open_floor(tmp_path, synchronized)
    assert not again.raise_to(datetime(2099, 1, 1, tzinfo=UTC), source="witness")
    assert again.utc == IMAGE_UTC + timedelta(days=400)


def test_the_floor_is_not_used_if_it_could_not_be_stored(tmp_path: Path, synchronized: Path) -> None:
    floor = TimeFloor(tmp_path / "gone" / "floor.json", image_utc=IMAGE_UTC, synchronized_file=synchronized)
    with pytest.raises(StateError):
        floor.raise_to(START_UTC, source="release")
    assert floor.utc == IMAGE_UTC


@pytest.mark.parametrize(
    "content", ['{"schema":1}', '{"schema":1,"proven_utc":"x","witness_utc":"y"}', "no json"]
)
def test_an_unreadable_floor_is_an_error_and_left_alone(
    tmp_path: Path, synchronized: Path, content: str
) -> None:
    (tmp_path / "floor.json").write_text(content)
    with pytest.raises(StateError, match="left as it is"):
        open_floor(tmp_path, synchronized)
    assert (tmp_path / "floor.json").read_text() == content


def test_trusted_now_is_the_floor_when_the_clock_is_in_1970(floor: TimeFloor) -> None:
    clock = FakeClock(datetime(1970, 1, 1, tzinfo=UTC))
    assert floor.trusted_now(clock) == IMAGE_UTC
    assert floor.state(clock) is ClockState.UNSET


def test_trusted_now_is_the_system_time_when_it_is_above_the_floor(floor: TimeFloor) -> None:
    assert floor.trusted_now(FakeClock()) == START_UTC


def test_a_clock_nobody_confirmed_is_rtc_and_one_with_the_file_is_synced(
    floor: TimeFloor, synchronized: Path
) -> None:
    clock = FakeClock()
    assert floor.state(clock) is ClockState.RTC
    synchronized.touch()
    assert floor.state(clock) is ClockState.SYNCED


def test_a_clock_ten_years_ahead_of_the_floor_is_suspect(floor: TimeFloor) -> None:
    assert floor.state(FakeClock(IMAGE_UTC + timedelta(days=3700))) is ClockState.SUSPECT


def test_a_step_without_synchronization_makes_the_clock_suspect_until_it_is_synchronized(
    floor: TimeFloor, synchronized: Path
) -> None:
    clock = FakeClock()
    assert floor.state(clock) is ClockState.RTC
    clock.advance(10)
    clock.set_utc(clock.now_utc() + timedelta(seconds=3))
    assert floor.state(clock) is ClockState.SUSPECT
    clock.advance(10)
    assert floor.state(clock) is ClockState.SUSPECT
    synchronized.touch()
    assert floor.state(clock) is ClockState.SYNCED


def test_a_step_tells_its_size_and_drift_is_no_step(floor: TimeFloor) -> None:
    clock = FakeClock()
    assert floor.observe_step_s(clock) == 0
    clock.advance(10)
    clock.set_utc(clock.now_utc() + timedelta(seconds=1.5))
    assert floor.observe_step_s(clock) == 0
    clock.set_utc(clock.now_utc() - timedelta(hours=1))
    assert floor.observe_step_s(clock) == pytest.approx(-3600)


def test_the_fake_clock_calls_what_was_planned_at_its_moment() -> None:
    clock = FakeClock()
    event = threading.Event()
    clock.call_at(3, event.set)
    start_s = clock.boottime_s()
    assert clock.wait(event, 2) is False
    assert clock.wait(event, 60) is True
    assert clock.boottime_s() - start_s == pytest.approx(3)
