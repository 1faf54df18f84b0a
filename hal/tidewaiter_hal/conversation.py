"""One port's conversation: driver, gate, link and picture put together, still without threads. Pure.

The owner tells it what arrived and what time it is; it says when it wants to be called again. Tests run it against
the simulator with a false clock.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable
from typing import Final

from tidewaiter_hal.errors import GateRefusedError, LinkDownError
from tidewaiter_hal.events import EventBus
from tidewaiter_hal.gate import Gate
from tidewaiter_hal.injector import (
    STALE_REPLY,
    Answered,
    BadInput,
    DriverType,
    LineSettings,
    ProtocolUnknown,
    Question,
    Refused,
    Unanswered,
    Update,
)
from tidewaiter_hal.link import Link, Step
from tidewaiter_hal.model import Identity, LineCounters, LinkState, StateSample
from tidewaiter_hal.picture import Picture

logger = logging.getLogger(__name__)

DRAIN_QUIET_S: Final = 0.1
DRAIN_LIMIT_S: Final = 1.0
DRAIN_LIMIT_BYTES: Final = 4096
FLOOD_BYTES_PER_S: Final = 64 * 1024

Outcome = Answered | Refused | Unanswered | LinkDownError
"""How a question ended."""


class Conversation:
    """See the module. `write` is the open port's write; `settled` is told how a question ended."""

    def __init__(
        self,
        driver_type: DriverType,
        line: LineSettings,
        *,
        picture: Picture,
        events: EventBus,
        rng: random.Random,
        write: Callable[[bytes], None],
        settled: Callable[[Question, Outcome], None],
    ) -> None:
        self.link = Link(baud=line.baud, rng=rng)
        self.counts: Counter[str] = Counter()
        self._driver = driver_type.create(line, rng.randrange(256))
        self._gate = Gate(driver_type.commands, driver_type.codec, line, write=write)
        self._picture = picture
        self._events = events
        self._settled = settled
        self._open_questions: dict[Question, None] = {}
        self._draining = False
        self._drain_started_s = self._drained_s = 0.0
        self._drained_bytes = 0
        self._budget_bytes = float(FLOOD_BYTES_PER_S)
        self._budget_s = 0.0

    # What the owner reports

    def opened(self, now_s: float) -> None:
        """The port is open."""
        self._follow(self.link.opened(now_s), now_s)

    def open_failed(self, reason: str, now_s: float) -> None:
        """The port could not be opened."""
        self.link.open_failed(reason, now_s)
        self._show(now_s)

    def lost(self, reason: str, now_s: float) -> None:
        """The port failed and was closed."""
        self.link.lost(reason, now_s)
        self._end_questions("the port was lost")
        self._show(now_s)

    def ask(self, question: Question) -> None:
        """Ask besides the poll. Raises LinkDownError, QueueFullError; else `settled` is told exactly once."""
        if not self._picture.knowledge.is_answering:
            raise LinkDownError(
                f"injector link is {self.link.state} ({self.link.reason}): {question.command} was not asked"
            )
        self._driver.ask(question)
        self._open_questions[question] = None

    def received(self, data: bytes, now_s: float) -> None:
        """Bytes arrived."""
        if self._over_budget(len(data), now_s):
            self.counts["flood_bytes"] += len(data)
            self.link.flooded(now_s)
            self._show(now_s)
            return
        if self._draining:
            self._drained_bytes += len(data)
            self._drained_s = now_s
            return
        self._take(self._driver.receive(data, now_s), now_s)

    @property
    def is_flooded(self) -> bool:
        """Whether the owner should stop reading for a moment."""
        return self._budget_bytes <= 0

    def advance(self, now_s: float) -> Step:
        """Do what is due; OPEN, FLUSH and CLOSE are left to the owner. Raises PortLostError."""
        step = self.link.tick(now_s)
        if step is Step.OPEN or step is Step.CLOSE or step is Step.FLUSH:
            self._end_questions(self.link.reason)
            self._show(now_s)
            return step
        self._follow(step, now_s)
        self._drain(now_s)
        if self.link.is_talking and not self._draining:
            pending = self._driver.pending
            if pending is not None and now_s >= pending.deadline_s:
                self.counts["timeouts"] += 1
                self._take(self._driver.timed_out(pending, now_s), now_s)
            self._send(now_s)
        self._picture.refresh_findings(now_s)
        self._show(now_s)
        return Step.NOTHING

    def deadline(self) -> float:
        """When `advance` must be called at the latest."""
        if self._draining:
            return min(self._drained_s + DRAIN_QUIET_S, self._drain_started_s + DRAIN_LIMIT_S)
        talking = self._driver.deadline() if self.link.is_talking else float("inf")
        return min(self.link.deadline(), talking)

    # Sending

    def _send(self, now_s: float) -> None:
        request = self._driver.due(now_s)
        if request is None:
            return
        try:
            self._gate.emit(request)
        except GateRefusedError as err:
            # A driver bug: nothing left the process. The request times out like any other.
            self.counts["gate_refused"] += 1
            logger.error("%s", err)  # noqa: TRY400 - the message says all
            self._events.publish("GateRefused", command=request.command)

    def _follow(self, step: Step, now_s: float) -> None:
        if step is Step.SYNC:
            self.counts["resyncs"] += 1
            self._end_questions("the link is being synchronized")
            self._draining = True
            self._drain_started_s = self._drained_s = now_s
            self._drained_bytes = 0
            self._show(now_s)
            self._gate.resync()

    def _drain(self, now_s: float) -> None:
        """Old bytes, perhaps answers to a dead instance's requests, must not be taken for ours."""
        if not self._draining:
            return
        quiet = now_s - self._drained_s >= DRAIN_QUIET_S
        if (
            quiet
            or now_s - self._drain_started_s >= DRAIN_LIMIT_S
            or self._drained_bytes >= DRAIN_LIMIT_BYTES
        ):
            self._draining = False
            self._driver.restart(now_s)

    # Receiving

    def _take(self, updates: list[Update], now_s: float) -> None:
        for update in updates:
            match update:
                case Answered():
                    self._answered(update, now_s)
                case Unanswered():
                    self.link.unanswered()
                    if update.final:
                        self._settle(update.question, update)
                case Refused():
                    # An error is an answer: somebody understood the request.
                    self.link.answered(now_s)
                    if update.final:
                        self._settle(update.question, update)
                case BadInput(kind=kind, count=count):
                    self.counts[kind] += count
                    if kind != STALE_REPLY:
                        self.link.damaged(count, now_s)
                case ProtocolUnknown():
                    self.link.incompatible(update.major, now_s)
                    self._end_questions("the protocol version is unknown")
        self._show(now_s)

    def _answered(self, update: Answered, now_s: float) -> None:
        self.link.answered(now_s)
        payload = update.payload
        known = self._picture.knowledge
        boot_id = payload.boot_id if isinstance(payload, StateSample | Identity) else None
        if boot_id is not None and known.identity is not None and known.identity.boot_id != boot_id:
            reset_reason = payload.reset_reason if isinstance(payload, Identity) else None
            self._picture.forget(boot_id, reset_reason)
            if isinstance(payload, StateSample):
                self._follow(self.link.restarted("the injector booted", now_s), now_s)
                return
        if isinstance(payload, Identity) and self.link.state is LinkState.INCOMPATIBLE:
            self._follow(self.link.restarted("compatible again", now_s), now_s)
            return
        self._picture.accept(payload, now_s, update.request.sent_s)
        if isinstance(payload, StateSample):
            self.link.sampled(payload.boot_id, now_s)
            self._driver.pace(self.link.poll_interval_s(payload.state))
        self._settle(update.question, update)

    def _settle(self, question: Question | None, outcome: Outcome) -> None:
        if question is not None and question in self._open_questions:
            del self._open_questions[question]
            self._settled(question, outcome)

    def _end_questions(self, why: str) -> None:
        for question in list(self._open_questions):
            error = LinkDownError(
                f"injector link is {self.link.state} ({why}): {question.command} has no answer"
            )
            self._settle(question, error)

    def _show(self, now_s: float) -> None:
        self._picture.link_is(self.link.state, self.link.reason)
        counters = LineCounters(
            crc_errors=self.counts["crc16"] + self.counts["crc32"],
            timeouts=self.counts["timeouts"],
            stale_replies=self.counts[STALE_REPLY],
            resyncs=self.counts["resyncs"],
            flood_bytes=self.counts["flood_bytes"],
            dropped_events=self._events.dropped,
        )
        if counters != self._picture.knowledge.counters:
            self._picture.count(counters)

    def _over_budget(self, count: int, now_s: float) -> bool:
        refill = (now_s - self._budget_s) * FLOOD_BYTES_PER_S
        self._budget_s = now_s
        self._budget_bytes = min(float(FLOOD_BYTES_PER_S), self._budget_bytes + refill) - count
        self._budget_bytes = max(self._budget_bytes, -float(FLOOD_BYTES_PER_S) / 8)
        return self._budget_bytes <= 0
