"""From consent to a staged slot: PREPARE, TRANSFER, VERIFY, STAGED.

What a failure costs: the target is unbootable from DISARM on, the running release is untouched, and the next attempt reuses
every chunk that is already right. A way that is down (source.unavailable, .slow ...) is waited for; faults of our disk are
tried three times per release; everything else, wrong bytes above all, ends the transaction with its code.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable

from tidewaiter_core.audit import AuditUnavailableError
from tidewaiter_core.backoff import Backoff
from tidewaiter_core.clock import Clock
from tidewaiter_core.errors import StateError, TidewaiterError
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.effects import Effects
from tidewaiter_updater.errors import (
    BudgetError,
    InstallCancelledError,
    OfferRefusedError,
    SlotError,
    SourceError,
    SourceRefusedError,
)
from tidewaiter_updater.model import RELAY, ByteCounts, Scope, TransferProgress, is_medium
from tidewaiter_updater.phases import Effect, Phase
from tidewaiter_updater.transaction import Transaction

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
RETRY_BASE_S = 60.0
RETRY_CAP_S = 6 * 3600.0
LONG_WAIT_S = 30.0
AUDIT_WAIT_S = 60.0
ROOM_WAIT_S = 60.0
INJECTOR_POLL_S = 1.0
WAY_FAULTS = frozenset({"source.unavailable", "source.slow", "source.vanished", "source.not-metadata"})


class TransferControl:
    """Control of the pipeline: paused by a person or by an injection, ended by Cancel."""

    def __init__(self, transaction: Transaction) -> None:
        self._t = transaction
        self._asked_s = float("-inf")

    def paused(self) -> bool:
        self._look_at_injector()
        return (self._t.paused or self._t.hold_back) and not self.cancelled()

    def cancelled(self) -> bool:
        return (
            self._t.is_cancel_requested() or self._t.stopping or self._t.redirected or self._must_not_wait()
        )

    def _must_not_wait(self) -> bool:
        """A pause ends the read-back before ARM: waiting in it would keep the injector locked for as long."""
        return self._t.paused and self._t.phase is Phase.WAIT_WINDOW

    def _look_at_injector(self) -> None:
        now_s = self._t.ports.clock.boottime_s()
        if now_s - self._asked_s < INJECTOR_POLL_S:
            return
        self._asked_s = now_s
        injecting = self._t.ports.injector.is_injecting()
        if injecting != self._t.hold_back:
            self._t.hold_back = injecting
            self._t.wait_for(*(("injector-injecting",) if injecting else ()))


class Transfer:
    """The steps that bring a release into the target slot."""

    def __init__(
        self,
        transaction: Transaction,
        effects: Effects,
        *,
        permit: Callable[[Release], None],
        rng: random.Random | None = None,
    ) -> None:
        """
        Args:
            permit: Raises OfferRefusedError if this device must not install the release (any more).
        """
        self._t = transaction
        self._effects = effects
        self._clock: Clock = transaction.ports.clock
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, rng=rng)
        self._permit = permit
        self._rewritten = False

    def await_consent(self) -> float:
        """WAIT_CONSENT: on to PREPARE once somebody allowed this very release."""
        if awaited := self._t.lacks_consent(Scope.INSTALL):
            self._t.wait_for(*awaited)
            return LONG_WAIT_S
        self._t.enter(Phase.PREPARE)
        return 0.0

    def prepare(self) -> float:
        """PREPARE: everything that can be refused is refused before the slot loses its content."""
        release, entry = self._t.release, self._t.entry
        if release is None or entry is None:
            raise RuntimeError("PREPARE without a release")
        try:
            self._permit(release)
            self._t.ports.slots.check(entry.target, release)
            self._effects.perform(Phase.PREPARE)
        except AuditUnavailableError as err:
            logger.warning("update waits for the audit log: %s", err)
            self._t.wait_for("update.audit-full")
            return AUDIT_WAIT_S
        except StateError:
            raise  # our own disk, nothing was refused: the engine waits and tries again
        except OfferRefusedError as err:
            if not err.retryable:
                return self.end(err)
            # Room may be made at any time; an end would have to be begun anew by a person or the server.
            self._t.conclude(err.code, str(err))
            self._t.wait_for(err.code)
            return ROOM_WAIT_S
        except TidewaiterError as err:
            return self.end(err)
        self._effects.resume = False
        self._rewritten = False
        self._backoff.reset()
        self._begin(Phase.TRANSFER)
        return 0.0

    def transfer(self) -> float:
        """TRANSFER: may be interrupted anywhere and called again."""
        if (wait_s := self._held_up()) > 0:
            return wait_s
        try:
            self._effects.perform(Phase.TRANSFER)
        except AuditUnavailableError as err:  # another plan is audited before its first byte
            logger.warning("the transfer waits for the audit log: %s", err)
            self._t.retry_at_s = self._clock.boottime_s() + AUDIT_WAIT_S
            self._t.wait_for("update.audit-full")
            return AUDIT_WAIT_S
        except TidewaiterError as err:
            return self._after_fault(err)
        finally:
            self._effects.resume = True
        if self._t.entry is not None and self._t.entry.source == RELAY and self._t.progress.counts.fetched:
            self._t.note_network()
        self._t.enter(Phase.VERIFY)
        return 0.0

    def verify(self) -> float:
        """VERIFY: what the medium itself returns decides; bad chunks are rewritten once."""
        if (wait_s := self._held_up()) > 0:
            return wait_s
        try:
            self._effects.perform(Phase.VERIFY)
            if self._effects.bad_chunks:
                return self._rewrite()
            self._t.enter(Phase.STAGED)
            self._stage()
        except AuditUnavailableError as err:
            logger.warning("staged, but not recorded: %s", err)
            self._t.enter(Phase.VERIFY, waiting_for=("update.audit-full",))
            self._t.retry_at_s = self._clock.boottime_s() + AUDIT_WAIT_S
            return AUDIT_WAIT_S
        except TidewaiterError as err:
            return self._after_fault(err)
        return 0.0

    def _stage(self) -> None:
        entry, release = self._t.entry, self._t.release
        if entry is None or release is None:
            raise RuntimeError("STAGED without a release")
        self._t.amend(staged_root=release.slot.image_root)
        self._t.conclude(
            "update.staged", f"{self._t.release_name()} is in slot {entry.target}, read back and right"
        )
        self._effects.perform(Phase.STAGED)
        self._t.ports.release_media()

    def _rewrite(self) -> float:
        bad, entry = self._effects.bad_chunks, self._t.entry
        if self._rewritten:
            slot = entry.target if entry else "?"
            return self.end(
                SlotError(
                    f"slot {slot}: {bad} chunks read back wrong after being written twice; it stays unbootable",
                    code="slot.medium",
                )
            )
        logger.warning("read-back found %d wrong chunks; they are written again", bad)
        self._rewritten = True
        self._begin(Phase.TRANSFER)
        return 0.0

    def _begin(self, phase: Phase) -> None:
        with self._t.lock:
            self._t.progress = TransferProgress(counts=ByteCounts())
            self._t.pace.restart()
            self._t.retry_at_s = None
        self._t.enter(phase)

    def _held_up(self) -> float:
        """Seconds to wait before the next try; every command clears `retry_at_s`."""
        if self._t.paused:
            if "paused" not in self._t.waiting_for:
                self._t.wait_for("paused")
            return LONG_WAIT_S
        if self._t.retry_at_s is not None:
            left_s = self._t.retry_at_s - self._clock.boottime_s()
            if left_s > 0:
                return left_s
            self._t.retry_at_s = None
        self._t.redirected = False
        self._t.wait_for()
        return 0.0

    def _after_fault(self, err: TidewaiterError) -> float:
        if isinstance(err, InstallCancelledError):
            return 0.0  # the engine's next step sees the request
        if isinstance(err, BudgetError):
            # I9: a larger download than allowed is a decision of a person, never made here.
            self._t.conclude(err.code, str(err))
            self._t.paused = True
            self._t.wait_for("paused", err.code)
            return LONG_WAIT_S
        if isinstance(err, SourceRefusedError) and self._t.entry and is_medium(self._t.entry.source):
            # Not as for a server: another medium, or the same one put back whole, may have it.
            err = SourceError(str(err), code="source.vanished")
        if _is_final(err):
            return self.end(err)
        if err.code not in WAY_FAULTS and not self._count_attempt(err):
            return self.end(err)
        wait_s = self._backoff.next_s()
        self._t.conclude(err.code, str(err))
        self._t.retry_at_s = self._clock.boottime_s() + wait_s
        self._t.wait_for(err.code)
        logger.warning("%s: %s; tried again in %.0f s", err.code, err, wait_s)
        return wait_s

    def _count_attempt(self, err: TidewaiterError) -> bool:
        """Whether another attempt is left."""
        if self._t.entry is None:
            return False
        attempts = self._t.entry.attempts + 1
        self._t.amend(attempts=attempts)
        self._t.save()
        return attempts < MAX_ATTEMPTS

    def end(self, err: TidewaiterError) -> float:
        """FAILED: the release is given up until a new command; the running one is untouched."""
        logger.error("%s: %s", err.code, err)
        self._t.conclude(err.code, str(err))
        self._t.ports.release_media()
        self._t.enter(Phase.FAILED)
        self._t.pending = True
        if err.code in ("boot.env-write", "boot.env-invalid"):
            self._t.degraded = err.code
        return 0.0

    def finish_failed(self) -> float:
        """The effects of FAILED; the audit log may be what failed, then it is tried again."""
        try:
            self._effects.perform(Phase.FAILED)
        except AuditUnavailableError:
            return AUDIT_WAIT_S
        self._t.pending = False
        self._t.touch()
        return 0.0

    def cancel(self) -> float:
        """End the transaction as a person or the server asked; what was written is kept for the next attempt."""
        with self._t.lock:
            code, text = self._t.cancel_code or "update.canceled", self._t.cancel_text
        self._t.conclude(
            code, text or f"{self._t.release_name()}: canceled; the running release is untouched"
        )
        try:
            self._effects.do(Effect.CLEAR)
            self._effects.do(Effect.AUDIT_FAILED)
        except AuditUnavailableError as err:
            logger.warning("cancel is not in the audit log: %s", err)  # ending never waits for the log
        except BootEnvError as err:
            self._t.degraded = err.code
        if self._t.entry is not None:
            self._t.ports.kernels.discard(self._t.entry.target)
        with self._t.lock:
            self._t.amend(phase=Phase.IDLE, since_utc=self._t.now_utc())
            # Not done before it is remembered, else the next start resumes what was canceled: a full disk is tried again.
            self._effects.do(Effect.CLOSE)
            self._t.cancel_code = None
            self._t.enter(Phase.IDLE)
        self._t.ports.release_media()
        return 0.0


def _is_final(err: TidewaiterError) -> bool:
    """Whether trying again by ourselves cannot help: the source already tried again where that makes sense."""
    is_refusal = isinstance(err, BootEnvError | SourceRefusedError) or not err.retryable
    return is_refusal or (isinstance(err, SourceError) and err.code not in WAY_FAULTS)
