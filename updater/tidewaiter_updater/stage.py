"""A thread of a transfer whose error ends up in the caller, and what the engine says to all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tidewaiter_core.clock import Clock

from tidewaiter_updater.errors import InstallCancelledError

POLL_S: Final = 0.5
"""How often whoever waits looks around and gives its beat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What the engine says while a transfer runs, and how the transfer says that it is alive."""

    paused: Callable[[], bool] = lambda: False
    cancelled: Callable[[], bool] = lambda: False
    beat: Callable[[str], None] = lambda stage: None
    """Called with the stage (fetch, assemble, write, sync) at each step and about twice a second while it waits."""

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
        never = threading.Event()
        self._control.check(self._what)
        self._control.beat("assemble")
        while self._control.paused():
            self._control.check(self._what)
            self._control.beat("assemble")
            self._clock.wait(never, POLL_S)


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
