"""Bounds on bytes over time: the minimum rate of a peer and the site's bandwidth cap. Pure but for the Clock."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from tidewaiter_core.clock import Clock

from tidewaiter_agent.errors import NetError

FLOOR_BYTES_PER_S = 1024
FLOOR_WINDOW_S = 60.0


@dataclass(slots=True)
class RateFloor:
    """Refuses a peer that sends less than 1 KiB/s over a full minute; a gap time-out alone lets one byte per
    29 s pass for ever.

    Only time spent waiting for the peer counts: a consumer that is slow to take the bytes must not look like
    a slow peer.
    """

    what: str
    bytes_per_s: int = FLOOR_BYTES_PER_S
    window_s: float = FLOOR_WINDOW_S
    _waited_s: float = 0.0
    _bytes: int = 0

    def add(self, count: int, waited_s: float) -> None:
        """Account for one read; NetError `net.slow` when a whole window stayed below the floor."""
        self._bytes += count
        self._waited_s += waited_s
        if self._waited_s < self.window_s:
            return
        if self._bytes < self.bytes_per_s * self.window_s:
            raise NetError(
                f"{self.what}: {self._bytes} bytes in {self._waited_s:.0f} s, expected at least "
                f"{self.bytes_per_s} per second; "
                "the transfer is dropped and tried again later",
                code="net.slow",
            )
        self._bytes = 0
        self._waited_s = 0.0


class TokenBucket:
    """The site's cap over all traffic of one direction; a cap of 0 means none. Shared by threads."""

    def __init__(self, clock: Clock, kib_per_s: int) -> None:
        self._clock = clock
        self._rate = kib_per_s * 1024
        self._level = float(self._rate)
        self._at_s = clock.boottime_s()
        self._lock = threading.Lock()

    def take(self, count: int) -> None:
        """Account for `count` bytes and wait as long as the cap demands."""
        if self._rate == 0:
            return
        with self._lock:
            now_s = self._clock.boottime_s()
            # At most one second of burst.
            self._level = min(float(self._rate), self._level + (now_s - self._at_s) * self._rate) - count
            self._at_s = now_s
            debt = -self._level
        if debt > 0:
            self._clock.sleep(debt / self._rate)
