"""The audit log of one component: append-only, hash-chained, durable before the action for class A.

`AuditLog` is what components use. Its writer runs in a thread of its own so that a medium that hangs makes an append fail after
two seconds instead of hanging the caller: the action is then refused. The parts: `audit_kinds` (closed list), `audit_record`
(one line), `audit_chain` (state), `audit_start` (recovery), `audit_writer` (append, rotate, budget), `audit_verify`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidewaiter_core.audit_files import read_records
from tidewaiter_core.audit_kinds import Kind, checked_fields, kind_of
from tidewaiter_core.audit_record import GENESIS, Actor, Outcome
from tidewaiter_core.audit_start import start
from tidewaiter_core.audit_verify import Finding, Flaw, Head, VerifyReport, verify
from tidewaiter_core.audit_writer import SUPPRESSED, AuditUnavailableError, AuditWriter, Rules
from tidewaiter_core.clock import Clock
from tidewaiter_core.durable import Disk, SystemDisk
from tidewaiter_core.errors import SecondInstanceError, TidewaiterError

__all__ = [
    "SUPPRESSED",
    "Actor",
    "AuditLog",
    "AuditUnavailableError",
    "Finding",
    "Flaw",
    "Head",
    "Outcome",
    "VerifyReport",
    "read_records",
    "verify",
]

logger = logging.getLogger(__name__)

QUEUE_LIMIT = 256
WAIT_LIMIT_S = 2.0
_EPOCH = re.compile(r"/[0-9]+\Z")


class LogDisk(SystemDisk):
    """fdatasync: the data and the file's size, not its times."""

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)


@dataclass(eq=False, slots=True)
class _Job:
    """What a caller waits for: an append, or (kind None) a commit."""

    kind: Kind | None
    actor: Actor | None = None
    outcome: Outcome = Outcome.OK
    fields: Mapping[str, Any] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)
    seq: int = SUPPRESSED
    failure: AuditUnavailableError | None = None


