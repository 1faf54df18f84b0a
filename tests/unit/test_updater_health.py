"""Each named check: what makes it green, and what does not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data
from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.health import CheckList, MediumCheck, RootCheck, Trial
from tidewaiter_updater.health_system import (
    ClockCheck,
    DataCheck,
    DiskCheck,
    HalCheck,
    InjectorCheck,
    ServerCheck,
    UnitsCheck,
    WatchdogCheck,
)
from tidewaiter_updater.model import CheckResult, DataState, DataStatus
from tidewaiter_updater.ports import NoDataSets

from tests.sim.clock import START_UTC, FakeClock
from tests.sim.device import Device, Made

OK, FAIL, SKIPPED = CheckResult.OK, CheckResult.FAIL, CheckResult.SKIPPED


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def made(device: Device) -> Made:
    return device.make("2.0", 2, health={"required": ["hal", "server"], "deadline_s": 60, "hold_s": 0})


def trial(made: Made, *, proven: str = "") -> Trial:
    return Trial(slot=SlotName.B, release=made.release, network_proven_utc=proven)


def test_root_is_green_when_the_booted_image_is_the_release(
    device: Device, made: Made, tmp_path: Path
) -> None:
    (tmp_path / "slot").write_bytes(b"")
    identity = device.identities[tuple(made.image)]
    check = RootCheck(identity, slot_path=lambda slot: tmp_path / "slot", mountinfo=tmp_path / "none")
    assert check.run(trial(made)).result is OK


def test_another_release_in_the_booted_root_is_final(device: Device, made: Made, tmp_path: Path) -> None:
    identity = replace(device.identities[tuple(made.image)], version="1.9")
    result = RootCheck(identity, slot_path=lambda slot: tmp_path, mountinfo=tmp_path / "none").run(
        trial(made)
    )
    assert (result.result, result.is_final) == (FAIL, True)


def test_medium_reads_the_whole_slot_once(device: Device, made: Made) -> None:
    device.storage.slots[SlotName.B] = list(made.image)
    check = MediumCheck(device.slots)
    assert check.run(trial(made)).result is OK
    device.storage.slots[SlotName.B][0] = "rot"
    assert check.run(trial(made)).result is OK
    result = MediumCheck(device.slots).run(trial(made))
    assert (result.result, result.is_final) == (FAIL, True)


def test_medium_is_skipped_when_the_release_document_is_lost(device: Device) -> None:
    lost = Trial(slot=SlotName.B, release=None, network_proven_utc="")
    assert MediumCheck(device.slots).run(lost).result is SKIPPED


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("active\nactive\n", OK), ("active\nfailed\n", FAIL), ("active\n", FAIL), ("", FAIL)],
)
def test_units_are_green_when_all_are_active(made: Made, answer: str, expected: CheckResult) -> None:
    def show(units: Sequence[str]) -> str:
        return answer

    assert UnitsCheck(["a.service", "b.service"], show=show).run(trial(made)).result is expected


def test_units_are_skipped_when_none_are_configured(made: Made) -> None:
    assert UnitsCheck([]).run(trial(made)).result is SKIPPED


def test_a_hal_that_does_not_answer_is_not_green(made: Made, tmp_path: Path) -> None:
    assert HalCheck(tmp_path / "no.sock").run(trial(made)).result is FAIL
    assert InjectorCheck(tmp_path / "no.sock").run(trial(made)).result is FAIL


class ToySets(NoDataSets):
    """Says what a test wants."""

    def __init__(self, state: DataState, code: str = "") -> None:
        self._status = DataStatus(state=state, code=code, detail="toy")

    def status(self) -> DataStatus:
        return self._status


def data_check(
    device: Device,
    *,
    unreadable: str | None = None,
    state: DataState = DataState.READY,
    code: str = "",
    data: Data | None = None,
) -> DataCheck:
    identity = replace(next(iter(device.identities.values())), data=data)
    return DataCheck(lambda: unreadable, sets=ToySets(state, code), identity=identity)


def test_data_says_what_cannot_be_read(device: Device, made: Made) -> None:
    assert data_check(device).run(trial(made)).result is OK
    found = data_check(device, unreadable="journal.json: damaged").run(trial(made))
    assert found.detail == "journal.json: damaged"


def test_a_data_set_that_is_still_being_made_is_not_green_and_not_final(device: Device, made: Made) -> None:
    found = data_check(device, state=DataState.WORKING).run(trial(made))
    assert (found.result, found.is_final) == (FAIL, False)


def test_a_data_step_that_failed_is_final_and_says_its_code(device: Device, made: Made) -> None:
    found = data_check(device, state=DataState.FAILED, code="data.program").run(trial(made))
    assert (found.result, found.is_final, found.detail) == (FAIL, True, "data.program: toy")


def test_an_image_that_does_not_say_what_its_release_says_of_its_data_is_not_healthy(device: Device) -> None:
    bad = {"writes": 1, "reads_min": 1, "reads_max": 1, "reversible": False}
    made = device.make("3.0", 3, data=bad)
    told = Data(writes=1, reads_min=1, reads_max=1, reversible=False)
    assert data_check(device, data=told).run(trial(made)).result is OK
    assert data_check(device).run(trial(made)).is_final
    assert data_check(device, data=replace(told, writes=0, reads_min=0)).run(trial(made)).is_final


@pytest.mark.parametrize(
    ("floor", "expected"),
    [("", OK), ("2026-11-24T11:00:00.000Z", OK), ("2026-11-24T13:00:00.000Z", FAIL)],
)
def test_a_clock_below_the_floor_is_not_green(made: Made, floor: str, expected: CheckResult) -> None:
    assert ClockCheck(FakeClock(), floor_utc=lambda: floor).run(trial(made)).result is expected


def test_a_clock_that_was_below_the_floor_before_is_no_fault_of_the_release(made: Made) -> None:
    before = replace(trial(made), clock_was_low=True)
    check = ClockCheck(FakeClock(), floor_utc=lambda: "2026-11-24T13:00:00.000Z")
    assert check.run(before).result is SKIPPED


def test_a_folder_that_cannot_be_written_is_not_green(made: Made, tmp_path: Path) -> None:
    result = CheckList([DiskCheck(tmp_path / "missing")]).run(SlotName.B, made.release, network_proven_utc="")
    assert next(check for check in result if check.name == "disk").result is FAIL


@pytest.mark.parametrize(("state", "expected"), [("active\n", OK), ("inactive\n", FAIL), (None, SKIPPED)])
def test_the_watchdog_runs_where_there_is_one(
    made: Made, tmp_path: Path, state: str | None, expected: CheckResult
) -> None:
    if state is not None:
        (tmp_path / "state").write_text(state)
    assert WatchdogCheck(tmp_path / "state").run(trial(made)).result is expected


def test_the_server_counts_only_if_it_was_reached_before(made: Made) -> None:
    def unreachable() -> None:
        raise SourceError("offline")

    check = ServerCheck(FakeClock(), reach=unreachable)
    assert check.run(trial(made)).result is SKIPPED
    lately = trial(made, proven=format_utc(START_UTC))
    results = CheckList([check]).run(SlotName.B, made.release, network_proven_utc=lately.network_proven_utc)
    assert results[0].result is FAIL


def test_the_server_is_skipped_when_the_release_does_not_ask_for_it(device: Device) -> None:
    plain = device.make("3.0", 3)
    check = ServerCheck(FakeClock(), reach=lambda: None)
    assert check.run(trial(plain, proven=format_utc(START_UTC))).result is SKIPPED


def test_a_required_check_that_nobody_knows_is_final(device: Device) -> None:
    made = device.make("3.0", 3, health={"required": ["telepathy"], "deadline_s": 60, "hold_s": 0})
    results = CheckList([]).run(SlotName.B, made.release, network_proven_utc="")
    assert [(check.name, check.result, check.is_final) for check in results] == [("telepathy", FAIL, True)]
