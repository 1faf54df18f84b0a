"""Quality and age of readings, events and slow subscribers."""

import dataclasses
from datetime import timedelta

import pytest
from tidewaiter_hal.errors import UnknownReadingError
from tidewaiter_hal.events import QUEUE_LIMIT, EventBus
from tidewaiter_hal.model import Quality, Reading, State
from tidewaiter_hal.picture import Knowledge

from tests.sim.injector_bench import Bench


def test_no_reading_has_a_default_value() -> None:
    assert all(field.default is dataclasses.MISSING for field in dataclasses.fields(Reading))
    snapshot = Knowledge().snapshot(5.0)
    for field in dataclasses.fields(snapshot):
        value = getattr(snapshot, field.name)
        if isinstance(value, Reading):
            assert (value.value, value.quality) == (None, Quality.INVALID)
            with pytest.raises(UnknownReadingError):
                value.require(field.name)


def test_reading_goes_stale_after_1500_ms_and_invalid_after_10_s() -> None:
    bench = Bench().settled()
    taken_s = bench.snapshot().state.taken_s
    assert taken_s is not None
    knowledge = bench.knowledge
    assert knowledge.snapshot(taken_s + 1.49).state.quality is Quality.VALID
    stale = knowledge.snapshot(taken_s + 1.51).state
    assert (stale.quality, stale.value) == (Quality.STALE, State.IDLE)
    invalid = knowledge.snapshot(taken_s + 10.01).state
    assert (invalid.quality, invalid.value) == (Quality.INVALID, None)


def test_host_suspend_makes_readings_stale() -> None:
    """CLOCK_BOOTTIME counts through a suspend, so the first look after it sees the true age."""
    bench = Bench().settled()
    snapshot = bench.knowledge.snapshot(bench.now_s + 3600)
    assert snapshot.state.quality is Quality.INVALID
    assert snapshot.state.value is None


def test_wall_clock_step_of_ten_years_changes_no_age() -> None:
    bench = Bench().settled()
    bench.clock.set_utc(bench.clock.now_utc() + timedelta(days=3653))
    assert bench.snapshot().state.quality is Quality.VALID
    assert bench.decide().allow


def test_frozen_control_task_is_stale_while_replies_arrive() -> None:
    bench = Bench().settled()
    bench.fault("freeze_control")
    bench.run(3.0)
    assert bench.link.value == "up"
    assert bench.snapshot().state.quality is Quality.STALE
    assert "stale" in bench.decide().reasons


def test_a_value_the_device_does_not_know_is_invalid_and_one_it_does_not_have_is_na() -> None:
    bench = Bench().settled()
    bench.sim.server.bodies.overrides["pk"] = None
    bench.run(1.0)
    assert bench.snapshot().pressure_kpa.quality is Quality.INVALID
    assert bench.snapshot().since_injection_s.quality is Quality.NA


def test_require_refuses_a_questionable_value() -> None:
    bench = Bench().settled()
    bench.fault("lie", rule="P7")
    bench.run(1.0)
    with pytest.raises(UnknownReadingError, match="questionable"):
        bench.snapshot().pressure_kpa.require("pressure_kpa")


def test_slow_subscriber_gets_a_drop_count_and_blocks_nobody() -> None:
    bus = EventBus()
    slow, quick = bus.subscribe(), bus.subscribe()
    for number in range(QUEUE_LIMIT + 44):
        bus.publish("Tick", number=str(number))
        assert len(quick.take(0.0)) == 1
    events = slow.take(0.0)
    assert (events[-1].kind, events[-1].detail) == ("EventsDropped", (("count", "44"),))
    assert len(events) == QUEUE_LIMIT + 1
    assert bus.dropped == 44


def test_an_ended_subscription_gets_nothing() -> None:
    bus = EventBus()
    subscription = bus.subscribe()
    bus.unsubscribe(subscription)
    bus.publish("Tick")
    assert subscription.take(0.0) == []


def test_a_change_of_state_is_an_event() -> None:
    bench = Bench().settled()
    bench.kinds()
    bench.do("load")
    bench.run(1.0)
    assert "StateChanged" in bench.kinds()
