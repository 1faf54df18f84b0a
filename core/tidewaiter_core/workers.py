"""The named threads of a process and what ends them.

The main thread does nothing but watch: signals, the heartbeat, the first failure. An exception in a worker, or a
worker that ends although nobody asked it to, ends the process with exit code 70 and systemd restarts it: a process
that lost a thread is not half alive.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final

from tidewaiter_core.clock import Clock, Deadline, SystemClock
from tidewaiter_core.heartbeat import Heartbeat, dump_stacks
from tidewaiter_core.notify import Notifier

logger = logging.getLogger(__name__)

EXIT_SOFTWARE: Final = 70
"""EX_SOFTWARE of sysexits.h: a worker failed."""
EXIT_SECOND_INSTANCE: Final = 75
"""EX_TEMPFAIL: another instance holds the lock."""
GRACE_S: Final = 5.0


class Stop:
    """The wish that all workers end; once set it stays set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.event: Final = threading.Event()
        self._clock = clock or SystemClock()
        self._wakers: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        """The workers are asked to end."""
        return self.event.is_set()

    def set(self) -> None:
        """Ask all workers to end. Not for signal handlers: an event's lock may be held by the interrupted code."""
        self.event.set()
        for waker in list(self._wakers):
            waker()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the workers are asked to end (True) or `timeout_s` has passed (False)."""
        return self._clock.wait(self.event, timeout_s)

    @contextlib.contextmanager
    def waking(self, waker: Callable[[], None]) -> Iterator[None]:
        """Call `waker` when the stop is set, as long as the context lasts."""
        self._wakers.append(waker)
        try:
            yield
        finally:
            self._wakers.remove(waker)


@dataclass(frozen=True, slots=True)
class Worker:
    """One named thread."""

    name: str
    run: Callable[[Stop], None]
    """Returns soon after the stop is set, and not before."""
    on_stop: Callable[[], None] | None = None
    """Called once when the process stops, to end a wait that does not look at the stop; must not block."""


class _Wake:
    """A pipe that ends the main thread's wait; writing to it is safe in a signal handler."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.signal: int | None = None

    def wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # A full pipe wakes as well.
            os.write(self._writer, b"\0")

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.wake()

    def wait(self, timeout_s: float) -> None:
        if select.select([self._reader], [], [], timeout_s)[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)

    def close(self) -> None:
        os.close(self._reader)
        os.close(self._writer)


class _Crew:
    """The running threads."""

    def __init__(self, workers: Sequence[Worker], stop: Stop, wake: _Wake) -> None:
        self._stop = stop
        self._wake = wake
        self._workers = workers
        self.failed = threading.Event()
        # Daemons: a thread that does not end in time must not keep the process from ending.
        self._threads = [
            threading.Thread(target=self._run, args=(worker,), name=worker.name, daemon=True)
            for worker in workers
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def _run(self, worker: Worker) -> None:
        try:
            worker.run(self._stop)
        except BaseException:  # noqa: BLE001 - whatever it was, SystemExit too, the process ends because of it
            self._fail(f"worker.failed: {worker.name} raised; the process ends", trace=True)
            return
        if not self._stop.is_set:
            self._fail(
                f"worker.ended: {worker.name} returned before it was asked to; the process ends", trace=False
            )

    def _fail(self, text: str, *, trace: bool) -> None:
        if not self.failed.is_set():
            logger.critical("%s", text, exc_info=trace)
        self.failed.set()
        self._wake.wake()

    def end(self, grace_s: float) -> bool:
        """Ask every worker to end and wait for it; False if one does not."""
        self._stop.set()
        clean = True
        for worker in self._workers:
            if worker.on_stop is not None:
                clean &= _guarded(worker.on_stop, f"on_stop of {worker.name}")
        deadline = Deadline(SystemClock(), grace_s)
        for thread in self._threads:
            thread.join(deadline.remaining_s())
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            logger.error("worker.stuck: %s did not end within %g s", ", ".join(stuck), grace_s)
            dump_stacks()
        return clean and not stuck


def run(
    workers: Sequence[Worker],
    *,
    heartbeat: Heartbeat,
    notifier: Notifier,
    stop: Stop | None = None,
    on_ready: Callable[[], None] | None = None,
    grace_s: float = GRACE_S,
) -> int:
    """Run `workers` until SIGTERM, SIGINT, `stop` or the first failure; returns the exit code of the process.

    Args:
        on_ready: Called when all workers run, before the service manager is told so.
        grace_s: Time the workers have to end after they were asked to.

    Returns:
        0 after a clean stop, 70 if a worker failed, ended by itself or did not end in time.
    """
    stop = stop or Stop()
    wake = _Wake()
    crew = _Crew(workers, stop, wake)
    if not faulthandler.is_enabled() and sys.__stderr__ is not None:
        # SIGABRT is what systemd sends when the watchdog expires: all stacks land in the journal.
        faulthandler.enable(file=sys.__stderr__, all_threads=True)
    try:
        with _signals(wake), stop.waking(wake.wake):
            crew.start()
            if on_ready is None or _guarded(on_ready, "on_ready"):
                _watch(crew, wake, stop=stop, heartbeat=heartbeat, notifier=notifier)
            else:
                crew.failed.set()
            notifier.stopping()
            clean = crew.end(grace_s)
        return 0 if clean and not crew.failed.is_set() else EXIT_SOFTWARE
    finally:
        # A worker that is still alive may wake once more; a closed descriptor could then be somebody else's.
        if not any(thread.is_alive() for thread in crew._threads):
            wake.close()


def _watch(crew: _Crew, wake: _Wake, *, stop: Stop, heartbeat: Heartbeat, notifier: Notifier) -> None:
    """What the main thread does between start and stop."""
    clock = SystemClock()
    ready = notifier.ready()
    due = Deadline(clock, 0)
    while not stop.is_set and not crew.failed.is_set() and wake.signal is None:
        if due.expired:
            ready = ready or notifier.ready()
            heartbeat.tick()
            due = Deadline(clock, heartbeat.watchdog_interval_s)
        wake.wait(due.remaining_s())
    if wake.signal is not None:
        logger.info("process.signal: %s, stopping", signal.Signals(wake.signal).name)


def _guarded(call: Callable[[], None], what: str) -> bool:
    try:
        call()
    except Exception:
        logger.critical("worker.failed: %s raised", what, exc_info=True)
        return False
    return True


@contextlib.contextmanager
def _signals(wake: _Wake) -> Iterator[None]:
    """Let SIGTERM and SIGINT wake the main thread; as it was before on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, wake.on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
