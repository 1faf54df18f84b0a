"""Time as a port: logic takes a Clock, a test gives it a false one.

Durations, deadlines, grants and leases use `boottime_s` (it counts through suspend and never steps); wall clock is
for stamps and certificates only. `TimeFloor` is the earliest moment that it can be, learned from signed documents.
"""

from __future__ import annotations

import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

from tidewaiter_core import durable
from tidewaiter_core.errors import DeadlineError, StateError

_UTC: Final = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)
_BOOT_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)
_KERNEL_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
SYNCHRONIZED_FILE: Final = Path("/run/systemd/timesync/synchronized")

WITNESS_ADVANCE_LIMIT: Final = timedelta(days=400)
"""How far a witness alone may move the floor: a lying witness must not expire every certificate."""
AHEAD_LIMIT: Final = timedelta(days=3653)
STEP_LIMIT_S: Final = 2.0


class Clock(Protocol):
    """What logic may know about time."""

    def now_utc(self) -> datetime: ...
    def boottime_s(self) -> float: ...
    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until `event` is set (True) or `timeout_s` has passed (False)."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The clock of the machine."""

    def now_utc(self) -> datetime:
        return datetime.now(UTC)

    def boottime_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        # TIMEOUT_MAX: a longer wait is an OverflowError in threading, not a longer wait.
        return event.wait(max(0.0, min(timeout_s, threading.TIMEOUT_MAX)))

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))


class Deadline:
    """A moment by which something has to be done, counted in boot time."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end_s = clock.boottime_s() + seconds

    def remaining_s(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end_s - self._clock.boottime_s())

    @property
    def expired(self) -> bool:
        """The moment has passed."""
        return self._clock.boottime_s() >= self._end_s

    def check(self, what: str) -> None:
        """Raise DeadlineError, naming `what` and the time it was given, if the moment has passed."""
        if self.expired:
            raise DeadlineError(f"{what}: not finished within {self._seconds:g} s; given up")


def boot_id() -> str:
    """The id of this boot, 32 hexadecimal digits.

    TIDEWAITER_BOOT_ID comes from the unit file (systemd's %b): with ProtectProc= the kernel file may be hidden.
    """
    text = os.environ.get("TIDEWAITER_BOOT_ID") or _KERNEL_BOOT_ID.read_text("ascii")
    canonical = text.strip().replace("-", "").lower()
    if not _BOOT_ID.fullmatch(canonical):
        raise StateError(f"boot id: expected 32 hexadecimal digits, found {canonical[:64]!r}")
    return canonical


def format_utc(moment: datetime) -> str:
    """`2026-11-24T10:58:32.123Z`; milliseconds are cut, not rounded, so that a stamp is never in the future."""
    if moment.tzinfo is None:
        raise ValueError("a time without a time zone cannot be a stamp")
    moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03d}Z".rjust(24, "0")


def parse_utc(text: str) -> datetime:
    """Read what `format_utc` wrote; whole seconds and up to six decimals are accepted too.

    Raises:
        ValueError: Any other spelling, in particular another zone or none.
    """
    match = _UTC.fullmatch(text)
    if match is None:
        raise ValueError(f"time: expected YYYY-MM-DDTHH:MM:SS.mmmZ, found {text[:64]!r}")
    year, month, day, hour, minute, second = (int(match[i]) for i in range(1, 7))
    return datetime(year, month, day, hour, minute, second, int((match[7] or "0").ljust(6, "0")), tzinfo=UTC)


class ClockState(StrEnum):
    """How far the wall clock can be believed."""

    UNSET = "unset"
    RTC = "rtc"
    SYNCED = "synced"
    SUSPECT = "suspect"


class TimeFloor:
    """The earliest moment that it can be now; survives restarts and is never lowered.

    Two numbers are kept: what signed documents prove (`proven`), and what witnesses say (`witness`), which counts
    only up to 400 days beyond the proven one as it was when the witness spoke.
    """

    SCHEMA: Final = 1

    def __init__(
        self, path: Path, *, image_utc: datetime, synchronized_file: Path = SYNCHRONIZED_FILE
    ) -> None:
        """Load the floor from `path`; `image_utc` (the image's build time) is its least value.

        Raises:
            StateError: The file is unreadable; it is left alone.
        """
        self._path = path
        self._synchronized_file = synchronized_file
        self._lock = threading.Lock()
        self._proven_utc = image_utc
        self._witness_utc = image_utc
        self._offset_s: float | None = None
        self._stepped = False
        document = durable.load_document(path, schema=self.SCHEMA)
        if document is not None:
            self._proven_utc = max(image_utc, self._stored(document, "proven_utc"))
            self._witness_utc = max(image_utc, self._stored(document, "witness_utc"))

    def _stored(self, document: dict[str, object], name: str) -> datetime:
        try:
            return parse_utc(str(document[name]))
        except (KeyError, ValueError) as err:
            raise StateError(f"{self._path}: {name} is missing or no time: {err}; left as it is") from err

    @property
    def utc(self) -> datetime:
        """The floor itself."""
        return max(self._proven_utc, self._witness_utc)

    def raise_to(self, utc: datetime, *, source: str) -> bool:
        """Learn that it was `utc` already; True if that moved the floor. A lower value is no error and does nothing.

        Args:
            source: Where it comes from, for the file. `witness` may advance the floor by 400 days at most.
        """
        # Cut to what the file can hold, so that a restart does not lower the floor by microseconds.
        utc = utc.replace(microsecond=utc.microsecond // 1000 * 1000)
        with self._lock:
            proven_utc, witness_utc = self._proven_utc, self._witness_utc
            if source == "witness":
                witness_utc = max(witness_utc, min(utc, proven_utc + WITNESS_ADVANCE_LIMIT))
            else:
                proven_utc = max(proven_utc, utc)
            if max(proven_utc, witness_utc) <= self.utc:
                return False
            # Stored first: a floor that a restart forgets must not have been used.
            stored = {
                "proven_utc": format_utc(proven_utc),
                "witness_utc": format_utc(witness_utc),
                "source": source,
            }
            durable.save_document(self._path, stored, schema=self.SCHEMA)
            self._proven_utc, self._witness_utc = proven_utc, witness_utc
            return True

    def trusted_now(self, clock: Clock) -> datetime:
        """What to hold certificates and metadata against: the system time, but never before the floor."""
        return max(clock.now_utc(), self.utc)

    def observe_step_s(self, clock: Clock) -> float:
        """By how much the wall clock was stepped since the last look; 0.0 below 2 s. Ask about every 10 s."""
        offset_s = clock.now_utc().timestamp() - clock.boottime_s()
        with self._lock:
            step_s = 0.0 if self._offset_s is None else offset_s - self._offset_s
            self._offset_s = offset_s
            if abs(step_s) <= STEP_LIMIT_S:
                return 0.0
            self._stepped = not self._synchronized_file.exists()
            return step_s

    def state(self, clock: Clock) -> ClockState:
        """How far the wall clock can be believed now."""
        self.observe_step_s(clock)
        now_utc = clock.now_utc()
        if now_utc < self.utc:
            return ClockState.UNSET
        if now_utc > self.utc + AHEAD_LIMIT:
            return ClockState.SUSPECT
        if self._synchronized_file.exists():
            self._stepped = False
            return ClockState.SYNCED
        return ClockState.SUSPECT if self._stepped else ClockState.RTC
