"""Minimum rate and bandwidth cap."""

from __future__ import annotations

import pytest
from tidewaiter_agent.errors import NetError
from tidewaiter_agent.limits import RateFloor, TokenBucket

from tests.sim.clock import FakeClock


def test_one_byte_per_29_seconds_hits_the_rate_floor() -> None:
    floor = RateFloor("GET x")
    with pytest.raises(NetError) as caught:
        for _ in range(3):
            floor.add(1, 29.0)
    assert caught.value.code == "net.slow"


def test_slow_but_honest_line_passes_the_rate_floor() -> None:
    floor = RateFloor("GET x")
    for _ in range(1000):
        floor.add(1100, 1.0)


def test_slow_consumer_is_not_taken_for_a_slow_server() -> None:
    floor = RateFloor("GET x")
    for _ in range(1000):
        floor.add(10, 0.0)


def test_bandwidth_cap_spreads_the_bytes_over_time() -> None:
    clock = FakeClock()
    bucket = TokenBucket(clock, 10)
    begun_s = clock.boottime_s()
    for _ in range(100):
        bucket.take(1024)
    assert clock.boottime_s() - begun_s == pytest.approx(9.0, abs=0.2)


def test_no_cap_never_waits() -> None:
    clock = FakeClock()
    TokenBucket(clock, 0).take(10**9)
    assert clock.waits_s == []
