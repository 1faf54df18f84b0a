"""Ends a socket-activated updater that has nothing to do: no transaction, no connection, no call for a while."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from tidewaiter_core.clock import Clock
from tidewaiter_core.workers import Stop

logger = logging.getLogger(__name__)

LOOK_S = 1.0


class Busy(Protocol):
    """What may keep the process alive."""

    def is_idle(self) -> bool: ...


class Connected(Protocol):
    """A server that knows how many clients it has."""

    @property
    def connections(self) -> int: ...


class IdleWatch:
    """Counts the quiet time. A limit of 0 never ends anything."""

    def __init__(self, engine: Busy, clock: Clock, *, limit_s: float) -> None:
        self._engine = engine
        self._clock = clock
        self._limit_s = limit_s
        self._active_s = clock.boottime_s()

    def active(self) -> None:
        """Somebody asked for something."""
        self._active_s = self._clock.boottime_s()

    def is_over(self, connections: Sequence[Connected]) -> bool:
        """Whether it has been quiet for long enough."""
        if not self._engine.is_idle() or any(server.connections for server in connections):
            self.active()
        return self._limit_s > 0 and self._clock.boottime_s() - self._active_s >= self._limit_s

    def run(self, stop: Stop, *, end: Callable[[], None], connections: Sequence[Connected]) -> None:
        """Look every second; `end` asks the whole process to stop."""
        while not stop.wait(LOOK_S):
            if self.is_over(connections):
                logger.info("nothing to do for %g s, the process ends; a call starts it again", self._limit_s)
                end()
                return
