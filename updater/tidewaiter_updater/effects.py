"""The effects of the phase table, carried out in the table's order. Part of the engine: nothing else writes the boot environment.

Invariant I4: each boot-environment effect is one write of one record made by `decision`. Every effect is safe to repeat, because
a power cut makes it repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from tidewaiter_core.audit import Outcome

from tidewaiter_updater import decision
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.downgrade import going_back
from tidewaiter_updater.errors import InterlockError
from tidewaiter_updater.journal import JournalEntry
from tidewaiter_updater.model import NO_TXN, BootEnv, FloorValues, SlotRecord, is_medium, txn_of
from tidewaiter_updater.phases import Effect, Phase
from tidewaiter_updater.ports import Control, Notice
from tidewaiter_updater.transaction import Transaction

logger = logging.getLogger(__name__)


class Effects:
    """Performs effects on the transaction's device."""

    def __init__(self, transaction: Transaction, *, control: Control) -> None:
        self._t = transaction
        self._control = control
        self.bad_chunks = 0
        """What the latest read-back found."""
        self.lease_id: str | None = None
        """The lease to seal, None where the injector has none."""
        self.resume = True
        """Whether the target may already hold parts of the image."""
        self._noticed: set[tuple[str, Notice]] = set()
        self._table: Mapping[Effect, Callable[[], None]] = {
            Effect.AUDIT_INSTALLING: lambda: self._t.audit(
                "update.installing", detail=f"from {self._entry.source}{going_back(self._t)}"
            ),
            Effect.DISARM: lambda: self._decide(lambda env: decision.disarm(env, self._entry.target)),
            Effect.JOURNAL: self._t.save,
            Effect.WRITE_SLOT: self._write_slot,
            Effect.READ_BACK: self._read_back,
            Effect.RECORD_SLOT: self._record_slot,
            Effect.AUDIT_STAGED: lambda: self._t.audit("update.staged"),
            Effect.AUDIT_ARMED: lambda: self._t.audit("update.armed"),
            Effect.ARM: self._arm,
            Effect.SEAL: self._seal,
            Effect.FLUSH_AUDIT: self._t.ports.audit.flush,
            Effect.REBOOT: self._t.ports.reboot.request,
            Effect.REFUND: lambda: self._decide(decision.refund),
            Effect.FAIL: lambda: self._decide(decision.fail),
            Effect.AUDIT_FAILED: lambda: self._audit_end("update.failed", Outcome.MINOR),
            Effect.COMMIT: self._commit,
            Effect.FLOORS: self._floors,
            Effect.RAISE: self._raise,
            Effect.RELEASE_LEASE: self._t.ports.interlock.release,
            Effect.AUDIT_COMMITTED: self._audit_committed,
            Effect.QUARANTINE: self._quarantine,
            Effect.CLEAR: lambda: self._decide(decision.clear),
            Effect.AUDIT_ROLLED_BACK: lambda: self._audit_end("update.rolled_back", Outcome.SERIOUS),
            Effect.CLOSE: self._close,
        }

    def perform(self, phase: Phase) -> None:
        """All effects of entering `phase`, in order."""
        for effect in self._t.table.effects[phase]:
            self.do(effect)

    def do(self, effect: Effect) -> None:
        """One effect."""
        self._table[effect]()

    @property
    def _entry(self) -> JournalEntry:
        if self._t.entry is None:
            raise RuntimeError("an effect on a release was called without a transaction")
        return self._t.entry

    def env(self) -> BootEnv:
        """The record in force; BootEnvError when there is none."""
        env = self._t.env()
        if env is None:
            raise BootEnvError(
                "boot environment: no copy is valid; nothing is decided", code="boot.env-invalid"
            )
        return env

    def _decide(self, change: Callable[[BootEnv], BootEnv]) -> None:
        env = self.env()
        decided = change(env)
        if decided != env:
            self._t.ports.boot.write(decided)

    def _arm(self) -> None:
        entry, release = self._entry, self._t.release
        if release is None:
            raise RuntimeError("ARM without a release")
        self._t.amend(clock_was_low=self._t.is_clock_low())  # the journal is written next
        self._decide(
            lambda env: decision.arm(
                env,
                entry.target,
                tries=release.policy.tries,
                txn=txn_of(entry.digest),
                boot_id=self._t.boot_id,
            )
        )

    def _write_slot(self) -> None:
        entry, release = self._entry, self._t.release
        if release is None:
            raise RuntimeError("a transfer without a release")
        caps = [cap for cap in (self._t.site.max_fetch_bytes, release.policy.max_fetch_bytes) if cap > 0]
        if is_medium(entry.source):
            caps = []  # both are about what the network costs
        self._t.ports.slots.write(
            entry.target,
            release,
            entry.source,
            resume=self.resume,
            cap_bytes=min(caps, default=None),
            report=self._t.report,
            notify=self._notify,
            control=self._control,
        )

    def _notify(self, notice: Notice) -> None:
        """Audit what the transfer says, once: an attempt that is repeated finds the same again."""
        if (self._entry.digest, notice) in self._noticed:
            return
        logger.warning("%s: %s", notice.code, notice.text)
        self._t.audit("update.installing", outcome=Outcome.MINOR, code=notice.code, detail=notice.text)
        self._noticed.add((self._entry.digest, notice))

    def _read_back(self) -> None:
        entry, release = self._entry, self._t.release
        if release is None:
            raise RuntimeError("a read-back without a release")
        self.bad_chunks = self._t.ports.slots.read_back(
            entry.target, release, entry.source, report=self._t.report_read_back, control=self._control
        )

    def _record_slot(self) -> None:
        release = self._t.release
        if release is None:
            raise RuntimeError("a slot record without a release")
        record = SlotRecord(
            digest=release.digest,
            root=release.slot.image_root,
            sequence=release.sequence,
            epoch=release.security_epoch,
            version=release.version,
        )
        self._t.journal.save_slot(self._entry.target, record)

    def _seal(self) -> None:
        if self.lease_id is None:
            return
        if not self._t.ports.interlock.is_held():
            raise InterlockError(
                "the injector's lease ended before it was sealed; the trial is called off",
                reasons=("lease-lost",),
            )
        self._t.ports.interlock.seal(self.lease_id)

    def _commit(self) -> None:
        booted = self._t.booted
        if booted is None:
            raise RuntimeError("COMMIT without a booted slot")
        self._decide(lambda env: decision.commit(env, booted))

    def _floors(self) -> None:
        identity = self._t.identity
        self._t.ports.floors.raise_committed(
            FloorValues(
                sequence=identity.sequence,
                security_epoch=identity.security_epoch,
                time_utc=identity.built_utc,
            )
        )

    def _raise(self) -> None:
        epoch = self._t.identity.security_epoch
        env = self.env()
        other = self._t.journal.slots().get(env.committed.other)
        # A slot nobody recorded is below a rising epoch for all we know, and as good as ours otherwise (factory copy).
        below = other.epoch < epoch if other is not None else env.epoch < epoch
        closes = below or self._t.burns_bridge(env)
        self._decide(lambda current: decision.raise_epoch(current, epoch, close_other=closes))

    def _quarantine(self) -> None:
        env = self.env()
        txn = env.txn if env.trial is not None else (txn_of(self._entry.digest) if self._t.entry else NO_TXN)
        if txn != NO_TXN:
            reason = self._t.last.code if self._t.last else "update.rolled-back"
            self._t.journal.quarantine(txn, reason)

    def _audit_committed(self) -> None:
        # The image a device was born with is no update, and floors that were lost are not a second commit.
        if self._t.entry is not None or self._t.in_trial:
            self._t.audit("update.committed")

    def _audit_end(self, kind: str, outcome: Outcome) -> None:
        self._t.audit(kind, outcome=outcome, code=self._t.last.code if self._t.last else kind)

    def _close(self) -> None:
        self._t.amend(closed=True)
        self._t.save()
