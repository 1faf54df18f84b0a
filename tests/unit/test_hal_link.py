"""The link state machine: alone for its edges, and with driver and simulator for its promises."""

import random

import pytest
from tidewaiter_hal.link import Link, Step
from tidewaiter_hal.model import LinkState, Quality, State

from tests.sim.injector_bench import Bench


def _link(baud: int = 115_200) -> Link:
    return Link(baud=baud, rng=random.Random(1))


def _up(link: Link, now_s: float = 0.0) -> Link:
    link.tick(now_s)
    link.opened(now_s)
    for _ in range(3):
        link.sampled(7, now_s)
    return link


def _state(link: Link) -> LinkState:
    return link.state


def test_three_samples_of_one_boot_end_the_synchronization() -> None:
    link = _link()
    assert link.tick(0.0) is Step.OPEN
    assert link.opened(0.0) is Step.SYNC
    for boot in (1, 2, 2):
        link.sampled(boot, 1.0)
    assert _state(link) is LinkState.SYNCING
    link.sampled(2, 1.2)
    assert _state(link) is LinkState.UP


def test_two_unanswered_requests_degrade_and_three_answers_recover() -> None:
    link = _up(_link())
    link.unanswered()
    assert _state(link) is LinkState.UP
    link.unanswered()
    assert _state(link) is LinkState.DEGRADED
    for _ in range(3):
        link.answered(1.0)
    assert _state(link) is LinkState.UP


def test_three_failed_synchronizations_close_the_port() -> None:
    link, now_s, closed = _link(), 0.0, False
    link.tick(now_s)
    link.opened(now_s)
    steps = []
    while not closed and now_s < 60:
        now_s += 0.1
        step = link.tick(now_s)
        if step is not Step.NOTHING:
            steps.append(step)
        closed = link.state is LinkState.CLOSED
    assert steps == [Step.FLUSH, Step.SYNC, Step.FLUSH, Step.SYNC, Step.FLUSH, Step.CLOSE]


def test_back_off_doubles_up_to_eight_seconds_and_a_node_that_appears_ends_it() -> None:
    link, now_s, waits = _link(), 0.0, []
    for _ in range(8):
        assert link.tick(now_s) is Step.OPEN
        link.open_failed("port-absent", now_s)
        waits.append(link.deadline() - now_s)
        now_s = link.deadline()
    for wait, base in zip(waits, (0.25, 0.5, 1, 2, 4, 8, 8, 8), strict=True):
        assert 0.75 * base <= wait <= 1.25 * base
    link.tick(now_s)
    link.open_failed("port-absent", now_s)
    link.appeared(now_s)
    assert link.tick(now_s) is Step.OPEN


def test_thirty_damaged_frames_in_a_minute_degrade_with_reason_noise() -> None:
    link = _up(_link())
    for second in range(30):
        link.answered(float(second))
        link.damaged(1, float(second))
    assert (link.state, link.reason) == (LinkState.DEGRADED, "noise")
    for _ in range(5):
        link.answered(31.0)
    assert _state(link) is LinkState.DEGRADED
    for _ in range(3):
        link.answered(61.0)
    assert _state(link) is LinkState.UP


@pytest.mark.parametrize(
    ("baud", "state", "interval_s"),
    [
        (115_200, State.IDLE, 0.5),
        (115_200, State.INJECTING, 0.2),
        (115_200, State.LOADING, 0.2),
        (115_200, State.COMPLETE, 0.5),
        (57_600, State.IDLE, 0.5),
        (9_600, State.INJECTING, 1.0),
    ],
)
def test_the_poll_follows_state_and_line_speed(baud: int, state: State, interval_s: float) -> None:
    assert _up(_link(baud)).poll_interval_s(state) == interval_s


def test_a_cold_start_is_up_within_a_second() -> None:
    bench = Bench()
    assert bench.run_until(lambda: bench.link is LinkState.UP) < 1.0


def test_half_open_line_is_down_in_three_seconds() -> None:
    bench = Bench().settled()
    bench.to_host = lambda data: b""
    took_s = bench.run_until(lambda: bench.link is LinkState.DOWN)
    assert 2.5 <= took_s <= 3.6
    assert "link-down" in bench.decide().reasons


