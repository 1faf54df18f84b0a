"""The connection to the injector as a state machine (hal-and-hil.md 4.4) with its poll pace (4.5). Pure.

Liveness is answer-based: on a half-open line nothing ever raises. The caller reports what happened and when,
and does what `Step` says.
"""

import random
from collections import deque
from enum import StrEnum
from typing import Final

from tidewaiter_hal.model import BUSY_STATES, LinkState, State

SYNC_LIMIT_S: Final = 5.0
SYNC_SAMPLES: Final = 3
SYNC_TRIES: Final = 3
SILENCE_LIMIT_S: Final = 3.0
FOREIGN_SILENCE_LIMIT_S: Final = 30.0
UNANSWERED_LIMIT: Final = 2
ANSWERS_TO_RECOVER: Final = 3
NOISE_LIMIT: Final = 30
NOISE_WINDOW_S: Final = 60.0
FLOOD_HOLD_S: Final = 1.0
BACKOFF_FIRST_S: Final = 0.25
BACKOFF_CAP_S: Final = 8.0
POLL_S: Final = 0.5
POLL_BUSY_S: Final = 0.2
POLL_SLOW_LINE_S: Final = 1.0
SLOW_LINE_BAUD: Final = 57600
_TALKING: Final = frozenset({LinkState.UP, LinkState.DEGRADED, LinkState.SYNCING, LinkState.INCOMPATIBLE})


class Step(StrEnum):
    """What the caller has to do after a state change."""

    NOTHING = "nothing"
    OPEN = "open"
    SYNC = "sync"
    """Send the resync bytes, drain, restart the driver."""
    FLUSH = "flush"
    CLOSE = "close"


