"""The storage of one device while it runs: durable state, pending units, and a log of every step."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.sim.storage.content import Content, content_of, state_of
from tests.sim.storage.units import State, Unit


@dataclass(frozen=True, slots=True)
class Point:
    """A moment at which the power may go."""

    label: str
    state: State
    """Durable; shared between points, never changed."""
    pending: tuple[Unit, ...]
    facts: Any
    """What somebody relies on at this moment (see `Log.facts`)."""


class Log:
    """Everything that survives a power cut, and what is on its way there. Threads may share it."""

    def __init__(
        self, content: Content, *, is_recorded: bool = True, facts: Callable[[], Any] = lambda: None
    ) -> None:
        self.lock = threading.RLock()
        self.state: State = state_of(content)
        self.pending: list[Unit] = []
        self.view: State = dict(self.state)
        """What reads return: the durable state with all pending units."""
        self.points: list[Point] = []
        self.facts = facts
        """Asked at each point for what must be true of each image from then on."""
        self.steps = 0
        self.has_bad_sectors = any(key[0] == "bad" for key in content)
        """Only a power cut makes bad sectors, so a device without any never gets some while it runs."""
        self._is_recorded = is_recorded
        self._last_inode = len(self.state) + 1
        self.note("power on")

    def new_inode(self) -> int:
        """A number no file has had."""
        self._last_inode += 1
        return self._last_inode

    def issue(self, label: str, units: Iterable[Unit]) -> None:
        """A step whose units are visible at once and durable later."""
        with self.lock:
            new = list(units)
            for unit in new:
                unit.apply(self.view)
            self.pending += new
            self.note(label, changed=bool(new))

    def flush(self, label: str, which: Callable[[Unit], bool] = lambda unit: True) -> None:
        """A step after which the chosen units are durable."""
        with self.lock:
            chosen = [unit for unit in self.pending if which(unit)]
            if chosen:
                state = dict(self.state)
                for unit in chosen:
                    unit.apply(state)
                self.state = state
                self.pending = [unit for unit in self.pending if not which(unit)]
            self.note(label, changed=bool(chosen))

    def lose(self, label: str, which: Callable[[Unit], bool]) -> list[Unit]:
        """The medium lies: the chosen units are gone although the caller was told that they are durable."""
        with self.lock:
            lost = [unit for unit in self.pending if which(unit)]
            self.pending = [unit for unit in self.pending if not which(unit)]
            self.view = dict(self.state)
            for unit in self.pending:
                unit.apply(self.view)
            self.note(label)
            return lost

    def record(self, label: str, key: tuple[Any, ...]) -> None:
        """A step that is durable when it returns, and nothing before."""
        with self.lock:
            self.state = {**self.state, key: b""}
            self.view[key] = b""
            self.note(label)

    def power_cycle(self, *, orderly: bool) -> None:
        """A reboot writes everything back; a reset drops what is pending."""
        with self.lock:
            if orderly:
                self.flush("shutdown")
            self.pending.clear()
            self.view = dict(self.state)
            self.note("power cycle")

    def content(self) -> Content:
        """What is durable now."""
        return content_of(self.state)

    def note(self, label: str, *, changed: bool = True) -> None:
        """Add a point, unless nothing is different from the last one."""
        self.steps += 1
        if self._is_recorded and (changed or not self.points):
            self.points.append(Point(label, self.state, tuple(self.pending), self.facts()))
