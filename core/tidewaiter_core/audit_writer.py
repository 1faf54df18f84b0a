"""The one writer of an audit log: builds lines, appends, rotates, syncs, and says no when it cannot. Not thread-safe.

Order of an append: line -> write -> (class A) fdatasync -> the caller acts. A failed write is taken back by truncation; a failed
sync is final, because the kernel may have dropped the bytes and nobody can tell which (the next start reads what is there).
Source: security-and-audit.md section 6.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tidewaiter_core import durable
from tidewaiter_core.audit_budget import HEAL_EVERY_S, Budget
from tidewaiter_core.audit_files import FILE_MODE
from tidewaiter_core.audit_kinds import LAST_WORDS, Durability, Kind, checked_fields, kind_of
from tidewaiter_core.audit_limits import RateLimit, Space
from tidewaiter_core.audit_record import Actor, Outcome, Stamp, build_line
from tidewaiter_core.audit_start import Start, create_segment
from tidewaiter_core.clock import Clock, format_utc, parse_utc
from tidewaiter_core.durable import Disk
from tidewaiter_core.errors import TidewaiterError

logger = logging.getLogger(__name__)

ROTATE_AFTER = timedelta(days=30)
GAP_EVERY_S = 600.0
SUPPRESSED = -1
"""Returned instead of a seq when a record was counted and not stored."""

_SYNC_WITHIN_S = {Durability.ACTION: 0.0, Durability.SECOND: 1.0, Durability.RELAXED: 5.0}


class AuditUnavailableError(TidewaiterError):
    """The record could not be made durable, so the action that it would record must not happen."""

    code = "audit.unavailable"
    retryable = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one log is and how much it may hold."""

    directory: Path
    component: str
    boot_id: str
    budget_bytes: int
    segment_bytes: int
    clock_state: Callable[[], str]


