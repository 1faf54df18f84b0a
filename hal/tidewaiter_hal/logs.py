"""Carries the injector's own logs into the audit chain and judges the state changes they tell.

A worker thread of its own: an append may wait for a slow medium, and the port must not.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final, Protocol

from tidewaiter_core.audit import SUPPRESSED, Actor, AuditUnavailableError, Outcome
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_hal.cursors import Verdict, judge, start
from tidewaiter_hal.events import EventBus, Subscription
from tidewaiter_hal.injector import LOG_COMMANDS
from tidewaiter_hal.model import Cursor, DeviceEvent, Fault, InjectionSummary, Log, LogEntry, LogPage
from tidewaiter_hal.port_thread import Line
from tidewaiter_hal.state_file import StateFile

logger = logging.getLogger(__name__)

PAGES_PER_TURN: Final = 4
PAGE_ENTRIES: Final[Mapping[Log, int]] = {Log.FAULTS: 8, Log.INJECTIONS: 4, Log.EVENTS: 8}
ASK_TIMEOUT_S: Final = 2.0
_HAL: Final = Actor(kind="component", id="hal")
_INJECTOR: Final = Actor(kind="injector", id="injector")
_KINDS: Final[Mapping[type, str]] = {
    Fault: "injector.fault",
    InjectionSummary: "injector.injection",
    DeviceEvent: "injector.event",
}
_STATE_CHANGE: Final = 1


class Chain(Protocol):
    """The part of the audit log this module needs."""

    def append(
        self,
        kind: str,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        fields: Mapping[str, Any] | None = None,
    ) -> int: ...
    def flush(self) -> None: ...


class LogReader:
    """Reads what is new; `turn` is called about once a second."""

    def __init__(self, line: Line, *, state: StateFile, chain: Chain, events: EventBus) -> None:
        self._line = line
        self._state = state
        self._chain = chain
        self._events = events

    def turn(self) -> None:
        """Up to four pages of each log whose newest entry is not in the chain yet."""
        if not self._state.is_writable:
            return
        for log in Log:
            try:
                for _ in range(PAGES_PER_TURN):
                    if not self._is_behind(log) or not self._page(log):
                        break
            except (AuditUnavailableError, TidewaiterError) as err:
                logger.info("device log %s: %s; the position stays, it is read again", log, err)

    def _is_behind(self, log: Log) -> bool:
        knowledge = self._line.knowledge
        identity, sample, capabilities = knowledge.identity, knowledge.sample, knowledge.capabilities
        if not knowledge.is_answering or identity is None or sample is None or capabilities is None:
            return False
        if log.value not in capabilities.features:
            return False
        head = {
            Log.FAULTS: sample.fault_head,
            Log.INJECTIONS: sample.injection_head,
            Log.EVENTS: sample.event_head,
        }[log]
        cursor = self._state.cursor(log)
        if cursor is None or cursor.serial != identity.serial or cursor.log_id != identity.log_id:
            return head > 0
        return cursor.seq != head

    def _page(self, log: Log) -> bool:
        """Read, record, move; False when there is nothing more to do now."""
        identity = self._line.knowledge.identity
        if identity is None:
            return False
        cursor = self._state.cursor(log)
        verdict = judge(self._ask(log, start(cursor, serial=identity.serial)), cursor, serial=identity.serial)
        if verdict.again:
            page = self._ask(log, start(cursor, serial=identity.serial))
            verdict = judge(page, cursor, serial=identity.serial, reread=True)
        reached = self._record(log, verdict)
        if reached == cursor:
            return False
        # At least once: the entries are on the medium before the position says so.
        self._chain.flush()
        self._state.move_cursor(log, reached)
        return reached == verdict.cursor

    def _ask(self, log: Log, after: int) -> LogPage:
        body: dict[str, int | bytes] = {"a": after, "m": PAGE_ENTRIES[log]}
        page = self._line.ask(LOG_COMMANDS[log], body, timeout_s=ASK_TIMEOUT_S)
        if not isinstance(page, LogPage):
            raise TypeError(f"{LOG_COMMANDS[log]} was answered with {type(page).__name__}")
        return page

    def _record(self, log: Log, verdict: Verdict) -> Cursor:
        """Append gaps and entries; returns how far it got, less than the verdict when records were suppressed."""
        here = verdict.cursor
        if verdict.reset:
            reason = "log formatted or injector replaced"
            self._append("injector.log_gap", Outcome.MINOR, log=log.value, serial=here.serial, detail=reason)
        for gap in verdict.gaps:
            missing = {"from": gap.first_missing, "to": gap.last_missing}
            self._append("injector.log_gap", Outcome.MINOR, log=log.value, serial=here.serial, **missing)
            self._events.publish(
                "LogGap", log=log.value, **{key: str(value) for key, value in missing.items()}
            )
        done = None
        for entry in verdict.entries:
            fields = {"serial": here.serial, "log_id": here.log_id, **_fields(entry)}
            if self._append(_KINDS[type(entry)], _outcome(entry), **fields) == SUPPRESSED:
                before = entry.seq - 1 if done is None else done
                return Cursor(serial=here.serial, log_id=here.log_id, seq=before)
            done = entry.seq
            self._tell(entry)
        return here

    def _append(self, kind: str, outcome: Outcome, **fields: Any) -> int:
        return self._chain.append(kind, actor=_INJECTOR, outcome=outcome, fields=fields)

    def _tell(self, entry: LogEntry) -> None:
        if isinstance(entry, Fault):
            self._events.publish(
                "FaultLogged", seq=str(entry.seq), code=str(entry.code), severity=str(entry.severity)
            )
        elif isinstance(entry, DeviceEvent) and entry.kind == _STATE_CHANGE:
            sample = self._line.knowledge.sample
            if sample is not None and sample.boot_id == entry.boot_id:
                self._line.noted_transition(entry.a, entry.b)


class LinkRecorder:
    """Puts changes of the link into the chain."""

    def __init__(self, subscription: Subscription, *, chain: Chain, driver: str | None) -> None:
        self._subscription = subscription
        self._chain = chain
        self._driver = driver

    def turn(self) -> None:
        """Record what changed since the last turn; what the chain refuses is only in the log of the process."""
        for event in self._subscription.take(0.0):
            if event.kind != "LinkChanged":
                continue
            fields = {**dict(event.detail), "driver": self._driver}
            try:
                self._chain.append("injector.link", actor=_HAL, fields=fields)
            except AuditUnavailableError as err:
                logger.warning("injector.link was not recorded: %s", err)


def _fields(entry: LogEntry) -> dict[str, Any]:
    fields = asdict(entry)
    # The chain's own `code` is text; the numbers of the injector keep their own names.
    for old, new in (("code", "number"), ("kind", "event")):
        if old in fields:
            fields[new] = fields.pop(old)
    return fields


def _outcome(entry: LogEntry) -> Outcome:
    if isinstance(entry, Fault):
        return (
            Outcome.SERIOUS if entry.severity >= 3 else Outcome.MINOR if entry.severity == 2 else Outcome.OK
        )
    return Outcome.OK
