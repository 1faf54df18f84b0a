"""The one thread that touches the port: waits for bytes, commands and deadlines, and runs the conversation.

Other threads ask through `Line.ask`, which waits for the answer with a time-out. No foreign code runs here.
"""

import logging
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from tidewaiter_core.clock import Clock

from tidewaiter_hal.conversation import Conversation, Outcome
from tidewaiter_hal.errors import (
    HalError,
    LinkDownError,
    NotSupportedError,
    PortAbsentError,
    PortBusyError,
    PortLostError,
    QueueFullError,
)
from tidewaiter_hal.injector import Answered, Permit, Question, Refused
from tidewaiter_hal.link import Step
from tidewaiter_hal.model import LinkState
from tidewaiter_hal.picture import Knowledge, Picture
from tidewaiter_hal.ports import Port, PortOpener

logger = logging.getLogger(__name__)

WAIT_LIMIT_S: Final = 0.5
"""Also how often an absent node is looked for."""
FLOOD_PAUSE_S: Final = 0.05
SIMULTANEOUS_LIMIT: Final = 16


class DeviceRefusedError(HalError):
    """The injector answered with an error code (8.9)."""

    code = "hal.device-refused"

    def __init__(self, command: str, number: int) -> None:
        super().__init__(f"injector refused {command} with code {number}; nothing changed")
        self.number = number


class Line(Protocol):
    """What the rest of the HAL may do with the injector's line."""

    @property
    def knowledge(self) -> Knowledge: ...

    def ask(
        self, command: str, body: dict[str, int | bytes], *, timeout_s: float, permit: Permit | None = None
    ) -> object:
        """The payload of the answer. Raises LinkDownError, QueueFullError, DeviceRefusedError, NotSupportedError."""

    def noted_transition(self, came_from: int, went_to: int) -> None:
        """A state change was read in the device's event log."""


class Beat(Protocol):
    """Where progress is reported."""

    def step(self) -> None: ...


class _Waiter:
    def __init__(self, question: Question) -> None:
        self.question = question
        self.done = threading.Event()
        self.outcome: Outcome | HalError | None = None

    def finish(self, outcome: Outcome | HalError) -> None:
        self.outcome = outcome
        self.done.set()