class AuditWriter:
    """Appends to the segment that `start` found."""

    def __init__(self, begin: Start, rules: Rules, *, clock: Clock, disk: Disk) -> None:
        self.chain = begin.chain
        self._rules = rules
        self._clock = clock
        self._disk = disk
        self._actor = Actor("component", rules.component)
        self._limits = RateLimit()
        self._part = begin.part
        self._first_utc = begin.first_utc
        self._descriptor = os.open(begin.part.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        os.fchmod(self._descriptor, FILE_MODE)
        self._size = os.fstat(self._descriptor).st_size
        self._budget = Budget(rules.directory, rules.budget_bytes, disk=disk, now_s=clock.boottime_s())
        self._full_said = ""
        self._broken = ""
        self._sync_at_s: float | None = None
        self._gap_count = 0
        self._gap_at_s = 0.0
        self._rotate_at_s = 0.0
        self._pending = list(begin.notices)

    def append(self, kind: Kind, *, actor: Actor, outcome: Outcome, fields: Mapping[str, Any]) -> int:
        """Write one record; its seq, or SUPPRESSED.

        Raises:
            AuditUnavailableError: It is not in the log (full, or the medium refused).
        """
        self._refuse_if_broken()
        self.write_pending()
        now_s = self._clock.boottime_s()
        if kind.durability is not Durability.ACTION and not self._limits.admit(
            kind.name, f"{actor.kind}:{actor.id}", now_s
        ):
            return SUPPRESSED
        self._budget.heal(now_s)
        if self._budget.follow(now_s):
            self.notice("audit.disk_low", Outcome.MINOR, self._budget.as_fields())
        self._say_full()
        if self._budget.space is Space.SHORT and kind.durability is Durability.RELAXED:
            self._count_gap(now_s)
            return SUPPRESSED
        if self._budget.full_reason and kind.name not in LAST_WORDS:
            raise self._full(kind.name)
        seq = self._write(kind, actor=actor, outcome=outcome, fields=fields)
        self._say_full()
        return seq

    def write_pending(self) -> None:
        """What the start found is recorded before anything else; on a full disk that waits until there is space."""
        while self._pending:
            notice = self._pending[0]
            self.notice(notice.kind, notice.outcome, notice.fields)
            del self._pending[0]

    def due_s(self) -> float | None:
        """When `tick` has work, in boot time."""
        if self._broken:
            return None
        times = [
            self._sync_at_s,
            self._limits.due_s(),
            self._gap_at_s + GAP_EVERY_S if self._gap_count else None,
        ]
        known = [at_s for at_s in times if at_s is not None]
        return min(known) if known else None

    def tick(self) -> None:
        """Sync what is due, and report what was counted instead of stored."""
        now_s = self._clock.boottime_s()
        if self._broken:
            return
        due_s = self._limits.due_s()
        if due_s is not None and now_s >= due_s:
            self._report_suppressed()
        if self._gap_count and now_s >= self._gap_at_s + GAP_EVERY_S:
            self._report_gap()
        if self._sync_at_s is not None and now_s >= self._sync_at_s:
            self.commit()

    def commit(self) -> None:
        """All records so far are on the medium when this returns; AuditUnavailableError if they may not be."""
        self._refuse_if_broken()
        if self._sync_at_s is None:
            return
        try:
            self._disk.sync(self._descriptor)
        except OSError as err:
            raise self._break(f"sync failed: {err.strerror or err}", err) from err
        self._sync_at_s = None

    def close(self) -> None:
        """Report what was counted, sync, close. Never raises: there is nobody left to refuse an action to."""
        try:
            if not self._broken:
                self._report_suppressed()
                if self._gap_count:
                    self._report_gap()
                self.commit()
        except AuditUnavailableError as err:
            logger.warning("audit log %s: closed without its last words: %s", self._rules.component, err)
        os.close(self._descriptor)

    def notice(self, kind: str, outcome: Outcome, fields: Mapping[str, Any]) -> None:
        """A record of the log about itself. On a full disk it may be lost; the log line stays."""
        row = kind_of(kind)
        self._write(row, actor=self._actor, outcome=outcome, fields=checked_fields(row, fields))

    def _write(self, kind: Kind, *, actor: Actor, outcome: Outcome, fields: Mapping[str, Any]) -> int:
        now_utc = self._clock.now_utc()
        stamp = Stamp(
            utc=format_utc(now_utc),
            boottime_ms=int(self._clock.boottime_s() * 1000),
            boot_id=self._rules.boot_id,
            clock=self._rules.clock_state(),
        )
        self._rotate_if_due(stamp.utc)
        seq = self.chain.next_seq
        line = build_line(
            seq=seq,
            prev_sha256=self.chain.prev_sha256,
            stamp=stamp,
            component=self._rules.component,
            kind=kind.name,
            actor=actor,
            outcome=outcome,
            fields=fields,
        )
        if self._budget.full_reason and not self._budget.has_room_for_last_words(len(line) + 1):
            raise self._full(kind.name)
        self._put(line + b"\n", kind.name)
        self.chain.advance(line, utc=stamp.utc)
        self._first_utc = self._first_utc or stamp.utc
        self._mark_unsynced(_SYNC_WITHIN_S[kind.durability])
        if kind.durability is Durability.ACTION:
            self.commit()
        return seq

    def _put(self, data: bytes, kind: str) -> None:
        """Append all of `data` or nothing. On a full disk the reserve is given up once, for this record or the last words."""
        for attempt in (1, 2):
            try:
                done = 0
                while done < len(data):
                    done += self._disk.write(self._descriptor, data[done:])
            except OSError as err:
                self._take_back(err)
                if err.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise self._break(f"write failed: {err.strerror or err}", err) from err
                self._budget.become_full(err.strerror or "no space left", self._clock.boottime_s())
                if attempt == 1 and kind in LAST_WORDS:
                    continue
                self._say_full()
                raise self._full(kind) from err
            self._size += len(data)
            self._budget.used_bytes += len(data)
            return

    def _take_back(self, cause: OSError) -> None:
        """Remove the part of a line that was written; without that the next line would be glued to it."""
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError as err:
            raise self._break(f"write failed ({cause.strerror}) and so did taking it back", err) from err

    def _rotate_if_due(self, utc: str) -> None:
        if self._size == 0 or self._budget.full_reason or self._clock.boottime_s() < self._rotate_at_s:
            return
        is_old = bool(self._first_utc) and parse_utc(utc) - parse_utc(self._first_utc) > ROTATE_AFTER
        if self._size < self._rules.segment_bytes and not is_old:
            return
        self._sync_at_s = self._clock.boottime_s() if self._sync_at_s is None else self._sync_at_s
        self.commit()  # the end file must not vouch for what a power cut can still take
        document = self.chain.end_document()
        try:
            durable.write_atomic(self._part.end_path, document, mode=FILE_MODE, disk=self._disk)
            part = create_segment(self._rules.directory, self.chain.next_seq, self._disk)
            descriptor = os.open(part.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (OSError, TidewaiterError) as err:
            # The old segment can still take records: rotation is housekeeping, not a reason to lose them.
            logger.warning("audit log %s: cannot rotate, tried again later: %s", self._rules.component, err)
            self._rotate_at_s = self._clock.boottime_s() + HEAL_EVERY_S
            with contextlib.suppress(OSError):
                self._part.end_path.unlink(missing_ok=True)
            return
        os.close(self._descriptor)
        self._descriptor, self._part, self._size, self._first_utc = descriptor, part, 0, ""
        self._budget.used_bytes += len(document)

    def _say_full(self) -> None:
        if self._full_said == self._budget.full_reason:
            return
        before, self._full_said = self._full_said, self._budget.full_reason
        try:
            if self._full_said:
                self.notice("audit.full", Outcome.SERIOUS, self._budget.as_fields())
        except AuditUnavailableError:
            self._full_said = before  # not even the reserve took it; tried again with the next record

    def _count_gap(self, now_s: float) -> None:
        if not self._gap_count:
            self._gap_at_s = now_s
        self._gap_count += 1

    def _report_gap(self) -> None:
        count, self._gap_count = self._gap_count, 0
        self.notice("audit.gap", Outcome.MINOR, {"count": count})

    def _report_suppressed(self) -> None:
        for kind, actor, count in self._limits.take():
            self.notice("audit.suppressed", Outcome.MINOR, {"kind": kind, "actor": actor, "count": count})

    def _mark_unsynced(self, within_s: float) -> None:
        at_s = self._clock.boottime_s() + within_s
        self._sync_at_s = at_s if self._sync_at_s is None else min(at_s, self._sync_at_s)

    def _full(self, kind: str) -> AuditUnavailableError:
        return AuditUnavailableError(
            f"audit log {self._rules.component}: {kind} was not recorded: {self._budget.full_reason}; the action is refused"
        )

    def _break(self, reason: str, err: OSError) -> AuditUnavailableError:
        self._broken = f"{reason}; no record can be trusted to be kept until this process is restarted"
        logger.error("audit log %s: %s", self._rules.component, self._broken)
        return AuditUnavailableError(f"audit log {self._rules.component}: {self._broken}")

    def _refuse_if_broken(self) -> None:
        if self._broken:
            raise AuditUnavailableError(f"audit log {self._rules.component}: {self._broken}")
