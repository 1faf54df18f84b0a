"""When WATCHDOG=1 goes out and when it does not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.notify import Notifier

from tests.sim.clock import FakeClock
from tests.sim.service_manager import ServiceManager

PING = ["WATCHDOG=1"]


class World:
    """A heartbeat of a process with WatchdogSec=10, on a false clock and a real socket."""

    def __init__(self, root: Path) -> None:
        self.manager = ServiceManager(root / "notify")
        self.clock = FakeClock()
        self.notifier = Notifier.from_environment()
        self.last_gasp = root / "last_gasp"
        self.heartbeat = Heartbeat(self.clock, self.notifier, last_gasp=self.last_gasp)

    def tick(self) -> list[str]:
        """Let the main thread look once; the datagrams it sent."""
        self.heartbeat.tick()
        return self.manager.received()


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "10000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    one = World(tmp_path)
    yield one
    one.notifier.close()
    one.manager.close()


def test_progress_of_every_beat_is_one_ping(world: World) -> None:
    first = world.heartbeat.beat("link", deadline_s=5)
    second = world.heartbeat.beat("service", deadline_s=5)
    first.step()
    second.step()
    assert world.tick() == PING


def test_a_beat_that_did_not_move_withholds_the_ping(world: World) -> None:
    first = world.heartbeat.beat("link", deadline_s=5)
    second = world.heartbeat.beat("service", deadline_s=5)
    first.step()
    second.step()
    world.tick()
    first.step()
    assert world.tick() == []
    second.step()
    assert world.tick() == PING


def test_a_beat_that_never_stepped_withholds_the_ping(world: World) -> None:
    world.heartbeat.beat("link", deadline_s=5)
    assert world.tick() == []


def test_a_missed_beat_triggers_the_watchdog_and_leaves_its_reason(world: World) -> None:
    beat = world.heartbeat.beat("link", deadline_s=5)
    beat.step()
    world.clock.advance(5.5)
    assert world.heartbeat.check() == ["link"]
    assert world.tick() == ["WATCHDOG=trigger"]
    assert "link without progress for 5.5 s (limit 5 s)" in world.last_gasp.read_text()


def test_a_suspended_machine_is_no_missed_beat_but_a_worker_that_stays_stuck_is(world: World) -> None:
    beat = world.heartbeat.beat("link", deadline_s=5)
    beat.step()
    assert world.tick() == PING
    world.clock.advance(3600)  # the main thread slept as well: nobody can have made progress
    assert world.tick() == []
    world.clock.advance(2.5)
    assert world.tick() == ["WATCHDOG=trigger"]


def test_a_moving_beat_does_not_excuse_a_missed_one(world: World) -> None:
    alive = world.heartbeat.beat("service", deadline_s=5)
    world.heartbeat.beat("link", deadline_s=5)
    world.clock.advance(6)
    alive.step()
    assert world.heartbeat.check() == ["link"]
    assert world.tick() == ["WATCHDOG=trigger"]


def test_a_missed_beat_is_logged_once_and_again_after_recovery(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    beat = world.heartbeat.beat("link", deadline_s=5)
    world.clock.advance(6)
    world.tick()
    world.tick()
    assert caplog.text.count("heartbeat.missed") == 1
    beat.step()
    assert world.tick() == PING
    world.clock.advance(6)
    world.tick()
    assert caplog.text.count("heartbeat.missed") == 2


def test_a_beat_that_is_not_required_does_not_count(world: World) -> None:
    required = world.heartbeat.beat("link", deadline_s=5)
    world.heartbeat.beat("updates", deadline_s=5, required=False)
    world.clock.advance(6)
    required.step()
    assert world.heartbeat.check() == []
    assert world.tick() == PING


def test_a_forgotten_beat_does_not_count(world: World) -> None:
    beat = world.heartbeat.beat("session", deadline_s=5)
    world.heartbeat.forget(beat)
    world.clock.advance(6)
    assert world.heartbeat.check() == []


def test_a_process_without_required_beats_pings(world: World) -> None:
    assert world.tick() == PING
    assert world.tick() == PING


def test_a_ping_that_was_not_taken_is_repeated_without_new_progress(world: World) -> None:
    beat = world.heartbeat.beat("link", deadline_s=5)
    beat.step()
    while world.notifier.status("fill the queue"):
        pass
    world.heartbeat.tick()
    world.manager.received()
    assert world.tick() == PING


def test_a_long_wait_keeps_the_watchdog_quiet(world: World) -> None:
    beat = world.heartbeat.beat("poller", deadline_s=8)
    beat.wait(threading.Event(), 900)
    assert max(world.clock.waits_s) <= world.heartbeat.watchdog_interval_s
    assert beat.counter >= 360


def test_a_wait_ends_when_its_event_is_set(world: World) -> None:
    beat = world.heartbeat.beat("poller", deadline_s=8)
    event = threading.Event()
    start_s = world.clock.boottime_s()
    world.clock.call_at(100, event.set)
    assert beat.wait(event, 900)
    assert world.clock.boottime_s() - start_s == pytest.approx(100)


def test_a_wait_takes_exactly_its_time(world: World) -> None:
    beat = world.heartbeat.beat("poller", deadline_s=8)
    start_s = world.clock.boottime_s()
    assert not beat.wait(threading.Event(), 31)
    assert world.clock.boottime_s() - start_s == pytest.approx(31)


def test_two_beats_of_one_name_are_a_programming_error(world: World) -> None:
    world.heartbeat.beat("link", deadline_s=5)
    with pytest.raises(ValueError, match="two beats are named 'link'"):
        world.heartbeat.beat("link", deadline_s=5)


def test_a_deadline_beyond_the_watchdog_is_pointed_out(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.heartbeat.beat("poller", deadline_s=60)
    assert "beat poller has 60 s, the service watchdog only 10 s" in caplog.text


def test_the_main_thread_looks_four_times_per_watchdog_period(world: World) -> None:
    assert (world.heartbeat.watchdog_s, world.heartbeat.watchdog_interval_s) == (10, 2.5)


@pytest.mark.parametrize(("usec", "pid"), [("", None), ("0", None), ("x", None), ("10000000", "1")])
def test_a_watchdog_that_is_off_or_for_another_process_is_none(
    monkeypatch: pytest.MonkeyPatch, usec: str, pid: str | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert Heartbeat(FakeClock(), Notifier(None)).watchdog_s is None
