"""The simulated injector's three logs: bounded, with sequence numbers that never repeat. Pure."""

from collections import deque
from typing import Final, TypeAlias

KEPT: Final = 64

Entry: TypeAlias = list[int | None]


class Log:
    """One log; entries are lists as they go over the wire, their first element is the number."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=KEPT)
        self.head = 0

    @property
    def first(self) -> int:
        """Number of the oldest kept entry, or of the next one."""
        kept = self.entries[0][0] if self.entries else None
        return self.head + 1 if kept is None else kept

    def append(self, *values: int | None) -> None:
        """Number and keep an entry."""
        self.head += 1
        self.entries.append([self.head, *values])

    def page(self, after: int, limit: int) -> list[Entry]:
        """Entries after `after`, oldest first."""
        return [entry for entry in self.entries if (entry[0] or 0) > after][:limit]

    def overflow(self) -> None:
        """Lose all but the newest two, as a log does that nobody read for long."""
        while len(self.entries) > 2:
            self.entries.popleft()


class Recorder:
    """Faults, injections and events."""

    def __init__(self, log_id: int) -> None:
        self.log_id = log_id
        self.faults = Log()
        self.injections = Log()
        self.events = Log()

    def format(self, log_id: int) -> None:
        """Begin all logs again under another id."""
        self.log_id = log_id
        self.faults, self.injections, self.events = Log(), Log(), Log()

    def fault(
        self, boot: int, ms: int, *, code: int, severity: int, board: int, argument: int | None
    ) -> None:
        """Fault entry of 8.7."""
        self.faults.append(boot, ms, None, code, severity, board, argument)

    def event(self, boot: int, ms: int, kind: int, a: int, b: int) -> None:
        """Event entry of 8.7."""
        self.events.append(boot, ms, kind, int(a), int(b))

    def injection(
        self,
        boot: int,
        *,
        start_ms: int,
        planned_ul: int,
        delivered_ul: int,
        peak_ul_per_s: int,
        peak_kpa: int,
        duration_ms: int,
        end: int,
    ) -> None:
        """Injection entry of 8.7."""
        self.injections.append(
            boot, start_ms, None, 17, 0, planned_ul, delivered_ul, peak_ul_per_s, peak_kpa, duration_ms, end
        )