class PortThread:
    """Owns the port from open to close. See `Line` for the part other threads use."""

    def __init__(
        self,
        opener: PortOpener,
        *,
        picture: Picture,
        clock: Clock,
        conversation: Callable[[Callable[[bytes], None], Callable[[Question, Outcome], None]], Conversation],
    ) -> None:
        """Args:
        conversation: Builds the conversation around this thread's write and settle functions.
        """
        self._opener = opener
        self._picture = picture
        self._clock = clock
        self._port: Port | None = None
        self._marker: object = None
        self._lock = threading.Lock()
        self._asked: deque[_Waiter] = deque()
        self._waiters: dict[Question, list[_Waiter]] = {}
        self._transitions: deque[tuple[int, int]] = deque()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._shown: tuple[LinkState, str] | None = None
        self._open_problem = ""
        self._conversation = conversation(self._write, self._settled)

    # For other threads

    @property
    def knowledge(self) -> Knowledge:
        """What is known now."""
        return self._picture.knowledge

    def ask(
        self, command: str, body: dict[str, int | bytes], *, timeout_s: float, permit: Permit | None = None
    ) -> object:
        """See `Line.ask`."""
        expires_s = self._clock.boottime_s() + timeout_s
        waiter = _Waiter(Question(command=command, body=body, permit=permit, expires_s=expires_s))
        with self._lock:
            if len(self._asked) + len(self._waiters) >= SIMULTANEOUS_LIMIT:
                raise QueueFullError(
                    f"injector line: {SIMULTANEOUS_LIMIT} questions wait; {command} was not asked"
                )
            self._asked.append(waiter)
        self.wake()
        if not self._clock.wait(waiter.done, timeout_s) or waiter.outcome is None:
            raise LinkDownError(
                f"injector: no answer to {command} within {timeout_s:g} s; it may have taken effect"
            )
        return payload_of(command, waiter.outcome)

    def noted_transition(self, came_from: int, went_to: int) -> None:
        """See `Line.noted_transition`."""
        self._transitions.append((came_from, went_to))
        self.wake()

    # The thread

    def run(self, stop: threading.Event, beat: Beat) -> None:
        """Serve the port until `stop`."""
        try:
            while not stop.is_set():
                self.turn()
                beat.step()
        finally:
            self._close()

    def turn(self) -> None:
        """One wait and what follows from it."""
        now_s = self._clock.boottime_s()
        try:
            self._take_questions()
            self._look_for_node(now_s)
            self._follow(self._conversation.advance(now_s), now_s)
            self._wait(now_s)
        except PortLostError as err:
            self._lost(err, self._clock.boottime_s())
        self._show_link()

    def _wait(self, now_s: float) -> None:
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        port = self._port
        if port is not None and not self._conversation.is_flooded:
            poller.register(port.fileno(), select.POLLIN)
        limit_s = FLOOD_PAUSE_S if self._conversation.is_flooded else WAIT_LIMIT_S
        timeout_s = min(max(self._conversation.deadline() - now_s, 0.0), limit_s)
        ready = {fd for fd, _ in poller.poll(timeout_s * 1000)}
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        flooded = self._conversation.is_flooded
        if port is not None and (flooded or port.fileno() in ready):
            # A hang-up shows in read(), after the bytes that came before it.
            data = port.read()
            if data or flooded:
                self._conversation.received(data, self._clock.boottime_s())

    def _follow(self, step: Step, now_s: float) -> None:
        if step is Step.OPEN:
            self._open(now_s)
        elif step is Step.FLUSH and self._port is not None:
            # A peer that stopped reading would answer these requests later.
            self._port.discard()
        elif step is Step.CLOSE:
            self._close()

    def _open(self, now_s: float) -> None:
        self._marker = self._opener.marker()
        try:
            self._port = self._opener.open()
        except (PortAbsentError, PortBusyError, PortLostError) as err:
            self._conversation.open_failed(err.code.removeprefix("hal."), now_s)
            if err.code != self._open_problem:
                logger.warning("%s", err)
            self._open_problem = err.code
            return
        self._open_problem = ""
        self._conversation.opened(now_s)

    def _look_for_node(self, now_s: float) -> None:
        if self._port is None:
            marker = self._opener.marker()
            if marker is not None and marker != self._marker:
                self._marker = marker
                self._conversation.link.appeared(now_s)

    def _lost(self, err: PortLostError, now_s: float) -> None:
        logger.warning("%s", err)
        self._close()
        self._conversation.lost("port-lost", now_s)

    def _close(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None

    def _write(self, data: bytes) -> None:
        if self._port is None:
            raise PortLostError("injector port: it is not open; the request was dropped")
        self._port.write(data)

    def _take_questions(self) -> None:
        while self._transitions:
            self._picture.transition(*self._transitions.popleft(), self._clock.boottime_s())
        while True:
            with self._lock:
                if not self._asked:
                    return
                waiter = self._asked.popleft()
                twin = self._twin(waiter.question)
                self._waiters.setdefault(twin or waiter.question, []).append(waiter)
            if twin is None:
                try:
                    self._conversation.ask(waiter.question)
                except (LinkDownError, QueueFullError) as err:
                    self._finish(waiter.question, err)

    def _twin(self, question: Question) -> Question | None:
        """The same question of another thread that waits already: one answer serves both."""
        for other in self._waiters:
            same = (other.command, other.body) == (question.command, question.body)
            if (
                same
                and other.permit is None
                and question.permit is None
                and other.expires_s >= question.expires_s - 1
            ):
                return other
        return None

    def _settled(self, question: Question, outcome: Outcome) -> None:
        self._finish(question, outcome)

    def _finish(self, question: Question, outcome: Outcome | HalError) -> None:
        with self._lock:
            waiters = self._waiters.pop(question, [])
        for waiter in waiters:
            waiter.finish(outcome)

    def _show_link(self) -> None:
        link = self._conversation.link
        if link.state is not LinkState.OPENING and (link.state, link.reason) != self._shown:
            self._shown = (link.state, link.reason)
            logger.info("injector link %s: %s", link.state, link.reason)

    def wake(self) -> None:
        """End the current wait, for instance because the process stops."""
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            return  # the pipe is full of wake-ups already


class NoLine:
    """The line of a service that has no driver: nothing is known and nothing can be asked."""

    def __init__(self, picture: Picture, reason: str) -> None:
        picture.link_is(LinkState.CLOSED, reason)
        self._picture = picture

    @property
    def knowledge(self) -> Knowledge:
        """Nothing but the reason."""
        return self._picture.knowledge

    def ask(
        self, command: str, body: dict[str, int | bytes], *, timeout_s: float, permit: Permit | None = None
    ) -> object:
        """Raises LinkDownError always."""
        raise LinkDownError(f"injector: there is no driver; {command} was not asked")

    def noted_transition(self, came_from: int, went_to: int) -> None:
        """Cannot happen."""


def payload_of(command: str, outcome: Outcome | HalError) -> object:
    """What an outcome means for the asker: the payload, or the error to raise."""
    match outcome:
        case Answered(payload=payload):
            return payload
        case Refused(code=5 | 8 as number) if not command.startswith("lease-"):
            raise NotSupportedError(f"injector: {command} is not supported (code {number})")
        case Refused(code=number):
            raise DeviceRefusedError(command, number)
        case HalError():
            raise outcome
        case _:
            raise LinkDownError(
                f"injector: no valid answer to {command} in any try; it may have taken effect"
            )
