"""Positions in the device's logs: what to ask next, what is missing (hal-and-hil.md 8.7). Pure.

At least once: a position moves only after its entries are in the audit chain; duplicates are dropped by number.
"""

from dataclasses import dataclass

from tidewaiter_hal.model import Cursor, LogEntry, LogPage


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Entries that no longer exist on the device, both ends included."""

    first_missing: int
    last_missing: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a page means for a cursor."""

    entries: tuple[LogEntry, ...]
    gaps: tuple[Gap, ...]
    reset: bool
    """The log was formatted or the device replaced: read again from the start."""
    cursor: Cursor
    """Where the log stands once `entries` and `gaps` are recorded."""
    again: bool = False
    """The page has a hole: read it once more before believing it."""


def start(cursor: Cursor | None, *, serial: str) -> int:
    """The number to ask after."""
    return cursor.seq if cursor is not None and cursor.serial == serial else 0


def judge(page: LogPage, cursor: Cursor | None, *, serial: str, reread: bool = False) -> Verdict:
    """Judge the page that was asked for with `start(cursor)`; `reread`: it is the second try."""
    strange = cursor is not None and (
        cursor.serial != serial or cursor.log_id != page.log_id or page.head < cursor.seq
    )
    if strange:
        beginning = Cursor(serial=serial, log_id=page.log_id, seq=0)
        return Verdict(entries=(), gaps=(), reset=True, cursor=beginning)
    after = page.after
    gaps = []
    if page.first > after + 1:
        gaps.append(Gap(first_missing=after + 1, last_missing=page.first - 1))
        after = page.first - 1
    expected = after + 1
    for entry in page.entries:
        if entry.seq > expected:
            gaps.append(Gap(first_missing=expected, last_missing=entry.seq - 1))
        expected = entry.seq + 1
    holes = gaps[1:] if page.first > page.after + 1 else gaps
    here = Cursor(serial=serial, log_id=page.log_id, seq=expected - 1)
    if holes and not reread:
        return Verdict(entries=(), gaps=(), reset=False, cursor=cursor or here, again=True)
    return Verdict(entries=page.entries, gaps=tuple(gaps), reset=False, cursor=here)
