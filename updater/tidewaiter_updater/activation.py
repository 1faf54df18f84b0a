"""From a staged slot to the reboot: WAIT_WINDOW and ARMED, and the reboot that follows a failed trial.

Invariant I8: nothing is armed and nothing restarts without an interlock allow and, where the injector has one, a held
lease. The order Check -> Hold -> newer sample -> Check closes the gap between asking and acting: from the newer sample on
the injector itself refuses to arm. No answer is a no.

Source: update-engine.md section 10, hal-and-hil.md section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from tidewaiter_core.audit import AuditUnavailableError
from tidewaiter_core.errors import StateError, TidewaiterError
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.consent import covers
from tidewaiter_updater.effects import Effects
from tidewaiter_updater.errors import InstallCancelledError, InterlockError, OfferRefusedError
from tidewaiter_updater.model import Channel, Scope
from tidewaiter_updater.phases import Effect, Phase
from tidewaiter_updater.transaction import Transaction

logger = logging.getLogger(__name__)

RECHECK_S = 2.0
REBOOT_LIMIT_S = 60.0
AUDIT_WAIT_S = 60.0
UNCONFIRMED = "update.unconfirmed"


class Activation:
    """Waits for permission, arms, and restarts the machine."""

    def __init__(
        self,
        transaction: Transaction,
        effects: Effects,
        *,
        permit: Callable[[Release], None],
        give_up: Callable[[TidewaiterError], float],
    ) -> None:
        """
        Args:
            permit: Raises OfferRefusedError if this device must not start into the release (any more).
            give_up: Ends the transaction as failed.
        """
        self._t = transaction
        self._permit = permit
        self._give_up = give_up
        self._effects = effects
        self._clock = transaction.ports.clock
        self._reboot_asked_s: float | None = None

    def attempt(self) -> float:
        """WAIT_WINDOW: arm if everything allows it now, else show what is awaited."""
        now_s = self._clock.boottime_s()
        if self._t.retry_at_s is not None and now_s < self._t.retry_at_s:
            return min(RECHECK_S, self._t.retry_at_s - now_s)
        self._t.retry_at_s = None
        awaited = self._awaited()
        if awaited:
            self._t.wait_for(*awaited)
            return RECHECK_S
        try:
            self._must_be_permitted()
            self._lock_injector("activate", has_local_consent=self._has_local_consent())
            return self._arm_if_still_right()
        except InterlockError as err:
            self._t.wait_for(*(f"update.interlock:{reason}" for reason in err.reasons))
        except AuditUnavailableError as err:
            logger.warning("activation waits for the audit log: %s", err)
            self._t.wait_for("update.audit-full")
        except InstallCancelledError:
            logger.info("activation: canceled or paused while the slot was read")
        except StateError:
            self._t.ports.interlock.release()
            raise
        except OfferRefusedError as err:
            self._t.ports.interlock.release()
            return self._give_up(err)
        except TidewaiterError as err:
            return self._prove_again(err)
        self._t.ports.interlock.release()
        return RECHECK_S

    def _awaited(self) -> list[str]:
        conditions = {
            "update.window": self._t.window_open,
            "paused": not self._t.paused,
            # A trial copies the live set: which one that is has to be on storage.
            "update.data": self._t.ports.data.is_settled(),
        }
        awaited = [name for name, holds in conditions.items() if not holds]
        return [*self._t.lacks_consent(Scope.ACTIVATE), *awaited]

    def _must_be_permitted(self) -> None:
        if self._t.release is None:
            raise RuntimeError("WAIT_WINDOW without a release")
        self._permit(self._t.release)

    def _has_local_consent(self) -> bool:
        release, entry = self._t.release, self._t.entry
        return (
            release is not None
            and entry is not None
            and covers(
                entry.consent,
                digest=release.digest,
                scopes=(Scope.ACTIVATE,),
                needed=Channel.LOCAL,
                now=self._clock.now_utc(),
            )
        )

    def _lock_injector(self, purpose: str, *, has_local_consent: bool, has_lease: bool = False) -> None:
        """Check, Hold, newer sample, Check. InterlockError leaves nothing held that `release` does not end.

        Args:
            has_local_consent: Whether a consent given at the device exists, for an injector that has no lease.
            has_lease: A lease of ours may stand already, also one from before the last restart; it serves as well.
        """
        interlock = self._t.ports.interlock
        self._must_allow(purpose)
        before = interlock.newer_sample(None)
        held = (interlock.lease() if has_lease else None) or interlock.hold(purpose)
        if held is None and not has_local_consent:
            raise InterlockError(
                "this injector cannot be locked; restarting it needs a consent given at the device",
                reasons=("no-lease-no-local-consent",),
            )
        if held is not None and (before is None or interlock.newer_sample(before) is None):
            raise InterlockError(
                "no state sample after the lease; the lock is not proven", reasons=("stale",)
            )
        self._effects.lease_id = held.lease_id if held else None
        self._must_allow(purpose)

    def _must_allow(self, purpose: str) -> None:
        answer = self._t.ports.interlock.check(purpose)
        if not answer.allow:
            raise InterlockError(
                f"interlock denies {purpose}: {', '.join(answer.reasons)}",
                reasons=answer.reasons or ("denied",),
            )

    def _arm_if_still_right(self) -> float:
        self._effects.do(Effect.READ_BACK)
        if self._effects.bad_chunks:
            logger.error("slot content changed since it was staged: %d chunks", self._effects.bad_chunks)
            self._t.ports.interlock.release()
            self._t.enter(Phase.TRANSFER)
            return 0.0
        # The read-back may have taken longer than consent, window and decision last.
        if awaited := self._awaited():
            self._t.ports.interlock.release()
            self._t.wait_for(*awaited)
            return RECHECK_S
        self._must_be_permitted()
        self._must_allow("activate")
        return self._arm()

    def _prove_again(self, err: TidewaiterError) -> float:
        """The slot could not be read: back to VERIFY, which counts attempts and waits, and without the injector locked."""
        logger.error("%s: %s; nothing was armed", err.code, err)
        self._t.ports.interlock.release()
        self._t.conclude(err.code, str(err))
        self._t.enter(Phase.VERIFY)
        return 0.0

    def _arm(self) -> float:
        armed = False
        self._t.enter(Phase.ARMED)
        try:
            for effect in self._t.table.effects[Phase.ARMED]:
                if effect is Effect.REBOOT:
                    self._last_look()
                self._effects.do(effect)
                armed = armed or effect is Effect.ARM
        except AuditUnavailableError:
            if not armed:
                self._t.enter(Phase.WAIT_WINDOW)
                raise
            return self.disarm(
                "update.audit-full", "the audit log cannot be written; the trial was called off"
            )
        except BootEnvError as err:
            self._t.degraded = err.code
            return self.disarm(err.code, str(err))
        except InstallCancelledError:
            return self.disarm("update.canceled", "canceled before the reboot")
        except TidewaiterError as err:
            return self.disarm(err.code, str(err))
        self._reboot_asked_s = self._clock.boottime_s()
        return RECHECK_S

    def _last_look(self) -> None:
        if self._t.is_cancel_requested():
            raise InstallCancelledError("canceled between arming and reboot")
        if self._effects.lease_id is None:
            self._must_allow("activate")
            return
        # The seal was some time ago: the audit log was flushed since, and an operator may end a lease at any moment.
        lease = self._t.ports.interlock.lease()
        if lease is None or lease.lease_id != self._effects.lease_id or not lease.sealed:
            raise InterlockError(
                "the sealed lease ended before the reboot; the trial is called off", reasons=("lease-lost",)
            )

    def watch_armed(self) -> float:
        """ARMED: the machine goes down within 60 s, or the trial is called off."""
        if self._reboot_asked_s is None and not self._t.ports.reboot.is_requested():
            # This process did not arm: it was restarted in between, its lease is gone unless it was sealed.
            text = "interrupted between arming and reboot; the trial was called off"
            return self.disarm("update.interlock", text)
        if not self._is_reboot_overdue():
            return RECHECK_S
        text = f"no reboot within {REBOOT_LIMIT_S:.0f} s; the trial was called off"
        return self.disarm("update.not-rebooted", text)

    def disarm(self, code: str, text: str) -> float:
        """CLEAR after ARM: the flag first, so that a late reboot finds the old release in force."""
        self._reboot_asked_s = None
        ports = self._t.ports
        ports.reboot.withdraw()
        self._t.conclude(code, text)
        try:
            self._effects.do(Effect.CLEAR)
        except BootEnvError as err:
            self._t.degraded = err.code
            logger.error("the armed trial could not be cleared: %s", err)  # noqa: TRY400 - the message says all
        try:
            self._effects.do(Effect.AUDIT_FAILED)
        except AuditUnavailableError as err:
            logger.warning("calling off is not in the audit log: %s", err)
        ports.interlock.release()
        # Without the journal nobody knows what was armed; the slot stays cleared and the release is offered again.
        self._t.enter(
            Phase.WAIT_WINDOW if self._t.entry is not None and self._t.release is not None else Phase.IDLE
        )
        self._effects.do(Effect.JOURNAL)
        self._t.retry_at_s = self._clock.boottime_s() + REBOOT_LIMIT_S
        return RECHECK_S

    def leave_trial(self) -> float:
        """HEALTH failed: restart into the earlier release, but never while the injector may be in use."""
        ports = self._t.ports
        if ports.reboot.is_requested() and not self._is_reboot_overdue():
            return RECHECK_S
        # A flag that nobody acted on must not restart the machine later, when the injector may be in use again.
        ports.reboot.withdraw()
        try:
            # The trial's lease is kept: given back, the injector could inject under a release that failed.
            self._lock_injector("reboot", has_local_consent=self._has_local_consent(), has_lease=True)
            if self._effects.lease_id is not None:
                ports.interlock.seal(self._effects.lease_id)
            self._effects.do(Effect.REBOOT)
            self._reboot_asked_s = self._clock.boottime_s()
        except InterlockError as err:
            self._t.wait_for(UNCONFIRMED, *(f"update.interlock:{reason}" for reason in err.reasons))
        except TidewaiterError as err:
            self._t.wait_for(UNCONFIRMED, err.code)
        return RECHECK_S

    def _is_reboot_overdue(self) -> bool:
        if self._reboot_asked_s is None:
            self._reboot_asked_s = self._clock.boottime_s()  # asked for before this process was restarted
        return self._clock.boottime_s() - self._reboot_asked_s >= REBOOT_LIMIT_S

    def request(self, *, window_open: bool) -> None:
        """Activate was called; conditions are re-checked until they hold."""
        with self._t.lock:
            self._t.window_open = window_open
            if self._t.entry is not None and self._t.phase is Phase.STAGED:
                self._t.amend(phase=Phase.WAIT_WINDOW)
                self._t.phase = Phase.WAIT_WINDOW
        self._t.touch()
