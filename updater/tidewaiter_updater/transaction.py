"""The one transaction in hand: its phase, its flags and its progress; all that a user is shown is derived from here.

Threads: commands arrive on connection threads, work is done by one worker. `lock` guards every attribute; the worker
holds it only for a moment at a time, so a status never waits for a transfer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import lru_cache
from typing import Any

from tidewaiter_core.audit import Actor, Outcome
from tidewaiter_core.clock import format_utc, parse_utc
from tidewaiter_core.errors import StateWriteError
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.errors import PayloadError
from tidewaiter_core.payload.limits import STANDARD, Limits
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.consent import SitePolicy, covers, required_channel, required_scopes
from tidewaiter_updater.journal import Journal, JournalEntry
from tidewaiter_updater.model import (
    NO_TXN,
    BootEnv,
    ByteCounts,
    Last,
    RunningRelease,
    Scope,
    SlotRecord,
    TransferProgress,
)
from tidewaiter_updater.pace import Pace
from tidewaiter_updater.phases import TABLE, WRITING, Phase, PhaseTable
from tidewaiter_updater.ports import Ports

logger = logging.getLogger(__name__)

NETWORK_NOTE_STEP = timedelta(hours=1)
SYSTEM = Actor(kind="system", id="tidewaiter-updater")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What this device is, and what its site allows."""

    serial: str
    product: str
    hw: str
    consent: SitePolicy = SitePolicy.SERVER
    max_fetch_bytes: int = 0
    """0: the release's own cap only."""
    updates: bool = True


