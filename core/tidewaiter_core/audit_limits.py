"""What keeps a flood or a full disk from costing evidence: rate limits for kinds B and C, and the state of the budget. Pure.

Source: security-and-audit.md section 6. Class A is never suppressed: a flood of class A fills the log and is then refused.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import StrEnum

RATE_PER_S = 1.0
BURST = 120
REPORT_EVERY_S = 60.0
_WATCHED_LIMIT = 512


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float
    suppressed: int = 0


class RateLimit:
    """60 records a minute per (kind, actor), with a burst of 120. Counts what it holds back."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[tuple[str, str], _Bucket] = OrderedDict()
        self._reported_s: float | None = None

    def admit(self, kind: str, actor: str, now_s: float) -> bool:
        """True if the record may be written; else it was counted."""
        bucket = self._buckets.setdefault((kind, actor), _Bucket(float(BURST), now_s))
        self._buckets.move_to_end((kind, actor))
        bucket.tokens = min(float(BURST), bucket.tokens + max(0.0, now_s - bucket.at_s) * RATE_PER_S)
        bucket.at_s = now_s
        self._forget(now_s)
        if bucket.tokens < 1.0:
            bucket.suppressed += 1
            if self._reported_s is None:
                self._reported_s = now_s
            return False
        bucket.tokens -= 1.0
        return True

    def due_s(self) -> float | None:
        """When `take` has something to report, in boot time; None if nothing is held back."""
        return None if self._reported_s is None else self._reported_s + REPORT_EVERY_S

    def take(self) -> list[tuple[str, str, int]]:
        """(kind, actor, count) of all that was held back since the last time; counting starts anew."""
        self._reported_s = None
        counts = [(*key, bucket.suppressed) for key, bucket in self._buckets.items() if bucket.suppressed]
        for bucket in self._buckets.values():
            bucket.suppressed = 0
        return counts

    def _forget(self, now_s: float) -> None:
        """Drop the longest unused counter that has nothing to report, so that invented actors do not fill the memory."""
        if len(self._buckets) <= _WATCHED_LIMIT:
            return
        for key, bucket in self._buckets.items():
            if not bucket.suppressed:
                del self._buckets[key]
                return


class Space(StrEnum):
    """How much of the budget is left."""

    NORMAL = "normal"
    LOW = "low"
    SHORT = "short"
    FULL = "full"


def space_of(used_bytes: int, budget_bytes: int, *, next_bytes: int) -> Space:
    """The state in which a record of `next_bytes` would be written."""
    if used_bytes + next_bytes > budget_bytes:
        return Space.FULL
    if used_bytes * 100 >= budget_bytes * 95:
        return Space.SHORT
    if used_bytes * 100 >= budget_bytes * 80:
        return Space.LOW
    return Space.NORMAL
