"""The interlock's table: each single missing condition denies, and names itself."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tidewaiter_hal.interlock import ROWS, Decision, Policy, Purpose, Situation, decide
from tidewaiter_hal.model import (
    Capabilities,
    Channel,
    Generation,
    Identity,
    LinkState,
    State,
    StateSample,
)
from tidewaiter_hal.picture import ChannelReading, Knowledge

from tests.sim.injector_bench import Bench
from tests.unit.test_hal_plausibility import SAMPLE

NOW_S = 1000.0
POLICY = Policy(idle_pressure_limit_kpa=50, quiet_after_injection_s=300, bench=False)
FEATURES = frozenset({"pressure", "plunger", "channels", "lease"})


def _window(count: int = 12, step_s: float = 0.5, **changes: Any) -> tuple[StateSample, ...]:
    """Samples up to 0.2 s ago, half a second apart: 5.5 s of proof."""
    samples = []
    for index in range(count):
        before_s = 0.2 + (count - 1 - index) * step_s
        sample = replace(
            SAMPLE,
            taken_s=NOW_S - before_s,
            uptime_ms=4_000_000 - int(before_s * 1000),
            sample=4_000_000 - int(before_s * 1000),
        )
        samples.append(replace(sample, **changes))
    return tuple(samples)


def _channels(plunger_um: int | None, ago_s: float) -> ChannelReading:
    channel = Channel(
        channel=0,
        fluid=1,
        capacity_ul=200_000,
        remaining_ul=100_000,
        plunger_um=plunger_um,
        plunger_max_um=150_000,
        syringe_code=200,
        loaded=True,
    )
    return ChannelReading(taken_s=NOW_S - ago_s, channels=(channel,))


_NO_CHANNELS = ChannelReading(taken_s=NOW_S - 2.0, channels=())
IDENTITY = Identity(
    protocol=(1, 0),
    vendor="V",
    model="M",
    serial="S-1",
    hardware=None,
    bootloader=None,
    boot_id=1,
    boot_counter=1,
    reset_reason=1,
    log_id=1,
    firmware=(),
)
CAPABILITIES = Capabilities(
    device_class=2,
    channels=2,
    pressure_limit_kpa=2070,
    max_flow_ul_per_s=10_000,
    features=FEATURES,
    generation=Generation.REAL,
)


def _knowledge(**changes: Any) -> Knowledge:
    window = changes.pop("window", _window())
    good = Knowledge(
        driver="smp-reference",
        link=LinkState.UP,
        link_reason="synchronized",
        identity=IDENTITY,
        capabilities=CAPABILITIES,
        sample=window[-1] if window else None,
        window=window,
        channel_readings=(_channels(1000, 12.0), _channels(1000, 2.0)),
    )
    return replace(good, **changes)


def _situation(**changes: Any) -> Situation:
    good = Situation(
        knowledge=_knowledge(),
        purpose=Purpose.REBOOT,
        policy=POLICY,
        now_s=NOW_S,
        started_s=NOW_S - 60,
        own_lease=False,
        other_lease=False,
    )
    return replace(good, **changes)


def _decide(**changes: Any) -> Decision:
    return decide(_situation(**changes))


def _one_odd(**changes: Any) -> tuple[StateSample, ...]:
    """One sample in the middle differs: idle before and after is not enough."""
    window = _window()
    return (*window[:6], replace(window[6], **changes), *window[7:])


def _caps(**changes: Any) -> Capabilities:
    return replace(CAPABILITIES, **changes)


def test_complete_evidence_allows() -> None:
    decision = _decide()
    assert decision.allow
    assert decision.reasons == ()
    assert decision.ttl_ms <= 2000


CASES: list[tuple[str, str, Callable[[], Decision]]] = [
    ("no driver", "no-driver", lambda: _decide(knowledge=_knowledge(driver=None))),
    *[
        (f"link {link}", reason, lambda link=link: _decide(knowledge=_knowledge(link=link)))
        for link, reason in (
            (LinkState.CLOSED, "link-down"),
            (LinkState.OPENING, "link-down"),
            (LinkState.SYNCING, "link-down"),
            (LinkState.DOWN, "link-down"),
            (LinkState.DEGRADED, "link-degraded"),
            (LinkState.INCOMPATIBLE, "incompatible"),
        )
    ],
    ("never identified", "link-down", lambda: _decide(knowledge=_knowledge(identity=None))),
    ("just started", "hal-starting", lambda: _decide(started_s=NOW_S - 4.9)),
    ("two samples", "too-few-samples", lambda: _decide(knowledge=_knowledge(window=_window(2, 6.0)))),
    ("four seconds", "too-few-samples", lambda: _decide(knowledge=_knowledge(window=_window(9)))),
    ("no sample", "too-few-samples", lambda: _decide(knowledge=_knowledge(window=()))),
    ("old sample", "stale", lambda: _decide(now_s=NOW_S + 1.4)),
    ("sample of the future", "stale", lambda: _decide(now_s=NOW_S - 1.0)),
    ("boot changed", "boot-changed", lambda: _decide(knowledge=_knowledge(window=_one_odd(boot_id=2)))),
    (
        "identity of another boot",
        "boot-changed",
        lambda: _decide(knowledge=_knowledge(identity=replace(IDENTITY, boot_id=9))),
    ),
    (
        "unknown state",
        "state-unknown",
        lambda: _decide(knowledge=_knowledge(window=_one_odd(state=State.UNKNOWN))),
    ),
    *[
        (
            f"state {state.name}",
            "state-not-idle",
            lambda state=state: _decide(knowledge=_knowledge(window=_one_odd(state=state))),
        )
        for state in State
        if state not in (State.UNKNOWN, State.IDLE, State.SERVICE)
    ],
    (
        "an injection 299 s ago",
        "recent-injection",
        lambda: _decide(knowledge=_knowledge(window=_window(since_injection_s=299))),
    ),
    (
        "none since a boot 299 s ago",
        "recent-injection",
        lambda: _decide(knowledge=_knowledge(window=_window(uptime_ms=299_999))),
    ),
    ("51 kPa once", "pressure", lambda: _decide(knowledge=_knowledge(window=_one_odd(pressure_kpa=51)))),
    (
        "pressure unknown",
        "pressure",
        lambda: _decide(knowledge=_knowledge(window=_one_odd(pressure_kpa=None))),
    ),
    (
        "pressure not supported",
        "pressure",
        lambda: _decide(knowledge=_knowledge(window=_window(present=frozenset({"fl"})))),
    ),
    ("motion once", "motion", lambda: _decide(knowledge=_knowledge(window=_one_odd(moving=True)))),
    (
        "plunger moved 51 um",
        "motion",
        lambda: _decide(knowledge=_knowledge(channel_readings=(_channels(1000, 12.0), _channels(1051, 2.0)))),
    ),
    (
        "plunger unknown",
        "motion",
        lambda: _decide(knowledge=_knowledge(channel_readings=(_channels(1000, 12.0), _channels(None, 2.0)))),
    ),
    (
        "no plunger listed",
        "motion",
        lambda: _decide(knowledge=_knowledge(channel_readings=(_NO_CHANNELS, _NO_CHANNELS))),
    ),
    (
        "plunger not listed any more",
        "motion",
        lambda: _decide(knowledge=_knowledge(channel_readings=(_channels(1000, 12.0), _NO_CHANNELS))),
    ),
    (
        "one plunger reading",
        "motion",
        lambda: _decide(knowledge=_knowledge(channel_readings=(_channels(1000, 2.0),))),
    ),
    (
        "old plunger readings",
        "motion",
        lambda: _decide(
            knowledge=_knowledge(channel_readings=(_channels(1000, 30.0), _channels(1000, 16.0)))
        ),
    ),
    ("medium alarm", "alarm", lambda: _decide(knowledge=_knowledge(window=_one_odd(alarm_priority=2)))),
    ("high alarm", "alarm", lambda: _decide(knowledge=_knowledge(window=_one_odd(alarm_priority=3)))),
    ("unknown alarm", "alarm", lambda: _decide(knowledge=_knowledge(window=_one_odd(alarm_priority=77)))),
    ("scanner armed", "scanner-armed", lambda: _decide(knowledge=_knowledge(window=_one_odd(scanner=2)))),
    ("scanner unknown", "scanner-armed", lambda: _decide(knowledge=_knowledge(window=_one_odd(scanner=9)))),
    ("power unknown", "power", lambda: _decide(knowledge=_knowledge(window=_one_odd(power=0)))),
    ("battery low", "power", lambda: _decide(knowledge=_knowledge(window=_one_odd(power=3)))),
    ("finding", "questionable", lambda: _decide(knowledge=_knowledge(findings=("P1",)))),
    ("clock finding", "clock-anomaly", lambda: _decide(knowledge=_knowledge(findings=("P5",)))),
    *[
        (
            f"generation {generation}",
            "not-real",
            lambda g=generation: _decide(knowledge=_knowledge(capabilities=_caps(generation=g))),
        )
        for generation in (Generation.TEST, Generation.DEMO, Generation.UNKNOWN)
    ],
    ("another lease", "firmware-busy", lambda: _decide(other_lease=True)),
    (
        "a foreign lease on the injector",
        "firmware-busy",
        lambda: _decide(knowledge=_knowledge(window=_window(lease_active=True))),
    ),
    (
        "firmware without consent",
        "no-consent",
        lambda: _decide(
            purpose=Purpose.FIRMWARE,
            knowledge=_knowledge(window=_window(state=State.SERVICE, service_consent_s=0)),
        ),
    ),
    (
        "firmware in idle",
        "state-not-idle",
        lambda: _decide(purpose=Purpose.FIRMWARE, knowledge=_knowledge(window=_window(service_consent_s=60))),
    ),
]


@pytest.mark.parametrize(("name", "reason", "case"), CASES, ids=[case[0] for case in CASES])
def test_every_single_missing_condition_denies_with_its_reason(
    name: str, reason: str, case: Callable[[], Decision]
) -> None:
    decision = case()
    assert not decision.allow
    assert reason in decision.reasons


def test_every_row_of_the_table_is_hit_by_a_case() -> None:
    reasons = {reason for _, reason, _ in CASES}
    assert reasons == {
        "no-driver", "link-down", "link-degraded", "incompatible", "hal-starting", "too-few-samples", "stale",
        "boot-changed", "state-unknown", "state-not-idle", "recent-injection", "pressure", "motion", "alarm",
        "scanner-armed", "power", "questionable", "clock-anomaly", "not-real", "firmware-busy", "no-consent",
    }  # fmt: skip


@pytest.mark.parametrize("purpose", [Purpose.ACTIVATE, Purpose.REBOOT])
def test_service_state_allows_activation_and_reboot(purpose: Purpose) -> None:
    assert _decide(purpose=purpose, knowledge=_knowledge(window=_window(state=State.SERVICE))).allow


def test_firmware_is_allowed_in_service_with_local_consent() -> None:
    window = _window(state=State.SERVICE, service_consent_s=60)
    assert _decide(purpose=Purpose.FIRMWARE, knowledge=_knowledge(window=window)).allow


@pytest.mark.parametrize("generation", [Generation.TEST, Generation.DEMO])
def test_demo_generation_denies_on_a_product_image(generation: Generation) -> None:
    knowledge = _knowledge(capabilities=_caps(generation=generation))
    assert _decide(knowledge=knowledge).reasons == ("not-real",)
    assert _decide(knowledge=knowledge, policy=replace(POLICY, bench=True)).allow


def test_an_unknown_generation_denies_on_a_bench_too() -> None:
    knowledge = _knowledge(capabilities=_caps(generation=Generation.UNKNOWN))
    assert _decide(knowledge=knowledge, policy=replace(POLICY, bench=True)).reasons == ("not-real",)


def test_the_holder_of_the_lease_is_not_denied_by_it() -> None:
    assert _decide(own_lease=True, knowledge=_knowledge(window=_window(lease_active=True))).allow


def test_what_is_not_supported_is_listed_where_the_driver_vouches_for_it() -> None:
    policy = replace(POLICY, static_by_state=True)
    knowledge = _knowledge(
        window=_window(present=frozenset()),
        capabilities=_caps(features=frozenset({"lease"})),
        channel_readings=(),
    )
    decision = _decide(knowledge=knowledge, policy=policy)
    assert decision.allow
    evidence = dict(decision.evidence)
    assert (evidence["pressure_kpa"], evidence["plunger"]) == ("not supported", "not supported")


@pytest.mark.parametrize("position", range(len(ROWS)))
def test_exception_in_evaluation_denies(position: int) -> None:
    def broken(situation: Situation) -> Iterator[str]:
        raise ZeroDivisionError
        yield ""

    rows = (*ROWS[:position], broken, *ROWS[position + 1 :])
    decision = decide(_situation(), rows=rows)
    assert not decision.allow
    assert decision.reasons == ("evaluation-failed:broken:ZeroDivisionError",)


def test_three_samples_in_one_second_are_not_enough() -> None:
    decision = _decide(knowledge=_knowledge(window=_window(3, 0.4)))
    assert decision.reasons == ("too-few-samples",)


def test_reboot_of_the_injector_between_samples_denies() -> None:
    bench = Bench().settled()
    assert bench.decide().allow
    bench.do("power_cut")
    bench.up()
    bench.run(10.0)
    assert not bench.decide().allow
    assert "recent-injection" in bench.decide().reasons


def test_an_allow_is_unusable_after_its_ttl() -> None:
    decision = _decide()
    assert decision.is_usable(NOW_S + 2.0)
    assert not decision.is_usable(NOW_S + 2.01)
    assert not decision.is_usable(NOW_S - 0.01)


def test_an_injection_denies_until_the_quiet_time_is_over() -> None:
    bench = Bench(speed=20.0).settled()
    bench.do("arm")
    bench.do("start")
    bench.run(1.0)
    assert "state-not-idle" in bench.decide().reasons
    bench.run_until(lambda: bench.snapshot().state.value is State.IDLE, limit_s=60)
    bench.run(200.0)
    assert bench.decide().reasons == ("recent-injection",)
    bench.run(110.0)
    assert bench.decide().allow