class Transaction:
    """Shared state of the engine's parts."""

    def __init__(
        self,
        ports: Ports,
        *,
        site: Site,
        identity: RunningRelease,
        boot_id: str,
        table: PhaseTable = TABLE,
        limits: Limits = STANDARD,
    ) -> None:
        self.ports = ports
        self.table = table
        self.limits = limits
        self.site = site
        self.identity = identity
        self.boot_id = boot_id
        self.journal = Journal(ports.documents)
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.work = threading.RLock()
        """The right to change the device: the worker's step, a verdict, a commit. Taken before `lock`, never after it."""
        self.revision = 0

        self.phase = Phase.IDLE
        self.pending = False
        """The effects of `phase` are still to be done."""
        self.degraded: str | None = None
        self.booted: SlotName | None = None
        self.entry: JournalEntry | None = None
        self.release: Release | None = None
        self.last: Last | None = None
        self.waiting_for: tuple[str, ...] = ()
        self.in_trial = False
        """This boot is (or was, until its commit) a trial."""
        self.stale_trial = False
        self.stopping = False
        self.paused = False
        self.redirected = False
        """The bytes of a running transfer are to come from elsewhere: it ends at its next chunk and goes on from there."""
        self.hold_back = False
        """The injector injects; the transfer waits."""
        self.cancel_code: str | None = None
        self.cancel_text = ""
        self.window_open = False
        self.retry_at_s: float | None = None
        self.since_utc = self.now_utc()
        self.progress = TransferProgress(counts=ByteCounts())
        self.pace = Pace()
        self.actor = SYSTEM

    def now_utc(self) -> str:
        return format_utc(self.ports.clock.now_utc())

    def touch(self) -> None:
        """Tell everybody who watches that something changed."""
        with self.lock:
            self.revision += 1
            self.changed.notify_all()

    def enter(self, phase: Phase, *, waiting_for: Iterable[str] = ()) -> None:
        """Be in `phase` from now on; durable traces are the effects' business."""
        with self.lock:
            self.phase = phase
            self.pending = False
            self.since_utc = self.now_utc()
            self.waiting_for = tuple(waiting_for)
            self.amend(phase=phase, since_utc=self.since_utc)
        self.touch()

    def amend(self, **changes: Any) -> None:
        """Change members of the journal entry, if there is one; a command and the worker may do so at once."""
        with self.lock:
            if self.entry is not None:
                self.entry = replace(self.entry, **changes)

    def wait_for(self, *reasons: str) -> None:
        """Show what is awaited; no news is no change."""
        with self.lock:
            if self.waiting_for == reasons:
                return
            self.waiting_for = reasons
        self.touch()

    def report(self, progress: TransferProgress) -> None:
        """Progress of the transfer that runs."""
        with self.lock:
            self._note_pace(progress)
            self.progress = progress
        self.touch()

    def _note_pace(self, progress: TransferProgress) -> None:
        done = progress.counts.written + progress.counts.skipped
        if done < self.progress.counts.written + self.progress.counts.skipped:
            self.pace.restart()  # another attempt, or the read-back after the transfer
        self.pace.note(done, at_s=self.ports.clock.boottime_s())

    def report_read_back(self, progress: TransferProgress) -> None:
        """Progress of the read-back; what the transfer fetched, and from where, stays on show."""
        with self.lock:
            self._note_pace(progress)
            done = self.progress.counts
            counts = replace(progress.counts, fetched=done.fetched, expected_fetch=done.expected_fetch)
            self.progress = replace(self.progress, counts=counts)
        self.touch()

    def conclude(self, code: str, text: str) -> None:
        """Record the outcome of the step in hand, for people and for the next start."""
        with self.lock:
            digest = self.entry.digest if self.entry else ""
            self.last = Last(
                code=code, text=text[:2000], step=self.phase.value, at_utc=self.now_utc(), digest=digest
            )
            self.amend(last=self.last)
        self.touch()

    def take_from(self, source: str) -> None:
        """Let the bytes of the release in hand come from `source`; audited before it is so.

        Raises:
            AuditUnavailableError: The log cannot take it; the source stays.
        """
        with self.lock:
            if self.entry is None or self.entry.source == source:
                return
            if self.phase in WRITING:
                self.audit("update.installing", detail=f"from {source}, before from {self.entry.source}")
            self.amend(source=source)
            self.redirected = self.phase is Phase.TRANSFER

    def waits_for_source(self) -> bool:
        """Whether the transfer is at rest because its source gives nothing."""
        with self.lock:
            return self.retry_at_s is not None and any(
                reason.startswith("source.") for reason in self.waiting_for
            )

    def is_clock_low(self) -> bool:
        """Whether the clock is below the time floor: an empty battery, and nobody to ask for the time."""
        floor = self.ports.floors.effective().time_utc
        return bool(floor) and self.ports.clock.now_utc() < parse_utc(floor)

    def note_network(self) -> None:
        """The server answered. What the health check `server` asks of a trial depends on it, so it outlives this process."""
        now_utc, known = self.now_utc(), self.journal.network_proven_utc()
        if not known or abs(parse_utc(now_utc) - parse_utc(known)) >= NETWORK_NOTE_STEP:
            try:
                self.journal.note_network(now_utc)
            except StateWriteError as err:
                logger.warning("the server's answer is not remembered: %s", err)
        with self.lock:
            self.amend(network_proven_utc=now_utc)

    def save(self) -> None:
        """Write the journal; a transaction without an entry has nothing to remember."""
        with self.lock:  # also while writing: two writers must not overtake each other
            if self.entry is not None:
                self.journal.save_entry(self.entry)

    def audit(
        self, kind: str, *, outcome: Outcome = Outcome.OK, code: str | None = None, detail: str | None = None
    ) -> None:
        """One class A record about the release in hand; durable when this returns."""
        entry = self.entry
        fields = {"release": self.release_name(), "digest": entry.digest if entry else ""}
        fields |= {"code": code} if code is not None else {"from": entry.from_version if entry else ""}
        fields |= {"detail": detail} if detail is not None else {}
        self.ports.audit.append(kind, actor=self.actor, outcome=outcome, fields=fields)

    def release_name(self) -> str:
        """Product and version of the release in hand; in a trial whose journal was lost, those of the root that runs."""
        if self.release is not None:
            return f"{self.release.product} {self.release.version}"
        return f"{self.identity.product} {self.identity.version}" if self.in_trial else ""

    def env(self) -> BootEnv | None:
        """The boot environment as it is on storage now."""
        return self.ports.boot.read()

    def running_record(self) -> SlotRecord | None:
        """The record of the booted slot, if it is about the release that runs."""
        record = self.journal.slots().get(self.booted) if self.booted else None
        if record is None or record.sequence != self.identity.sequence:
            return None
        return record

    def running_release(self) -> Release | None:
        """The stored document of the release that runs."""
        record = self.running_record()
        return self.load_release(record.digest) if record is not None else None

    def lowest_sequence(self) -> int:
        """What an offer has to be above, unless a permit allows to go back."""
        return max(self.identity.sequence, self.ports.floors.effective().sequence)

    def goes_back(self, release: Release) -> bool:
        """Whether `release` is no newer than what runs or ran; the running one itself repairs the other slot."""
        running = self.running_record()
        if running is not None and running.digest == release.digest:
            return False
        return release.sequence <= self.lowest_sequence()

    def burns_bridge(self, env: BootEnv) -> bool:
        """Whether the committed release made data that the other slot cannot read, and that slot may still boot.

        The image that runs says so itself: with the state directory lost, nothing else may be left that could. A device that
        was never updated has the same release in both slots.
        """
        if not env.is_ok(env.committed.other):
            return False
        if self.identity.data is not None and not self.identity.data.reversible and env.txn != NO_TXN:
            return True
        # An image that says nothing: the stored document, which the slot record names without the journal, is all there is.
        release = self.release or self.running_release()
        return release is not None and not release.data.reversible

    def lacks_consent(self, scope: Scope) -> tuple[str, ...]:
        """What is shown as awaited while nobody agreed to the release in hand, empty when somebody did."""
        release, entry = self.release, self.entry
        if release is None or entry is None:
            raise RuntimeError("consent without a release")
        reversible = release.data.reversible
        needed = required_channel(
            release.policy.consent.value,
            self.site.consent,
            local_only=not reversible or self.goes_back(release),
        )
        scopes = required_scopes(scope, reversible=reversible)
        now = self.ports.clock.now_utc()
        if covers(entry.consent, digest=release.digest, scopes=scopes, needed=needed, now=now):
            return ()
        return ("update.consent",) if reversible else ("update.consent", "update.irreversible")

    def open_digest(self) -> Sha256 | None:
        """Digest of the transaction that is not over yet."""
        return self.entry.digest if self.entry is not None and not self.entry.closed else None

    def load_release(self, digest: Sha256) -> Release | None:
        """The stored signed document of `digest`; it was verified when it was stored, and hashes to its name."""
        data = self.journal.release_bytes(digest)
        try:
            return _parsed(data, self.limits) if data is not None else None
        except PayloadError as err:
            logger.error("stored release %s is not understood by this program: %s", digest[:16], err)  # noqa: TRY400
            return None

    def is_waiting(self) -> bool:
        """Whether the step in hand rests until a moment, a command or a person: then somebody else may look for a source."""
        return self.paused or self.retry_at_s is not None

    def is_cancel_requested(self) -> bool:
        return self.cancel_code is not None


@lru_cache(maxsize=4)
def _parsed(data: bytes, limits: Limits) -> Release:
    """The same few documents are asked for at each poll; a parsed one never changes."""
    return Release.parse(data, limits=limits)
