"""A thread of a transfer whose error ends up in the caller, and what the engine says to all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tidewaiter_core.clock import Clock

from tidewaiter_updater.errors import InstallCancelledError

POLL_S: Final = 0.5
"""How often whoever waits looks around and gives its beat."""


class Work(StrEnum):
    """What the threads of a transfer spend their time on."""

    FETCH = "fetch"
    HASH = "hash"
    DECODE = "decode"
    WRITE = "write"
    SYNC = "sync"


class WorkTimes:
    """How long each kind of work took, summed over the threads: which one an installation waits for. A measure, no control."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        """A clock in seconds, for the beginning of a piece of work."""
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(Work, 0.0)

    def spent(self, work: Work, began_s: float) -> float:
        """Add the time since `began_s`; returns the end of it, where the next piece begins."""
        now_s = self.now()
        self.add(work, now_s - began_s)
        return now_s

    def add(self, work: Work, seconds: float) -> None:
        """Add a time that the caller took itself."""
        with self._lock:
            self._seconds[work] += seconds

    def seconds(self) -> dict[Work, float]:
        with self._lock:
            return dict(self._seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the engine says while a transfer runs, and how the transfer says that it is alive."""

    paused: Callable[[], bool] = lambda: False
    cancelled: Callable[[], bool] = lambda: False
    beat: Callable[[str], None] = lambda stage: None
    """Called with the stage (fetch, assemble, write, sync) at each step and about twice a second while it waits."""
    times: WorkTimes = field(default_factory=WorkTimes)

    def check(self, what: str) -> None:
        """Raise InstallCancelledError if the engine asked to stop."""
        if self.cancelled():
            raise InstallCancelledError(
                f"{what} was canceled; the slot stays unbootable, written chunks are reused"
            )


class Step:
    """What the assembling thread does between two pieces of work: a beat, a wait while paused, an end when canceled."""

    def __init__(self, what: str, control: Control, clock: Clock) -> None:
        self._what = what
        self._control = control
        self._clock = clock

    def __call__(self) -> None:
        """Raises InstallCancelledError."""
        self._control.check(self._what)
        self._control.beat("assemble")
        while self._control.paused():
            self._control.check(self._what)
            self._control.beat("assemble")
            self._clock.wait(threading.Event(), POLL_S)


class Stage:
    """A thread; `failure` is what it died of, for the caller to raise."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.failure: BaseException | None = None
        self.ended = threading.Event()
        self._run = run
        self._thread = threading.Thread(target=self._guarded, name=f"slot-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, beat: Callable[[], None]) -> None:
        while self._thread.is_alive():
            self._thread.join(POLL_S)
            beat()

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as err:  # noqa: BLE001 - raised again in the caller's thread
            self.failure = err
        finally:
            self.ended.set()