class Link:
    """One port's connection."""

    def __init__(self, *, baud: int, rng: random.Random) -> None:
        self.state = LinkState.CLOSED
        self.reason = "starting"
        self._baud = baud
        self._rng = rng
        self._attempt = 0
        self._retry_s = 0.0
        self._sync_started_s = 0.0
        self._sync_failures = 0
        self._sync_boots: deque[int] = deque(maxlen=SYNC_SAMPLES)
        self._last_answer_s = 0.0
        self._unanswered = 0
        self._answers = 0
        self._noise: deque[float] = deque(maxlen=NOISE_LIMIT)
        self._flood_s = float("-inf")

    # What happened

    def opened(self, now_s: float) -> Step:
        """The port is open and configured."""
        return self._sync("opened", now_s)

    def open_failed(self, reason: str, now_s: float) -> None:
        """The port could not be opened."""
        self._close(reason, now_s)

    def lost(self, reason: str, now_s: float) -> None:
        """The port failed. The caller has closed it."""
        self._close(reason, now_s)

    def appeared(self, now_s: float) -> None:
        """The node came (back): a hint that waiting is over."""
        if self.state is LinkState.CLOSED:
            self._attempt = 0
            self._retry_s = now_s

    def answered(self, now_s: float) -> None:
        """A valid answer arrived."""
        self._last_answer_s = now_s
        self._unanswered = 0
        self._answers += 1
        if (
            self.state is LinkState.DEGRADED
            and self._answers >= ANSWERS_TO_RECOVER
            and not self._noisy(now_s)
            and now_s - self._flood_s > FLOOD_HOLD_S
        ):
            self._enter(LinkState.UP, "answers again")

    def unanswered(self) -> None:
        """One request got no valid answer."""
        self._unanswered += 1
        self._answers = 0
        if self.state is LinkState.UP and self._unanswered >= UNANSWERED_LIMIT:
            self._enter(LinkState.DEGRADED, "no answer")

    def sampled(self, boot_id: int, now_s: float) -> None:
        """A valid state sample arrived; three of one boot end the synchronization."""
        self._sync_boots.append(boot_id)
        complete = len(self._sync_boots) == SYNC_SAMPLES and len(set(self._sync_boots)) == 1
        if self.state is LinkState.SYNCING and complete:
            self._attempt = self._sync_failures = 0
            self._last_answer_s = now_s
            self._enter(LinkState.UP, "synchronized")

    def damaged(self, count: int, now_s: float) -> None:
        """`count` frames were damaged."""
        self._noise.extend([now_s] * min(count, NOISE_LIMIT))
        if self.state is LinkState.UP and self._noisy(now_s):
            self._degrade("noise")

    def flooded(self, now_s: float) -> None:
        """More bytes arrive than any injector sends."""
        self._flood_s = now_s
        if self.state is LinkState.UP:
            self._degrade("flood")

    def incompatible(self, major: int, now_s: float) -> None:
        """Another major protocol version: identity only."""
        self._last_answer_s = now_s
        self._enter(LinkState.INCOMPATIBLE, f"protocol major {major}")

    def restarted(self, reason: str, now_s: float) -> Step:
        """The injector booted, or became compatible: everything known of it is void."""
        return self._sync(reason, now_s)

    # What time does

    def tick(self, now_s: float) -> Step:
        """Leave a state whose time is over."""
        match self.state:
            case LinkState.CLOSED if now_s >= self._retry_s:
                self._enter(LinkState.OPENING, self.reason)
                return Step.OPEN
            case LinkState.SYNCING if now_s - self._sync_started_s >= SYNC_LIMIT_S:
                return self._down("no synchronization in 5 s", now_s, failed=True)
            case LinkState.DEGRADED | LinkState.UP if now_s - self._last_answer_s >= SILENCE_LIMIT_S:
                return self._down("silent for 3 s", now_s, failed=False)
            case LinkState.INCOMPATIBLE if now_s - self._last_answer_s >= FOREIGN_SILENCE_LIMIT_S:
                return self._down("silent for 30 s", now_s, failed=False)
            case LinkState.DOWN if now_s >= self._retry_s:
                if self._sync_failures >= SYNC_TRIES:
                    self._close("no synchronization", now_s)
                    return Step.CLOSE
                return self._sync("again", now_s)
            case _:
                return Step.NOTHING

    def deadline(self) -> float:
        """When `tick` has something to do at the latest."""
        match self.state:
            case LinkState.CLOSED | LinkState.DOWN:
                return self._retry_s
            case LinkState.SYNCING:
                return self._sync_started_s + SYNC_LIMIT_S
            case LinkState.UP | LinkState.DEGRADED:
                return self._last_answer_s + SILENCE_LIMIT_S
            case LinkState.INCOMPATIBLE:
                return self._last_answer_s + FOREIGN_SILENCE_LIMIT_S
            case _:
                return float("inf")

    def poll_interval_s(self, state: State) -> float:
        """How often to ask for the state."""
        if self._baud < SLOW_LINE_BAUD:
            return POLL_SLOW_LINE_S
        fast = state in BUSY_STATES or self.state is LinkState.SYNCING
        return POLL_BUSY_S if fast else POLL_S

    @property
    def is_talking(self) -> bool:
        """Whether requests may be sent."""
        return self.state in _TALKING

    def _enter(self, state: LinkState, reason: str) -> None:
        self.state, self.reason = state, reason
        self._unanswered = self._answers = 0

    def _degrade(self, reason: str) -> None:
        self._enter(LinkState.DEGRADED, reason)

    def _sync(self, reason: str, now_s: float) -> Step:
        self._enter(LinkState.SYNCING, reason)
        self._sync_started_s = now_s
        self._sync_boots.clear()
        return Step.SYNC

    def _down(self, reason: str, now_s: float, *, failed: bool) -> Step:
        self._sync_failures += failed
        self._enter(LinkState.DOWN, reason)
        self._retry_s = now_s + self._next_backoff_s()
        return Step.FLUSH

    def _close(self, reason: str, now_s: float) -> None:
        self._enter(LinkState.CLOSED, reason)
        self._sync_failures = 0
        self._retry_s = now_s + self._next_backoff_s()

    def _next_backoff_s(self) -> float:
        base: float = min(BACKOFF_FIRST_S * 2**self._attempt, BACKOFF_CAP_S)
        self._attempt = min(self._attempt + 1, 16)
        return base * self._rng.uniform(0.75, 1.25)

    def _noisy(self, now_s: float) -> bool:
        return len(self._noise) == NOISE_LIMIT and now_s - self._noise[0] < NOISE_WINDOW_S
