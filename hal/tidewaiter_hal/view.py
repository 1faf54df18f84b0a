"""The `Injector` that the rest of the product sees: reads knowledge, asks the line for list pages, transmits nothing else."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from tidewaiter_core.clock import Clock

from tidewaiter_hal.errors import BadCursorError, LinkDownError, NotSupportedError
from tidewaiter_hal.events import EventBus, Subscription
from tidewaiter_hal.injector import LOG_COMMANDS
from tidewaiter_hal.model import (
    Capabilities,
    Cursor,
    Fault,
    Identity,
    InjectionSummary,
    Lease,
    Log,
    LogPage,
    SelfTest,
    Snapshot,
)
from tidewaiter_hal.port_thread import Line

E = TypeVar("E", Fault, InjectionSummary)

LIST_LIMIT: Final = 64
ASK_TIMEOUT_S: Final = 2.0


class InjectorView:
    """See `injector.Injector`."""

    def __init__(
        self, line: Line, *, clock: Clock, events: EventBus, lease: Callable[[], Lease | None]
    ) -> None:
        self._line = line
        self._clock = clock
        self._events = events
        self._lease = lease

    def identity(self) -> Identity | None:
        """Who it is; None before the first contact of this boot."""
        return self._line.knowledge.identity

    def capabilities(self) -> Capabilities | None:
        """What it can; None before the first contact of this boot."""
        return self._line.knowledge.capabilities

    def snapshot(self) -> Snapshot:
        """Everything known, with the quality it has now."""
        return self._line.knowledge.snapshot(self._clock.boottime_s(), self._lease())

    def faults(self, after: Cursor | None, limit: int) -> tuple[Sequence[Fault], Cursor | None]:
        """Fault entries after `after`, and where to go on."""
        return self._entries(Log.FAULTS, after, limit, Fault)

    def injections(
        self, after: Cursor | None, limit: int
    ) -> tuple[Sequence[InjectionSummary], Cursor | None]:
        """Injection entries after `after`, and where to go on."""
        return self._entries(Log.INJECTIONS, after, limit, InjectionSummary)

    def self_test_result(self) -> SelfTest:
        """The injector's own last self-test. Raises NotSupportedError, LinkDownError."""
        knowledge = self._line.knowledge
        if knowledge.self_test is not None:
            return knowledge.self_test
        self._require("selftest")
        result = self._line.ask("selftest", {}, timeout_s=ASK_TIMEOUT_S)
        if not isinstance(result, SelfTest):
            raise LinkDownError("self-test: the injector answered with something else")
        return result

    def subscribe(self) -> Subscription:
        """A bounded queue of what happens from now on; end it with `unsubscribe`."""
        return self._events.subscribe()

    @contextmanager
    def subscribed(self) -> Iterator[Subscription]:
        """A subscription that ends with the block."""
        subscription = self.subscribe()
        try:
            yield subscription
        finally:
            self._events.unsubscribe(subscription)

    def _require(self, feature: str) -> Identity:
        knowledge = self._line.knowledge
        if not knowledge.is_answering or knowledge.identity is None or knowledge.capabilities is None:
            raise LinkDownError(f"{feature}: injector link is {knowledge.link} ({knowledge.link_reason})")
        if feature not in knowledge.capabilities.features:
            raise NotSupportedError(f"{feature}: this injector does not offer it")
        return knowledge.identity

    def _entries(
        self, log: Log, after: Cursor | None, limit: int, kind: type[E]
    ) -> tuple[Sequence[E], Cursor | None]:
        identity = self._require(log.value)
        if after is not None and (after.serial, after.log_id) != (identity.serial, identity.log_id):
            raise BadCursorError(
                f"{log} cursor of {after.serial}/{after.log_id:08x}, the injector is "
                f"{identity.serial}/{identity.log_id:08x}: read from the beginning"
            )
        position = after.seq if after else 0
        if not 0 <= position <= 0xFFFFFFFF:
            raise BadCursorError(f"{log} cursor: position {position} is no sequence number")
        found: list[E] = []
        limit = max(1, min(limit, LIST_LIMIT))
        while len(found) < limit:
            body: dict[str, int | bytes] = {"a": position, "m": min(limit - len(found), 8)}
            page = self._line.ask(LOG_COMMANDS[log], body, timeout_s=ASK_TIMEOUT_S)
            if not isinstance(page, LogPage) or not page.entries:
                break
            entries = [entry for entry in page.entries if isinstance(entry, kind)][: limit - len(found)]
            found += entries
            position = entries[-1].seq
            if position >= page.head:
                break
        return found, Cursor(serial=identity.serial, log_id=identity.log_id, seq=position)
