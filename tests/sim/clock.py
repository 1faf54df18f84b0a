"""A clock that moves only when a test (or the logic under test, by waiting) moves it."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

START_UTC = datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)


class FakeClock:
    """Implements tidewaiter_core.clock.Clock.

    A wait or a sleep advances the time by its whole length at once. `call_at` puts events on the time line: what is
    due while time advances is called at its moment, and may set the very event that is waited for.
    """

    def __init__(self, utc: datetime = START_UTC, *, boottime_s: float = 1000.0) -> None:
        self._lock = threading.RLock()
        self._utc = utc
        self._boottime_s = boottime_s
        self._order = itertools.count()
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self.waits_s: list[float] = []
        """Every wait and sleep that was asked for, in order."""

    def now_utc(self) -> datetime:
        with self._lock:
            return self._utc

    def boottime_s(self) -> float:
        with self._lock:
            return self._boottime_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Time stops where the event is set, as it does for whoever waits in reality."""
        with self._lock:
            self.waits_s.append(timeout_s)
            self._move(self._boottime_s + max(0.0, timeout_s), until=event)
        return event.is_set()

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.waits_s.append(seconds)
            self.advance(max(0.0, seconds))

    def advance(self, seconds: float) -> None:
        """Let time pass, calling on the way what was planned."""
        with self._lock:
            self._move(self._boottime_s + seconds, until=None)

    def set_utc(self, utc: datetime) -> None:
        """Step the wall clock; boot time does not notice."""
        with self._lock:
            self._utc = utc

    def call_at(self, after_s: float, call: Callable[[], None]) -> None:
        """Plan `call` for `after_s` seconds from now."""
        with self._lock:
            heapq.heappush(self._planned, (self._boottime_s + after_s, next(self._order), call))

    def _move(self, target_s: float, *, until: threading.Event | None) -> None:
        while not (until is not None and until.is_set()):
            if not self._planned or self._planned[0][0] > target_s:
                self._pass_to(target_s)
                return
            moment_s, _, call = heapq.heappop(self._planned)
            self._pass_to(moment_s)
            call()

    def _pass_to(self, moment_s: float) -> None:
        step_s = max(0.0, moment_s - self._boottime_s)
        self._boottime_s += step_s
        self._utc += timedelta(seconds=step_s)