class AuditLog:
    """One writer per directory; `append` may be called from any thread."""

    def __init__(self, component: str, directory_fd: int | None) -> None:
        """Use `open`."""
        self._component = component
        self._directory_fd = directory_fd
        self._jobs: queue.Queue[_Job | None] = queue.Queue(QUEUE_LIMIT)
        self._writer: AuditWriter | None = None
        self._thread: threading.Thread | None = None
        self._unavailable = ""
        self._on_bug: Callable[[BaseException], None] | None = None
        self.origin = ""
        """Log identity with its epoch."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        component: str,
        clock: Clock,
        origin: str,
        boot_id: str,
        budget_bytes: int,
        segment_bytes: int,
        clock_state: Callable[[], str] = lambda: "rtc",
        disk: Disk | None = None,
        on_bug: Callable[[BaseException], None] | None = None,
    ) -> AuditLog:
        """Open or begin the log in `directory`, after recovering what a power cut left.

        A directory that cannot be used does not raise: the log is then unavailable (each append says why), because the process
        must go on with everything that does not need a record.

        Args:
            origin: `<vendor domain>/device/<serial>/<component>`; an epoch at its end is ignored, the log counts it.
            on_bug: Told when the writer dies of a bug, so that the composition can end the process.
            clock_state: unset, rtc, synced or suspect, e.g. `lambda: floor.state(clock)`.

        Raises:
            SecondInstanceError: Another process writes this log.
        """
        disk = disk or LogDisk()
        try:
            directory.mkdir(mode=0o750, parents=True, exist_ok=True)
            log = cls(component, _lock(directory))
        except OSError as err:
            return cls._without_medium(component, directory, err)
        rules = Rules(
            directory=directory,
            component=component,
            boot_id=boot_id,
            budget_bytes=budget_bytes,
            segment_bytes=segment_bytes,
            clock_state=clock_state,
        )
        try:
            begin = start(directory, component=component, origin=_EPOCH.sub("", origin), disk=disk)
            log._writer = AuditWriter(begin, rules, clock=clock, disk=disk)
            log.origin = begin.origin
        except (OSError, TidewaiterError) as err:
            log._release()
            return cls._without_medium(component, directory, err)
        try:
            log._writer.write_pending()
        except AuditUnavailableError as err:
            logger.warning("%s", err)  # tried again before the first append
        log._on_bug = on_bug
        log._thread = threading.Thread(
            target=log._run, args=(log._writer, clock), name=f"audit-{component}", daemon=True
        )
        log._thread.start()
        return log

    def append(
        self,
        kind: str,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        fields: Mapping[str, Any] | None = None,
    ) -> int:
        """Record `kind`; returns its seq, or SUPPRESSED if a flood of B or C kinds was counted instead. Class A is durable then.

        Raises:
            AuditUnavailableError: It is not recorded; the action must not happen.
            ValueError: The closed list has no such kind or field: a programming error.
        """
        row = kind_of(kind)
        job = _Job(row, actor, outcome, checked_fields(row, fields or {}))
        return self._submit(job)

    def flush(self) -> None:
        """All records so far are durable when this returns; AuditUnavailableError if they may not be."""
        self._submit(_Job(None))

    def close(self) -> None:
        """Write what is waiting, sync, and let the directory go. Appends fail afterwards."""
        self._unavailable = self._unavailable or "it is closed"
        if self._thread is not None:
            try:
                self._jobs.put(None, timeout=WAIT_LIMIT_S)
                self._thread.join(WAIT_LIMIT_S)
            except queue.Full:
                logger.warning("audit log %s: closed although its medium hangs", self._component)
        self._release()

    @property
    def next_seq(self) -> int:
        """Number of records so far, and the seq of the next one."""
        return self._writer.chain.next_seq if self._writer else 0

    @property
    def head_sha256(self) -> str:
        """Hash of the last record; zeros before the first."""
        return self._writer.chain.prev_sha256 if self._writer else GENESIS

    @property
    def unavailable_reason(self) -> str:
        """Why nothing can be recorded at all; empty while the log works."""
        return self._unavailable

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @classmethod
    def _without_medium(cls, component: str, directory: Path, err: Exception) -> AuditLog:
        log = cls(component, None)
        log._unavailable = f"{directory}: {err}"
        logger.error(
            "audit log %s cannot be opened: %s; actions that need a record are refused",
            component,
            log._unavailable,
        )
        return log

    def _submit(self, job: _Job) -> int:
        until = time.monotonic() + WAIT_LIMIT_S
        if self._unavailable:
            raise AuditUnavailableError(
                f"audit log {self._component}: {self._unavailable}; the action is refused"
            )
        try:
            self._jobs.put(job, timeout=WAIT_LIMIT_S)
        except queue.Full:
            raise self._late() from None
        if not job.done.wait(max(0.0, until - time.monotonic())):
            raise self._late()
        if job.failure is not None:
            raise job.failure
        return job.seq

    def _late(self) -> AuditUnavailableError:
        return AuditUnavailableError(
            f"audit log {self._component}: the medium did not take the record within {WAIT_LIMIT_S:g} s; the action is refused"
        )

    def _run(self, writer: AuditWriter, clock: Clock) -> None:
        job: _Job | None = None
        try:
            while True:
                job = self._next(writer, clock)
                if job is None:
                    break
                self._carry_out(writer, job)
        except Exception as err:
            logger.exception("audit log %s: the writer died; this is a bug", self._component)
            if self._on_bug is not None:
                self._on_bug(err)
        finally:
            self._unavailable = self._unavailable or "its writer has ended"
            writer.close()
            self._refuse_waiting(job)

    def _next(self, writer: AuditWriter, clock: Clock) -> _Job | None:
        """The next job; meanwhile sync and report what is due."""
        while True:
            due_s = writer.due_s()
            wait_s = None if due_s is None else due_s - clock.boottime_s()
            if wait_s is None or wait_s > 0:
                try:
                    return self._jobs.get(timeout=wait_s)
                except queue.Empty:
                    pass
            try:
                writer.tick()
            except AuditUnavailableError as err:
                logger.warning("%s", err)  # the next append says it to a caller

    def _carry_out(self, writer: AuditWriter, job: _Job) -> None:
        try:
            if job.kind is None or job.actor is None:
                writer.commit()
            else:
                job.seq = writer.append(job.kind, actor=job.actor, outcome=job.outcome, fields=job.fields)
        except AuditUnavailableError as err:
            job.failure = err
        job.done.set()

    def _refuse_waiting(self, job: _Job | None) -> None:
        waiting: list[_Job | None] = [job]
        while not self._jobs.empty():
            waiting.append(self._jobs.get_nowait())
        for item in waiting:
            if item is not None and not item.done.is_set():
                item.failure = AuditUnavailableError(f"audit log {self._component}: {self._unavailable}")
                item.done.set()

    def _release(self) -> None:
        if self._directory_fd is not None:
            os.close(self._directory_fd)
            self._directory_fd = None


def _lock(directory: Path) -> int:
    """Hold the directory itself: the layout has no lock file, and this lock cannot be left behind."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as err:
        os.close(descriptor)
        raise SecondInstanceError(
            f"{directory}: another process writes this audit log; two writers would fork it"
        ) from err
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