def test_stale_requests_are_flushed_on_down() -> None:
    bench = Bench().settled()
    bench.to_host = lambda data: b""
    bench.run_until(lambda: bench.link is LinkState.DOWN)
    assert bench.flushes == 1


def test_a_line_that_comes_back_is_up_again_and_old_answers_are_stale() -> None:
    bench = Bench().settled()
    held: list[bytes] = []

    def hold_back(data: bytes) -> bytes:
        held.append(data)
        return b""

    bench.to_host = hold_back
    bench.run_until(lambda: bench.link is LinkState.DOWN)
    bench.to_host = lambda data: data
    bench.conversation.received(b"".join(held), bench.now_s)
    bench.up()
    assert bench.knowledge.counters.stale_replies >= 1
    assert bench.snapshot().state.value is State.IDLE


def test_a_reboot_of_the_injector_is_seen_and_everything_is_read_again() -> None:
    bench = Bench().settled()
    old = bench.snapshot().boot_id
    bench.fault("reboot")
    bench.run_until(lambda: bench.snapshot().boot_id not in (old, None))
    bench.up()
    assert "BootSeen" in bench.kinds()
    assert bench.knowledge.identity is not None
    assert bench.knowledge.identity.boot_id != old


def test_major_version_mismatch_denies_the_interlock() -> None:
    bench = Bench()
    bench.fault("proto", major=2, minor=0)
    bench.run_until(lambda: bench.link is LinkState.INCOMPATIBLE)
    bench.run(30.0)
    assert "incompatible" in bench.decide().reasons
    assert bench.snapshot().state.quality is Quality.INVALID
    commands = {command for (_, group, command) in bench.sim.server.monitor.by_command if group == 0x5457}
    assert commands == {0}


def test_an_injector_that_becomes_compatible_is_used_again() -> None:
    bench = Bench()
    bench.fault("proto", major=2, minor=0)
    bench.run_until(lambda: bench.link is LinkState.INCOMPATIBLE)
    bench.fault("proto", on=False)
    bench.up()


def test_flood_degrades_and_costs_no_memory() -> None:
    bench = Bench().settled()
    bench.to_host = lambda data: data + b"x" * 10_000
    bench.run(2.0)
    assert (bench.link, bench.conversation.link.reason) == (
        LinkState.DEGRADED,
        "flood",
    ) or bench.link is LinkState.DOWN
    assert bench.knowledge.counters.flood_bytes > 500_000
    assert not bench.decide().allow


@pytest.mark.parametrize("fault", ["wrong_seq", "late_reply", "bad_crc16", "bad_crc32", "oversize"])
def test_three_faulty_replies_cost_a_retry_and_nothing_else(fault: str) -> None:
    bench = Bench().settled()
    bench.fault(fault, count=1, ms=400)
    bench.run(3.0)
    assert bench.link is LinkState.UP
    assert bench.snapshot().state.quality is Quality.VALID


@pytest.mark.parametrize(
    "fault", ["garbage", "double_reply", "indefinite_cbor", "unknown_keys", "unsolicited_frame"]
)
def test_a_legal_oddity_is_understood_or_ignored(fault: str) -> None:
    bench = Bench().settled()
    bench.fault(fault)
    bench.run(5.0)
    assert bench.link is LinkState.UP
    assert bench.decide().allow


def test_a_missing_port_is_tried_again_until_it_is_there() -> None:
    bench = Bench()
    bench.port_is_there = False
    bench.run(20.0)
    assert (bench.link, bench.conversation.link.reason) == (LinkState.CLOSED, "port-absent")
    assert "link-down" in bench.decide().reasons
    bench.port_is_there = True
    bench.run_until(lambda: bench.link is LinkState.UP, limit_s=12)


def test_a_port_that_stays_absent_is_told_once() -> None:
    bench = Bench()
    bench.port_is_there = False
    bench.run(60.0)
    assert bench.kinds() == ["LinkChanged"]


def test_the_simulator_saw_no_forbidden_frame() -> None:
    bench = Bench().settled()
    bench.run(30.0)
    assert bench.sim.server.monitor.violations == []
    assert bench.sim.server.monitor.total > 50
