"""The safety monitor: remembers every frame the host sent and which of them it must never send. Pure.

Written from the protocol document, not from the driver's table, so that a mistake there is seen here.
"""

from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

MONITOR: Final = 0x5457
RESTRICT: Final = 0x5458
FRAMES_KEPT: Final = 200
_READS: Final = frozenset(
    {(0, 6), (0, 7), (0, 8), (10, 1), (10, 3), (RESTRICT, 0)} | {(MONITOR, command) for command in range(10)}
)
_LEASE_WRITES: Final = frozenset({1, 2, 3})


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One frame of the host."""

    at_ms: int
    op: int
    group: int
    command: int
    seq: int


class SafetyMonitor:
    """Judges frames."""

    def __init__(self) -> None:
        self.frames: deque[Seen] = deque(maxlen=FRAMES_KEPT)
        self.total = 0
        self.by_command: Counter[tuple[int, int, int]] = Counter()
        self.violations: list[str] = []

    def note(self, frame: Seen) -> None:
        """Record a well-formed frame."""
        self.frames.append(frame)
        self.total += 1
        self.by_command[frame.op, frame.group, frame.command] += 1
        reads = frame.op == 0 and (frame.group, frame.command) in _READS
        leases = frame.op == 2 and frame.group == RESTRICT and frame.command in _LEASE_WRITES
        if not reads and not leases:
            self.violations.append(
                f"{frame.at_ms} ms: op {frame.op} group 0x{frame.group:04x} command {frame.command} is neither a "
                "monitor read nor a lease command"
            )
