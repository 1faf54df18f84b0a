"""What phase a start finds itself in, and the trial that never ran.

The start trusts nothing it remembers: boot environment and booted slot decide (`phases.classify`), the journal only names the
release that the other slot may hold.
"""

from __future__ import annotations

import logging

from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.boot import SlotMismatchError
from tidewaiter_updater.effects import Effects
from tidewaiter_updater.errors import EngineRefusedError
from tidewaiter_updater.journal import JournalEntry
from tidewaiter_updater.model import BootEnv, txn_of
from tidewaiter_updater.phases import Effect, Hint, Phase
from tidewaiter_updater.transaction import Transaction
from tidewaiter_updater.transfer import MAX_ATTEMPTS, Transfer
from tidewaiter_updater.trial import Trial

logger = logging.getLogger(__name__)


class Startup:
    """Brings the transaction into the phase that the device is in."""

    def __init__(
        self, transaction: Transaction, effects: Effects, *, trial: Trial, transfer: Transfer
    ) -> None:
        self._t = transaction
        self._effects = effects
        self._trial = trial
        self._transfer = transfer

    def classify(self) -> None:
        """Find out what phase this is. Only reads."""
        env, booted = self._t.env(), self._booted()
        self._t.booted = booted
        entry, release = self._remembered(env)
        is_committed = env is not None and booted is env.committed
        start = self._t.table.classify(
            env,
            booted,
            self._t.boot_id,
            hint=self._hint(entry),
            finished=env is None or not is_committed or self._is_finished(env),
        )
        if start.phase is Phase.COMMITTED and start.pending and not _is_about(entry, env):
            entry = release = None  # floors below the running release, not the end of a transaction
        with self._t.lock:
            self._t.entry, self._t.release = entry, release
            self._t.last = entry.last if entry is not None else self._t.last
            self._t.degraded = start.degraded
            self._t.phase, self._t.pending = start.phase, start.pending
            self._t.stale_trial = start.stale_trial
            self._t.in_trial = start.phase is Phase.TRIAL
        if start.phase is Phase.TRIAL:
            self._trial.resume()
        self._effects.resume = True
        if self._t.degraded is not None:
            logger.error("degraded: %s", self._t.degraded)
        self._t.touch()

    def _remembered(self, env: BootEnv | None) -> tuple[JournalEntry | None, Release | None]:
        """The journal's transaction and its release, as far as they agree with the environment."""
        entry = self._t.journal.entry()
        if entry is None or (env is not None and env.trial is not None and env.txn != txn_of(entry.digest)):
            return None, None
        release = self._t.load_release(entry.digest)
        if release is None and not entry.closed and (env is None or env.trial is None):
            return None, None  # a transaction whose signed document is gone cannot be continued
        return entry, release

    def _hint(self, entry: JournalEntry | None) -> Hint | None:
        if entry is None:
            return None
        return entry.hint(quarantined=txn_of(entry.digest) in self._t.journal.quarantined())

    def _booted(self) -> SlotName | None:
        try:
            return self._t.ports.boot.booted()
        except SlotMismatchError as err:
            logger.error("%s", err)  # noqa: TRY400 - the message says all
            return None

    def _is_finished(self, env: BootEnv) -> bool:
        """Whether floors and environment cover the running release: without the journal only they tell a cut before RAISE."""
        floors, identity = self._t.ports.floors.effective(), self._t.identity
        return (
            floors.sequence >= identity.sequence
            and floors.security_epoch >= identity.security_epoch
            and env.epoch >= identity.security_epoch
            and not self._t.burns_bridge(env)
        )

    def clear_stale_trial(self) -> float:
        """A trial that never ran: CLEAR, stage again, one attempt less; the release itself is not to blame."""
        self._effects.do(Effect.CLEAR)
        self._t.stale_trial = False
        entry = self._t.entry
        if entry is None or self._t.release is None or entry.target is self._t.booted:
            self._t.entry = self._t.release = None
            self._t.enter(Phase.IDLE)
            return 0.0
        attempts = entry.attempts + 1
        self._t.amend(attempts=attempts, phase=self._t.phase)
        self._effects.do(Effect.JOURNAL)
        if attempts >= MAX_ATTEMPTS:
            text = f"the trial did not start {attempts} times; given up"
            return self._transfer.end(EngineRefusedError(text, code="update.attempts"))
        return 0.0


def _is_about(entry: JournalEntry | None, env: BootEnv | None) -> bool:
    """Whether the open transaction is the one that the environment committed."""
    return entry is not None and env is not None and not entry.closed and env.txn == txn_of(entry.digest)
