"""How long to wait before the next attempt: exponential with full jitter.

Full jitter (uniform between 0 and the growing bound) because a server that comes back meets a whole fleet at once.
"""

from __future__ import annotations

import random


class Backoff:
    """Waiting times for one thing that keeps failing; `reset` after it worked."""

    def __init__(self, *, base_s: float, cap_s: float, rng: random.Random | None = None) -> None:
        if not 0 < base_s <= cap_s:
            raise ValueError(f"expected 0 < base_s <= cap_s, found base_s={base_s} cap_s={cap_s}")
        self._base_s = base_s
        self._cap_s = cap_s
        self._rng = rng or random.SystemRandom()
        self._failures = 0

    @property
    def failures(self) -> int:
        """How often `next_s` was asked since the last success."""
        return self._failures

    def next_s(self, at_least_s: float = 0.0) -> float:
        """The next waiting time in seconds.

        Args:
            at_least_s: What the other side asked for (Retry-After). It is a floor, not a replacement: the jitter
                comes on top, else everybody who was told the same number returns in the same second.
        """
        # 2**63 seconds is beyond any cap; without the limit the power becomes a float overflow after a bad month.
        bound_s = min(self._cap_s, self._base_s * 2.0 ** min(self._failures, 63))
        self._failures += 1
        return max(0.0, at_least_s) + self._rng.uniform(0.0, bound_s)

    def reset(self) -> None:
        """It worked: start again from `base_s`."""
        self._failures = 0
