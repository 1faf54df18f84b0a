"""Waiting times between attempts."""

from __future__ import annotations

import random

import pytest
from tidewaiter_core.backoff import Backoff


class Highest(random.Random):
    """Always draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_bound_doubles_up_to_the_cap() -> None:
    backoff = Backoff(base_s=1, cap_s=10, rng=Highest())
    assert [backoff.next_s() for _ in range(6)] == [1, 2, 4, 8, 10, 10]


def test_success_starts_again_from_the_base() -> None:
    backoff = Backoff(base_s=1, cap_s=10, rng=Highest())
    backoff.next_s()
    backoff.next_s()
    backoff.reset()
    assert (backoff.failures, backoff.next_s()) == (0, 1)


def test_a_thousand_devices_spread_over_the_whole_interval() -> None:
    waits = [Backoff(base_s=100, cap_s=100, rng=random.Random(seed)).next_s() for seed in range(1000)]
    assert min(waits) < 2
    assert max(waits) > 98
    assert 45 < sum(waits) / len(waits) < 55


def test_what_the_server_asks_for_is_a_floor_below_the_jitter() -> None:
    waits = [Backoff(base_s=10, cap_s=10, rng=random.Random(seed)).next_s(120) for seed in range(200)]
    assert min(waits) >= 120
    assert max(waits) <= 130
    assert len(set(waits)) > 190


def test_a_year_of_failures_is_no_overflow() -> None:
    backoff = Backoff(base_s=1, cap_s=900, rng=Highest())
    for _ in range(5000):
        assert backoff.next_s() <= 900


@pytest.mark.parametrize(("base_s", "cap_s"), [(0, 1), (-1, 1), (2, 1)])
def test_bounds_that_make_no_sense_are_refused(base_s: float, cap_s: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < base_s <= cap_s"):
        Backoff(base_s=base_s, cap_s=cap_s)
