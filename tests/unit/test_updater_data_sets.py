"""What the updater knows of the data sets, and when it asks the root program for more."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data
from tidewaiter_updater.boot import SlotMismatchError
from tidewaiter_updater.data_sets import (
    DeviceDataSets,
    Progress,
    raise_flag,
    read_progress,
    write_progress,
)
from tidewaiter_updater.model import BootEnv, DataState
from tidewaiter_updater.set_store import SetReader

from tests.sim.clock import FakeClock
from tests.sim.data_sets import BOTH_OK, FIRST, SECOND, SetsWorld, trial_env

BOOT_ID = "b" * 32
COMMITTED = BootEnv(committed=SlotName.B, ok_a=True, ok_b=True, txn="a" * 16, armboot="1" * 8)


@dataclass
class Loader:
    """BootControl that says what a test wants."""

    env: BootEnv | None
    slot: SlotName
    is_disputed: bool = False

    def read(self) -> BootEnv | None:
        return self.env

    def booted(self) -> SlotName:
        if self.is_disputed:
            raise SlotMismatchError("command line and root device disagree")
        return self.slot

    def write(self, env: BootEnv) -> None:
        raise NotImplementedError


@dataclass
class Desk:
    """The port over a directory of sets."""

    world: SetsWorld
    loader: Loader = field(default_factory=lambda: Loader(BOTH_OK, SlotName.A))
    data: Data = FIRST
    progress: Progress | None = None
    reserve_bytes: int = 0
    asked: int = 0
    clock: FakeClock = field(default_factory=FakeClock)

    def port(self) -> DeviceDataSets:
        return DeviceDataSets(
            SetReader(self.world.folder),
            self.data,
            boot=self.loader,
            boot_id=BOOT_ID,
            progress=lambda: self.progress,
            ask=self._ask,
            clock=self.clock,
            keep=timedelta(days=30),
            reserve_bytes=lambda: self.reserve_bytes,
        )

    def on_trial(self) -> Desk:
        self.loader, self.data = Loader(trial_env(), SlotName.B), SECOND
        return self

    def _ask(self) -> None:
        self.asked += 1


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(SetsWorld(tmp_path / "sets").born())


def said(state: DataState, **more: str) -> Progress:
    return Progress(boot_id=BOOT_ID, state=state, **more)  # type: ignore[arg-type]


def test_a_set_that_is_there_is_ready_whatever_was_said_of_it(desk: Desk) -> None:
    desk.progress = said(DataState.FAILED, code="data.io", detail="from an earlier attempt")
    assert desk.port().status().state is DataState.READY


def test_a_set_that_is_not_there_is_waited_for_until_the_root_program_says_no(desk: Desk) -> None:
    port = desk.on_trial().port()
    assert port.status().state is DataState.WORKING
    desk.progress = said(DataState.WORKING, step="copy")
    assert "copy" in port.status().detail
    desk.progress = replace(said(DataState.FAILED, code="data.program", detail="x"), boot_id="another boot")
    assert port.status().state is DataState.WORKING
    desk.progress = said(DataState.FAILED, code="data.program", detail="1-2-x: failed")
    found = port.status()
    assert (found.state, found.code, found.detail) == (DataState.FAILED, "data.program", "1-2-x: failed")
    desk.world.try_second()
    assert port.status().state is DataState.READY


def test_a_word_of_success_makes_no_set(desk: Desk) -> None:
    port = desk.on_trial().port()
    desk.progress = said(DataState.READY)
    assert port.status().state is DataState.WORKING


def test_the_root_program_is_asked_once_a_minute_while_there_is_something_for_it(desk: Desk) -> None:
    port = desk.port()
    for _ in range(3):
        port.upkeep()
    assert desk.asked == 1  # nobody measured the live set yet
    desk.clock.advance(60)
    port.upkeep()
    assert desk.asked == 2
    desk.world.run(FIRST, BOTH_OK, SlotName.A).settle()
    desk.clock.advance(60)
    port.upkeep()
    assert desk.asked == 2
    (desk.world.folder / "2.tmp").mkdir()
    port.upkeep()
    assert desk.asked == 3


@pytest.mark.parametrize("booted", [SlotName.B, None])
def test_nothing_is_asked_for_in_a_trial_or_where_the_slot_is_disputed(
    desk: Desk, booted: SlotName | None
) -> None:
    desk.on_trial()
    desk.loader = Loader(trial_env(), SlotName.B, is_disputed=booted is None)
    desk.port().upkeep()
    assert desk.asked == 0


def test_a_committed_release_is_settled_once_its_set_is_the_live_one(desk: Desk) -> None:
    port = desk.on_trial().port()
    desk.world.try_second()
    desk.loader.env = COMMITTED
    assert not port.is_settled()
    port.upkeep()
    assert desk.asked == 1
    desk.world.run(SECOND, COMMITTED, SlotName.B).settle()
    assert port.is_settled()


def test_a_step_that_would_not_fit_says_how_much_is_missing(desk: Desk) -> None:
    port = desk.port()
    assert port.shortage(SECOND) is None
    desk.reserve_bytes = 1 << 60
    assert port.shortage(FIRST) is None  # no step, no copy
    assert f"needs {1 << 60} free bytes" in str(port.shortage(SECOND))


def test_a_directory_that_cannot_be_read_stops_nothing_but_the_next_trial(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    desk.world.folder = tmp_path / "file"
    port = desk.port()
    port.upkeep()
    assert not port.is_settled()
    assert (port.status().state, port.status().code) == (DataState.FAILED, "data.io")
    desk.world.folder = tmp_path / "absent"
    port = desk.port()
    assert port.status().state is DataState.WORKING
    assert "cannot be prepared" in str(port.shortage(SECOND))


def test_what_the_root_program_says_is_read_back_and_garbage_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    told = said(DataState.WORKING, step="programs")
    write_progress(path, told)
    assert read_progress(path) == told
    for garbage in (b"", b"[]", b'{"schema": 1}', b'{"schema": 1, "boot_id": 1, "state": "no"}'):
        path.write_bytes(garbage)
        assert read_progress(path) is None


def test_a_flag_that_cannot_be_raised_is_no_reason_to_stop(tmp_path: Path) -> None:
    raise_flag(tmp_path / "settle/now")
    (tmp_path / "settle").mkdir()
    raise_flag(tmp_path / "settle/now")
    raise_flag(tmp_path / "settle/now")
    assert (tmp_path / "settle/now").exists()
