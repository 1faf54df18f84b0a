"""Worker check-ins that become one WATCHDOG=1 of the main thread.

Rules (hal-and-hil.md 12.2):
1. A beat is a progress counter. A worker steps after real progress or a completed bounded wait, never from a timer.
2. WATCHDOG=1 goes out only if every required beat is fresh and its counter moved since the last WATCHDOG=1.
3. What is outside (server down, injector unplugged) is no reason to miss a beat.
4. A missed beat is named in the log and in `last_gasp`, all stacks are dumped, and the service manager is told to
   end the process at once.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Final

from tidewaiter_core import durable
from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.errors import StateError
from tidewaiter_core.notify import Notifier

logger = logging.getLogger(__name__)

_PINGS_PER_PERIOD: Final = 4
_PERIOD_WITHOUT_WATCHDOG_S: Final = 10.0


class Beat:
    """The progress of one worker."""

    def __init__(self, clock: Clock, name: str, *, deadline_s: float, required: bool, slice_s: float) -> None:
        self.name: Final = name
        self.deadline_s: Final = deadline_s
        self.required: Final = required
        self._clock = clock
        self._slice_s = slice_s
        self._counter = 0
        self._last_s = clock.boottime_s()

    @property
    def counter(self) -> int:
        """How often there was progress."""
        return self._counter

    def step(self) -> None:
        """There was real progress."""
        self._last_s = self._clock.boottime_s()
        self._counter += 1

    def age_s(self) -> float:
        """Time since the last progress."""
        return self._clock.boottime_s() - self._last_s

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait as `Clock.wait` does, in slices short enough for the watchdog, with a step after each of them."""
        end_s = self._clock.boottime_s() + timeout_s
        while True:
            remaining_s = max(0.0, end_s - self._clock.boottime_s())
            was_set = self._clock.wait(event, min(remaining_s, self._slice_s))
            self.step()
            if was_set or remaining_s <= self._slice_s:
                return was_set


class Heartbeat:
    """All beats of a process; the main thread calls `tick` every `watchdog_interval_s`."""

    def __init__(self, clock: Clock, notifier: Notifier, *, last_gasp: Path | None = None) -> None:
        """`last_gasp` is a file that tells the next instance why this one was ended."""
        self._clock = clock
        self._notifier = notifier
        self._last_gasp = last_gasp
        self._watchdog_s = _watchdog_s()
        self._lock = threading.Lock()
        self._beats: dict[str, Beat] = {}
        self._counters: dict[str, int] = {}
        self._reported: frozenset[str] = frozenset()
        self._ticked_s: float | None = None

    @property
    def watchdog_s(self) -> float | None:
        """The service manager's patience (WATCHDOG_USEC), None if it does not watch this process."""
        return self._watchdog_s

    @property
    def watchdog_interval_s(self) -> float:
        """How often the main thread has to look: a quarter of the watchdog's patience."""
        return (self._watchdog_s or _PERIOD_WITHOUT_WATCHDOG_S) / _PINGS_PER_PERIOD

    def beat(self, name: str, *, deadline_s: float, required: bool = True) -> Beat:
        """Register a worker; its first step is due within `deadline_s`.

        A required beat also has to step once per `watchdog_s`, whatever its deadline; `Beat.wait` does that.
        """
        if self._watchdog_s is not None and required and deadline_s > self._watchdog_s:
            logger.warning(
                "heartbeat.slow: beat %s has %g s, the service watchdog only %g s; the shorter one holds",
                name,
                deadline_s,
                self._watchdog_s,
            )
        with self._lock:
            if name in self._beats:
                raise ValueError(f"two beats are named {name!r}")
            slice_s = min(self.watchdog_interval_s, deadline_s / 2)
            new = Beat(self._clock, name, deadline_s=deadline_s, required=required, slice_s=slice_s)
            self._beats[name] = new
            self._counters[name] = 0
            return new

    def forget(self, beat: Beat) -> None:
        """A worker of limited life (one session, one installation) is done."""
        with self._lock:
            self._beats.pop(beat.name, None)
            self._counters.pop(beat.name, None)

    def check(self) -> list[str]:
        """Names of the required beats that made no progress within their deadline."""
        return [beat.name for beat in self._required() if beat.age_s() > beat.deadline_s]

    def tick(self) -> list[str]:
        """Tell the service manager how it stands; returns the missed beats."""
        if self._was_suspended():
            return []
        missed = self.check()
        if missed:
            self._report(missed)
            self._notifier.watchdog_trigger()
            return missed
        self._reported = frozenset()
        counters = {beat.name: beat.counter for beat in self._required()}
        moved = all(count != self._counters.get(name) for name, count in counters.items())
        # The counters are taken over only with the datagram: one that was not taken is repeated at the next tick.
        if moved and self._notifier.watchdog():
            with self._lock:
                self._counters.update(counters)
        return []

    def _was_suspended(self) -> bool:
        """Whether the machine slept since the last look: the ages count that, but no worker could run.

        The service manager's own clock stands still meanwhile, so a main thread that is late by its whole patience
        and still lives was asleep, not stuck. The workers get one interval to show that they go on.
        """
        now_s, before_s = self._clock.boottime_s(), self._ticked_s
        self._ticked_s = now_s
        return before_s is not None and now_s - before_s > (self._watchdog_s or _PERIOD_WITHOUT_WATCHDOG_S)

    def _required(self) -> list[Beat]:
        with self._lock:
            return [beat for beat in self._beats.values() if beat.required]

    def _report(self, missed: list[str]) -> None:
        """Once per set of missed beats: without a service manager the process lives on and would fill the log."""
        if self._reported == frozenset(missed):
            return
        self._reported = frozenset(missed)
        reasons = ", ".join(
            f"{beat.name} without progress for {beat.age_s():.1f} s (limit {beat.deadline_s:g} s)"
            for beat in self._required()
            if beat.name in missed
        )
        logger.critical("heartbeat.missed: %s", reasons)
        dump_stacks()
        if self._last_gasp is not None:
            with contextlib.suppress(StateError):
                text = f"{format_utc(self._clock.now_utc())} pid {os.getpid()} {reasons}\n"
                durable.write_atomic(self._last_gasp, text.encode())


def dump_stacks() -> None:
    """Print the stacks of all threads, without taking any lock, to standard error."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RuntimeError, io.UnsupportedOperation):
        faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)


def _watchdog_s() -> float | None:
    """WATCHDOG_USEC if it is meant for this process; a child inherits the variables but not the duty."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1_000_000
