"""How fast a transfer or a read-back goes, and how long it will still take. Pure.

Speed is that of the last seconds: a resume that skips what is right is far faster than the write that follows it, and
an average over both would promise an end that never comes.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW_S: Final = 10.0
LEAST_S: Final = 1.0


class Pace:
    """Fed with what is done so far; counts of another step begin anew by `restart`."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def restart(self) -> None:
        """Another piece of work begins."""
        self._seen.clear()

    def note(self, done_bytes: int, *, at_s: float) -> None:
        """So much was done at this moment; of a second only the first word is kept."""
        if not self._seen or at_s - self._seen[-1][0] >= 1.0:
            self._seen.append((at_s, done_bytes))
        while len(self._seen) > 2 and at_s - self._seen[1][0] >= WINDOW_S:
            self._seen.popleft()

    def speed_bytes_per_s(self, done_bytes: int, *, at_s: float) -> int:
        """Bytes per second lately, 0 when nobody can tell yet."""
        if not self._seen:
            return 0
        since_s, before = self._seen[0]
        elapsed_s = at_s - since_s
        return max(0, int((done_bytes - before) / elapsed_s)) if elapsed_s >= LEAST_S else 0
