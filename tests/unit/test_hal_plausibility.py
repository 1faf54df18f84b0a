"""Rules P1 to P9, one by one, against the simulator that tells each lie, and their edges."""

from dataclasses import replace

import pytest
from tidewaiter_hal.model import Channel, Quality, State, StateSample
from tidewaiter_hal.plausibility import Plausibility

from tests.sim.injector_bench import Bench

SAMPLE = StateSample(
    taken_s=100.0,
    boot_id=1,
    uptime_ms=1000,
    sample=1000,
    state=State.IDLE,
    mode=0,
    lockouts=0,
    pressure_kpa=8,
    flow_ul_per_s=(0, 0),
    delivered_ul=(0, 0),
    moving=False,
    since_injection_s=None,
    alarm_priority=0,
    alarm_changes=0,
    fault_head=0,
    injection_head=0,
    event_head=0,
    power=1,
    scanner=0,
    lease_active=False,
    lease_left_ms=0,
    service_consent_s=None,
    present=frozenset({"pk", "fl", "vd", "ls"}),
)


def _later(start: StateSample, seconds: float, **changes: object) -> StateSample:
    moved = replace(
        start,
        taken_s=start.taken_s + seconds,
        uptime_ms=start.uptime_ms + int(seconds * 1000),
        sample=(start.sample + int(seconds * 1000)) & 0xFFFFFFFF,
    )
    return replace(moved, **changes)  # type: ignore[arg-type]


def _rules(*samples: StateSample, channels: tuple[Channel, ...] = ()) -> set[str]:
    judge = Plausibility(50)
    found = set()
    for sample in samples:
        found |= {finding.rule for finding in judge.observe(sample, None, channels, sample.taken_s)}
    return found


@pytest.mark.parametrize("rule", ["P1", "P2", "P3", "P4", "P5", "P6", "P7", "P8", "P9"])
def test_each_lie_P1_to_P9_is_questionable_and_denies(rule: str) -> None:
    bench = Bench().settled()
    assert bench.decide().allow
    bench.fault("lie", rule=rule)
    bench.run_until(lambda: rule in bench.knowledge.findings, limit_s=15)
    marked = {"clock-anomaly"} if rule == "P5" else {"questionable"}
    assert marked <= set(bench.decide().reasons)
    snapshot = bench.snapshot()
    qualities = {
        reading.quality
        for reading in (
            snapshot.state, snapshot.moving, snapshot.pressure_kpa, snapshot.uptime_ms, snapshot.sample,
            snapshot.delivered_ul,
        )
    }  # fmt: skip
    assert qualities & {Quality.QUESTIONABLE, Quality.STALE, Quality.INVALID}
    assert "Implausible" in bench.kinds()


def test_the_interlock_denies_until_60_s_have_passed_without_a_finding() -> None:
    bench = Bench().settled()
    bench.fault("lie", rule="P7")
    bench.run(1.0)
    bench.fault("lie", on=False)
    bench.run(55.0)
    assert "questionable" in bench.decide().reasons
    bench.run(10.0)
    assert bench.decide().allow


def test_an_honest_injection_violates_no_rule() -> None:
    bench = Bench(speed=4.0).settled()
    for action in ("arm", "start"):
        bench.do(action)
        bench.run(1.0)
    bench.run_until(lambda: bench.snapshot().state.value is State.IDLE, limit_s=60)
    assert bench.knowledge.findings == ()


def test_sample_counter_and_uptime_across_2_to_32_are_continuous() -> None:
    bench = Bench(uptime_ms=(1 << 32) - 9_000).settled()
    bench.run(20.0)
    assert bench.knowledge.findings == ()
    assert (bench.snapshot().sample.value or 0) < 20_000
    assert (bench.snapshot().uptime_ms.value or 0) > 1 << 32
    assert bench.decide().allow


def test_p3_needs_no_finding_where_the_event_log_moved() -> None:
    injecting = replace(SAMPLE, state=State.INJECTING)
    assert "P3" in _rules(injecting, _later(injecting, 0.5, state=State.SERVICE))
    assert "P3" not in _rules(injecting, _later(injecting, 0.5, state=State.SERVICE, event_head=3))
    assert "P3" in _rules(injecting, _later(injecting, 0.5, state=State.BOOTING, event_head=3))


def test_p3_is_found_in_the_event_log() -> None:
    judge = Plausibility(50)
    assert judge.observe_transition(State.INJECTING, State.COMPLETE, 5.0) == ()
    assert [finding.rule for finding in judge.observe_transition(State.HOLD, State.UPDATING, 5.0)] == ["P3"]
    assert judge.recent(64.0) == ("P3",)
    assert judge.recent(66.0) == ()


def test_p4_ignores_what_another_boot_counts() -> None:
    assert "P4" in _rules(SAMPLE, _later(SAMPLE, 0.5, sample=10))
    assert "P4" not in _rules(SAMPLE, _later(SAMPLE, 0.5, sample=10, uptime_ms=3, boot_id=2))


def test_p5_judges_only_after_ten_seconds() -> None:
    fast = _later(SAMPLE, 9.0, uptime_ms=30_000)
    assert "P5" not in _rules(SAMPLE, fast)
    assert "P5" in _rules(SAMPLE, _later(SAMPLE, 10.5, uptime_ms=30_000))
    assert "P5" not in _rules(SAMPLE, _later(SAMPLE, 10.5, uptime_ms=SAMPLE.uptime_ms + 9_000))


def test_p6_knows_the_capacity_of_each_channel() -> None:
    channel = Channel(
        channel=0,
        fluid=1,
        capacity_ul=200_000,
        remaining_ul=None,
        plunger_um=None,
        plunger_max_um=150_000,
        syringe_code=200,
        loaded=True,
    )
    assert "P6" in _rules(replace(SAMPLE, delivered_ul=(200_001, 0)), channels=(channel,))
    assert "P6" not in _rules(replace(SAMPLE, delivered_ul=(200_000, 0)), channels=(channel,))


def test_p9_needs_two_polls_without_a_new_sample() -> None:
    same = replace(SAMPLE, taken_s=100.5)
    assert "P9" not in _rules(SAMPLE, same)
    assert "P9" in _rules(SAMPLE, same, replace(SAMPLE, taken_s=101.0))
