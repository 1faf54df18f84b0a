"""How long to stay away from a server that does not answer: short at first, patient after an hour of silence."""

from __future__ import annotations

import random

from tidewaiter_core.backoff import Backoff
from tidewaiter_core.clock import Clock

BASE_S = 1.0
CAP_S = 128.0
LONG_CAP_S = 900.0
LONG_AFTER_S = 3600.0


class Patience:
    """Full jitter up to 128 s; after 60 minutes without success up to 900 s. A whole fleet meets a server that comes back."""

    def __init__(self, clock: Clock, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._short = Backoff(base_s=BASE_S, cap_s=CAP_S, rng=rng)
        self._long = Backoff(base_s=LONG_CAP_S, cap_s=LONG_CAP_S, rng=rng)
        self._success_s = clock.boottime_s()

    def succeeded(self) -> None:
        """It worked."""
        self._success_s = self._clock.boottime_s()
        self._short.reset()
        self._long.reset()

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Seconds until the next attempt; `at_least_s` is what Retry-After asks for."""
        silent_s = self._clock.boottime_s() - self._success_s
        return (self._long if silent_s > LONG_AFTER_S else self._short).next_s(at_least_s)
