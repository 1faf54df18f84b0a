"""The update engine: one transaction at a time, one step at a time.

`step` does the next piece of work of the present phase and says when it is worth calling again; a worker calls it for ever.
Commands (Check, Install, Activate, Cancel ...) come from connection threads, change flags under the transaction's lock and wake
the worker; they never do its work. What a phase does to the device stands in `phases.EFFECTS`.

Where a start finds itself is `startup`'s question.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from tidewaiter_core.audit import Actor
from tidewaiter_core.errors import SecondInstanceError, StateError
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.limits import STANDARD, Limits
from tidewaiter_core.workers import Stop

from tidewaiter_updater.activation import Activation
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.effects import Effects
from tidewaiter_updater.errors import EngineBusyError
from tidewaiter_updater.intake import Intake
from tidewaiter_updater.model import RELAY, Consent, RunningRelease, Verdict, txn_of
from tidewaiter_updater.offers import Offer, Offers
from tidewaiter_updater.phases import CANCELABLE, IN_TRIAL, RESTING, TABLE, WRITING, Phase, PhaseTable
from tidewaiter_updater.ports import Ports
from tidewaiter_updater.repair import Repair
from tidewaiter_updater.startup import Startup
from tidewaiter_updater.transaction import SYSTEM, Site, Transaction
from tidewaiter_updater.transfer import Transfer, TransferControl
from tidewaiter_updater.trial import Trial
from tidewaiter_updater.trust_wire import Listed
from tidewaiter_updater.unwritten import Unwritten

logger = logging.getLogger(__name__)

IDLE_WAIT_S = 30.0
STATE_FAULT_WAIT_S = 60.0
_T = TypeVar("_T")


class Engine:
    """Runs the phases of update-engine.md section 9 over the device behind `ports`."""

    def __init__(
        self,
        ports: Ports,
        *,
        site: Site,
        identity: RunningRelease,
        boot_id: str,
        rng: random.Random | None = None,
        table: PhaseTable = TABLE,
        limits: Limits = STANDARD,
    ) -> None:
        self.transaction = Transaction(
            ports, site=site, identity=identity, boot_id=boot_id, table=table, limits=limits
        )
        control = TransferControl(self.transaction)
        effects = Effects(self.transaction, control=control)
        self.offers = Offers(self.transaction)
        self._intake = Intake(self.transaction, self.offers)
        self._transfer = Transfer(self.transaction, effects, permit=self.offers.permit, rng=rng)
        self._activation = Activation(
            self.transaction, effects, permit=self.offers.permit_start, give_up=self._transfer.end
        )
        self._trial = Trial(self.transaction, effects)
        self._repair = Repair(self.transaction, control=control)
        self._startup = Startup(self.transaction, effects, trial=self._trial, transfer=self._transfer)
        self._wake = threading.Event()
        self._not_yet = Unwritten(self.transaction, rng=rng)
        self._steps: Mapping[Phase, Callable[[], float]] = {
            Phase.TRIAL: self._trial.begin,
            Phase.WAIT_CONSENT: self._transfer.await_consent,
            Phase.PREPARE: self._transfer.prepare,
            Phase.TRANSFER: self._transfer.transfer,
            Phase.VERIFY: self._transfer.verify,
            Phase.WAIT_WINDOW: self._activation.attempt,
            Phase.ARMED: self._activation.watch_armed,
            Phase.HEALTH: self._after_verdict,
        }
        self._endings: Mapping[Phase, Callable[[], float]] = {
            Phase.COMMITTED: self._trial.finish_committed,
            Phase.ROLLED_BACK: self._trial.finish_rolled_back,
            Phase.FAILED: self._transfer.finish_failed,
            Phase.HEALTH: self._trial.finish_failed,
        }
        self._startup.classify()

    # --- the worker -----------------------------------------------------------------------------------------------

    def run(self, stop: Stop, *, beat: Callable[[], None] = lambda: None, beat_s: float = 10.0) -> None:
        """Step until told to stop."""
        while not stop.is_set:
            beat()
            wait_s = self.step()
            if wait_s > 0 and not stop.is_set:
                self.transaction.ports.clock.wait(self._wake, min(wait_s, beat_s))
            self._wake.clear()

    def wake(self) -> None:
        """Something changed that the worker should look at now."""
        self._wake.set()

    def step(self) -> float:
        """Do the next piece of work; returns the seconds after which it is worth calling again."""
        with self.transaction.work:
            transaction = self.transaction
            try:
                if transaction.degraded is not None:
                    return self._repair.attempt(self._startup.classify)
                if transaction.stale_trial:
                    return self._startup.clear_stale_trial()
                if transaction.pending:
                    return self._end()
                if transaction.phase not in IN_TRIAL:
                    transaction.ports.data.upkeep()
                if transaction.is_cancel_requested() and transaction.phase in CANCELABLE:
                    return self._cancel_now()
                return self._steps.get(transaction.phase, _rest)()
            except BootEnvError as err:
                logger.error("%s: %s", err.code, err)  # noqa: TRY400 - the message says all
                transaction.conclude(err.code, str(err))
                transaction.degraded = err.code
                return IDLE_WAIT_S
            except StateError as err:
                logger.error("%s: %s", err.code, err)  # noqa: TRY400 - the message says all
                transaction.wait_for(err.code)
                return STATE_FAULT_WAIT_S

    def stop(self) -> None:
        """Let a running transfer end at its next chunk; nothing is decided by that."""
        self.transaction.stopping = True
        self.wake()

    def _end(self) -> float:
        wait_s = self._not_yet.left_s()
        if wait_s > 0:
            return wait_s
        try:
            wait_s = self._endings[self.transaction.phase]()
        except BootEnvError as err:
            return self._not_yet.after(err)
        self._not_yet.over()
        if self.transaction.entry is None and not self.transaction.pending:
            self._startup.classify()  # it was about no release we know; whatever else there is comes next
        return wait_s

    def _cancel_now(self) -> float:
        if self.transaction.phase is Phase.ARMED:
            if self.transaction.ports.reboot.is_requested():
                self.transaction.cancel_code = None
                return self._activation.watch_armed()
            self._activation.disarm("update.canceled", "canceled before the reboot")
        if self.transaction.cancel_code == "update.rejected" and self.transaction.entry is not None:
            self.transaction.journal.quarantine(txn_of(self.transaction.entry.digest), "update.rejected")
        return self._transfer.cancel()

    def _after_verdict(self) -> float:
        return self._activation.leave_trial() if self._trial.has_failed else IDLE_WAIT_S

    # --- commands -------------------------------------------------------------------------------------------------

    def check(
        self, source: str, release_path: str, *, actor: Actor = SYSTEM, is_local: bool = False
    ) -> Offer:
        """Fetch, verify and judge a release; nothing is changed but floors and the stored document."""
        offer = self._in_trust(
            lambda: self.offers.check(source, release_path, actor=actor, is_local=is_local)
        )
        if source == RELAY:
            self.transaction.note_network()
        return offer

    def releases(self, source: str) -> tuple[Listed, ...]:
        """The release documents that a repository signs, for a Check of each."""
        return self._in_trust(
            lambda: self.transaction.ports.trust.releases(source, self.transaction.site.product)
        )

    def _in_trust(self, session: Callable[[], _T]) -> _T:
        """Run a trust session, which wants memory that a running transfer wants, too."""
        transaction = self.transaction
        if transaction.phase in WRITING and not transaction.is_waiting():
            raise EngineBusyError("a transfer runs", phase=transaction.phase.value)
        try:
            return session()
        except SecondInstanceError as err:
            # Another session is at work; that passes, and is no verdict on a release.
            raise EngineBusyError(str(err), phase=transaction.phase.value) from err

    def install(
        self,
        digest: Sha256,
        *,
        source: str | None = None,
        consent: Consent | None = None,
        actor: Actor = SYSTEM,
        is_local: bool = False,
    ) -> None:
        """Begin, or go on with, the installation of a release that Check has stored.

        Network and medium may alternate within one transaction: the chunks are the same. The network takes a transfer over only
        from a source that gives nothing any more; a person at the device may choose at any time.

        Args:
            source: Where its bytes come from from now on; where Check found the release last if not given.
        """
        self._intake.install(digest, source=source, consent=consent, actor=actor, is_local=is_local)
        self.wake()

    def activate(self, digest: Sha256, *, window_open: bool) -> None:
        """Allow the reboot as far as the caller's window is concerned; everything else is still checked."""
        self._intake.require_in_hand(digest)
        self._activation.request(window_open=window_open)
        self.wake()

    def set_paused(self, paused: bool) -> None:
        """Pause holds a transfer or an activation where it is; Resume also ends a back-off."""
        self.transaction.paused = paused
        self.transaction.retry_at_s = None
        self.transaction.touch()
        self.wake()

    def cancel(self, digest: Sha256, *, code: str = "update.canceled", text: str = "") -> None:
        """End the transaction before its reboot."""
        transaction = self.transaction
        with transaction.lock:
            self._intake.require_in_hand(digest)
            armed = transaction.phase is Phase.ARMED and transaction.ports.reboot.is_requested()
            if transaction.phase not in CANCELABLE or armed:
                raise EngineBusyError("too late to cancel", phase=transaction.phase.value)
            transaction.cancel_text = text
            transaction.cancel_code = code
            transaction.retry_at_s = None
        transaction.touch()
        self.wake()

    def consent(self, consent: Consent, *, actor: Actor = SYSTEM) -> None:
        """Record a consent given at this device."""
        self._intake.agree(consent, actor)
        self.wake()

    def reject(self, digest: Sha256, reason: str, *, actor: Actor = SYSTEM) -> None:
        """An operator refuses the release: in a trial that is a failed check, before it a cancel and a quarantine."""
        self._intake.require_in_hand(digest)
        self.transaction.actor = actor
        if self.transaction.phase in IN_TRIAL:
            with self.transaction.work:
                self._trial.reject(reason)
            self.wake()
            return
        self.cancel(digest, code="update.rejected", text=f"rejected at the device: {reason}")

    def clear_quarantine(self, digest: Sha256) -> None:
        """Let a release that failed here be offered again."""
        self.transaction.journal.clear_quarantine(txn_of(digest))

    def repair_env(self) -> None:
        """Rebuild an invalid boot environment on an operator's word, where hashing could not prove the slot."""
        with self.transaction.work:
            self._repair.by_operator()
            self._startup.classify()

    def health(self, *, given_up: Callable[[], bool]) -> Verdict | None:
        """The verdict on this trial boot, None when this boot is no trial."""
        if self.transaction.phase not in IN_TRIAL:
            return None
        verdict = self._trial.judge(given_up=given_up)
        self.wake()
        return verdict

    def commit(self) -> bool:
        """Commit a healthy trial; False when this boot is no trial."""
        with self.transaction.work:
            if self.transaction.phase is Phase.COMMITTED and self.transaction.pending:
                self._trial.finish_committed()  # an earlier Commit could not be written
                self._not_yet.over()
                return True
            if self.transaction.phase not in IN_TRIAL:
                return False
            self._trial.commit()
            return True

    # --- common checks --------------------------------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether the process may end without losing anything."""
        transaction = self.transaction
        return transaction.phase in RESTING and not transaction.pending and transaction.degraded is None


def _rest() -> float:
    return IDLE_WAIT_S
