"""What happened when: the record that the console story, report.json and report.html are made of."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

POLL_S = 0.2


class StepFailedError(AssertionError):
    """A step of the story did not end as told; the message says what was expected and what was found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    at_s: float
    lane: str
    text: str
    kind: str = "note"
    """note, boot, cut, good, bad: the mark's color in the picture."""


@dataclass(slots=True)
class Bar:
    """A stretch of time in one phase on one lane."""

    lane: str
    label: str
    from_s: float
    to_s: float | None = None


@dataclass(slots=True)
class Step:
    name: str
    title: str
    ok: bool = False
    detail: str = ""
    from_s: float = 0.0
    to_s: float = 0.0


@dataclass(slots=True)
class Timeline:
    """Thread-safe collector; also the one place that writes the story to the terminal."""

    started_s: float = field(default_factory=time.monotonic)
    events: list[Event] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _status_shown: bool = False

    def now_s(self) -> float:
        return time.monotonic() - self.started_s

    def say(self, text: str, *, lane: str = "story", kind: str = "note") -> None:
        """One line of the story, on the terminal and in the report."""
        with self._lock:
            self.events.append(Event(at_s=self.now_s(), lane=lane, text=text, kind=kind))
            self._clear()
            mark = {"good": "✓", "bad": "✗", "cut": "⚡", "boot": "↻"}.get(kind, " ")
            where = "" if lane == "story" else f"{lane}: "
            print(f"{self.now_s():6.1f} s {mark} {where}{text}", flush=True)

    def progress(self, text: str) -> None:
        """A line that the next one overwrites; silent where the output is not a terminal."""
        if not sys.stdout.isatty():
            return
        with self._lock:
            width = shutil.get_terminal_size().columns - 1
            print("\r\x1b[K" + f"{self.now_s():6.1f} s … {text}"[:width], end="", flush=True)
            self._status_shown = True

    def phase(self, lane: str, label: str) -> None:
        """`lane` entered `label`; closes the bar before it."""
        with self._lock:
            now = self.now_s()
            for bar in self.bars:
                if bar.lane == lane and bar.to_s is None:
                    if bar.label == label:
                        return
                    bar.to_s = now
            self.bars.append(Bar(lane, label, now))

    @contextmanager
    def step(self, name: str, title: str) -> Iterator[Step]:
        """One step; a `StepFailedError` inside is recorded as its result and the story goes on."""
        step = Step(name, title, from_s=self.now_s())
        with self._lock:
            self.steps.append(step)
            self._clear()
            print(f"\n── {name}: {title}", flush=True)
        try:
            yield step
            step.ok = True
            self.say(step.detail or "done", kind="good")
        except StepFailedError as err:
            step.detail = str(err)
            self.say(str(err), kind="bad")
        finally:
            step.to_s = self.now_s()

    def wait(
        self, what: str, condition: Callable[[], bool], *, timeout_s: float, show: Callable[[], str] = str
    ) -> None:
        """Wait until `condition`, with `show()` as progress.

        Raises:
            StepFailedError: `timeout_s` seconds went by.
        """
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise StepFailedError(
                    f"{what}: not within {timeout_s:.0f} s; last seen: {show() or 'nothing'}"
                )
            self.progress(f"{what} {show()}")
            time.sleep(POLL_S)

    def _clear(self) -> None:
        if self._status_shown:
            print("\r\x1b[K", end="")
            self._status_shown = False


def expect(condition: bool, sentence: str) -> None:
    """Fail the step with `sentence` unless `condition`."""
    if not condition:
        raise StepFailedError(sentence)
