"""The trial boot and its end: HEALTH, COMMITTED, ROLLED_BACK.

Invariants: only `commit` commits, and only on a healthy verdict of this very boot; a restart of the service in a trial commits
nothing; neither the network nor a report decides anything (I7).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tidewaiter_core.audit import AuditUnavailableError
from tidewaiter_core.clock import Deadline
from tidewaiter_core.errors import StateError, TidewaiterError

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.effects import Effects
from tidewaiter_updater.errors import EngineRefusedError
from tidewaiter_updater.model import CheckResult, DataState, HealthCheck, Verdict
from tidewaiter_updater.phases import IN_TRIAL, Effect, Phase
from tidewaiter_updater.refund import Refund
from tidewaiter_updater.transaction import Transaction

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 2.0
BEGIN_WAIT_S = 30.0
DEFAULT_DEADLINE_S = 600
"""For a trial whose release document was lost."""
DATA_LIMIT_S = 660.0
"""The 600 s that the data step may take, and its end."""
ENDLESS = frozenset({Effect.AUDIT_COMMITTED, Effect.AUDIT_ROLLED_BACK, Effect.AUDIT_FAILED})
"""Effects that may come later: ending a transaction never waits for the audit log."""


class Trial:
    """Judges the running trial, commits it, or cleans up after it."""

    def __init__(self, transaction: Transaction, effects: Effects) -> None:
        self._t = transaction
        self._effects = effects
        self._clock = transaction.ports.clock
        self._verdict: Verdict | None = None
        self._refund = Refund(transaction, effects)

    def begin(self) -> float:
        """What a trial boot starts with; the rest waits for tidewaiter-health."""
        self._refund.settle()
        return BEGIN_WAIT_S

    def resume(self) -> None:
        """Pick up a verdict that this boot already reached before the service was restarted."""
        stored = self._t.entry.verdict if self._t.entry else None
        if stored is not None and stored.boot_id == self._t.boot_id:
            self._verdict = stored
            self._t.phase = Phase.HEALTH
            # A cut between the journal and FAIL: the verdict stands, so FAIL is due.
            self._t.pending = not stored.healthy and self._effects.env().left > 0

    @property
    def has_failed(self) -> bool:
        """Whether health said no in this boot."""
        return self._verdict is not None and not self._verdict.healthy

    def judge(self, *, given_up: Callable[[], bool]) -> Verdict:
        """Run the checks until they are green for hold_s, or the deadline has passed; then the verdict is durable.

        Args:
            given_up: Asked between rounds; True ends without a verdict (the caller hung up, the service stops).
        """
        if self._verdict is not None:
            return self._verdict
        with self._t.work:  # a commit must not come between looking and entering
            if self._verdict is not None:
                return self._verdict
            self._refund.settle()
            self._lock_injector_again()
        self._await_data(given_up)
        with self._t.work:
            if self._verdict is not None:
                return self._verdict
            self._t.enter(Phase.HEALTH)
        health = self._t.release.health if self._t.release else None
        deadline = Deadline(self._clock, health.deadline_s if health else DEFAULT_DEADLINE_S)
        hold_s = health.hold_s if health else 0
        green_since_s: float | None = None
        never = threading.Event()
        while True:
            checks = self._run_checks()
            if self._verdict is not None:  # an operator rejected it in between
                return self._verdict
            now_s = self._clock.boottime_s()
            bad = tuple(check for check in checks if check.result is CheckResult.FAIL)
            green_since_s = None if bad else (green_since_s if green_since_s is not None else now_s)
            if green_since_s is not None and now_s - green_since_s >= hold_s:
                return self._conclude(checks, healthy=True)
            self._t.wait_for(*(f"health.{check.name}" for check in bad))
            if deadline.expired or any(check.is_final for check in bad):
                return self._conclude(checks, healthy=False)
            if given_up():
                raise EngineRefusedError(
                    "health checks: interrupted, no verdict", code="health.interrupted", retryable=True
                )
            self._clock.wait(never, CHECK_INTERVAL_S)

    def _await_data(self, given_up: Callable[[], bool]) -> None:
        """The data step comes before the checks; how it went is the check `data`'s to say, also when it did not end in time."""
        deadline, never = Deadline(self._clock, DATA_LIMIT_S), threading.Event()
        while self._verdict is None and not deadline.expired:
            if self._t.ports.data.status().state is not DataState.WORKING:
                return
            self._t.wait_for("update.data")
            if given_up():
                raise EngineRefusedError(
                    "health checks: interrupted, no verdict", code="health.interrupted", retryable=True
                )
            self._clock.wait(never, CHECK_INTERVAL_S)

    def _run_checks(self) -> tuple[HealthCheck, ...]:
        slot = self._t.booted
        if slot is None:
            raise RuntimeError("a trial without a booted slot")
        entry = self._t.entry
        return self._t.ports.health.run(
            slot,
            self._t.release,
            network_proven_utc=entry.network_proven_utc if entry else "",
            clock_was_low=entry.clock_was_low if entry else False,
        )

    def _lock_injector_again(self) -> None:
        """A power cut after ARM boots the trial without the sealed lease; then it is taken again, if that is allowed."""
        interlock = self._t.ports.interlock
        try:
            if interlock.lease() is None and interlock.check("activate").allow:
                interlock.hold("activate")
        except TidewaiterError as err:
            logger.warning("trial runs without a lease: %s", err)

    def _conclude(self, checks: tuple[HealthCheck, ...], *, healthy: bool) -> Verdict:
        verdict = Verdict(boot_id=self._t.boot_id, healthy=healthy, checks=checks)
        with self._t.work:
            if self._verdict is not None:  # an operator was faster
                return self._verdict
            if healthy:
                self._verdict = verdict
                self._t.amend(verdict=verdict)
                self._effects.do(Effect.JOURNAL)
                self._t.wait_for()
                return verdict
            first = verdict.failed[0] if verdict.failed else None
            code = f"health.{first.name}" if first else "health.deadline"
            detail = "; ".join(f"{check.name}: {check.detail}" for check in verdict.failed)
            who = self._t.release_name()
            self.fail(verdict, code, f"{who} is not healthy: {detail}; the earlier release comes back")
            return verdict

    def fail(self, verdict: Verdict, code: str, text: str) -> None:
        """FAIL: tries are for crashes and hangs, not for a verdict; the next reset goes back."""
        with self._t.work:
            self._verdict = verdict
            self._t.enter(Phase.HEALTH)
            self._t.amend(verdict=verdict)
            self._t.conclude(code, text)
            logger.error("%s: %s", code, text)
            self._t.pending = True  # until FAIL is written nothing else may happen
            self.finish_failed()

    def finish_failed(self) -> float:
        """The effects of a failed verdict, from where a cut left them."""
        self._perform(Phase.HEALTH)
        self._t.pending = False
        return 0.0

    def reject(self, reason: str) -> None:
        """An operator does not want this release: as good as a failed check."""
        check = HealthCheck(name="operator", result=CheckResult.FAIL, detail=reason)
        verdict = Verdict(boot_id=self._t.boot_id, healthy=False, checks=(check,))
        self.fail(verdict, "update.rejected", f"rejected at the device: {reason}")

    def commit(self) -> None:
        """COMMIT, then everything that follows from it; each part is repeated by the next start if it is cut short.

        Raises:
            EngineRefusedError: There is no healthy verdict of this boot, or the environment is not that of a trial.
        """
        env = self._effects.env()
        if (
            self._t.phase not in IN_TRIAL
            or env.trial is not self._t.booted
            or env.armboot == self._t.boot_id[:8]
        ):
            raise EngineRefusedError(
                "commit: this boot is no trial; nothing was changed", code="update.no-trial"
            )
        if self._verdict is None or self._verdict.boot_id != self._t.boot_id:
            raise EngineRefusedError(
                "commit: expected a health verdict of this boot, found none; nothing was committed",
                code="health.missing",
                retryable=True,
            )
        if not self._verdict.healthy:
            raise EngineRefusedError(
                "commit: health said no in this boot; nothing was committed", code="health.failed"
            )
        self._t.enter(Phase.COMMITTED)
        self._t.pending = True
        self.finish_committed()

    def finish_committed(self) -> float:
        """The effects of COMMITTED, from the start or from where a cut left them."""
        if self._t.entry is not None:
            self._t.conclude("update.committed", f"{self._t.identity.version} is healthy and committed")
        return self._finish(Phase.COMMITTED)

    def finish_rolled_back(self) -> float:
        """The effects of ROLLED_BACK; the reason is what health said in the trial, if it said anything."""
        verdict = self._t.entry.verdict if self._t.entry else None
        known = self._t.entry.last if self._t.entry else None
        if verdict is not None and not verdict.healthy and known is not None:
            self._t.conclude(known.code, known.text)
        else:
            who = self._t.release_name() or "the trial"
            self._t.conclude("update.rolled-back", f"{who} never became healthy; the earlier release runs")
        return self._finish(Phase.ROLLED_BACK)

    def _finish(self, phase: Phase) -> float:
        self._t.amend(phase=phase)
        try:
            self._perform(phase)
        except (StateError, BootEnvError):
            self._unlock_if_committed()
            raise
        self._t.pending = False
        self._t.touch()
        return 0.0

    def _unlock_if_committed(self) -> None:
        """What follows from COMMIT may have to wait for room on a disk; the injector's patients must not."""
        env = self._t.env()
        if self._t.in_trial and env is not None and env.trial is None and env.committed is self._t.booted:
            self._t.ports.interlock.release()

    def _perform(self, phase: Phase) -> None:
        for effect in self._t.table.effects[phase]:
            try:
                self._effects.do(effect)
            except AuditUnavailableError as err:
                if effect not in ENDLESS:
                    raise
                logger.error("%s is not in the audit log: %s", effect, err)  # noqa: TRY400 - the message says all
            except StateError as err:
                # FAIL is decided in the environment; the journal only tells why, and a full disk may be the very reason.
                if phase is not Phase.HEALTH:
                    raise
                logger.error("the verdict is not in the journal: %s", err)  # noqa: TRY400 - the message says all
