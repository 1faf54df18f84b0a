"""Carries one DDI action through the updater: Check, consent, Install, Activate, and what is told to the server on the way.

One worker thread owns the action; the poller only leaves its finding. Every decision is taken from the updater's present status
and the
stored action, so a restart at any point goes on where it was. The network never decides a commit: this module reports after the
fact.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidewaiter_core.backoff import Backoff
from tidewaiter_core.clock import Clock
from tidewaiter_core.errors import StateError, StateWriteError, TidewaiterError
from tidewaiter_core.heartbeat import Beat
from tidewaiter_core.settings import UpdateConsent
from tidewaiter_core.varlink import NotReachable, VarlinkError
from tidewaiter_core.workers import Stop

from tidewaiter_agent.action import Action, ActionBook, Stage
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.consent_values import Decision, Subject
from tidewaiter_agent.errors import ConsentError, OutboxFullError
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.outbox_item import Item, ItemClass
from tidewaiter_agent.update_rules import (
    CANCELED_CODES,
    Meaning,
    Report,
    failure_report,
    is_due,
    judge,
    report_of,
    success_report,
    waiting_report,
)
from tidewaiter_agent.updater_client import ConsentClaim, Updater, UpdaterStatus

logger = logging.getLogger(__name__)

ACTIVE_S = 1.0
WAITING_S = 5.0
IDLE_S = 60.0
BUSY_S = 30.0
STORAGE_S = 30.0
RETRY_BASE_S = 5.0
RETRY_CAP_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one poll showed."""

    offered: Action | None = None
    cancel_id: str = ""
    stop_id: str = ""


class Updates:
    """The worker. `found` is called by the poller, everything else by the worker's own thread."""

    def __init__(
        self,
        *,
        book: ActionBook,
        updater: Updater,
        outbox: Outbox,
        consent: ConsentStore,
        clock: Clock,
        stamp: Callable[[], Mapping[str, Any]],
        policy: UpdateConsent,
        on_change: Callable[[str, Mapping[str, str]], None] = lambda kind, detail: None,
        rng: random.Random | None = None,
    ) -> None:
        self._on_change = on_change
        self._book = book
        self._updater = updater
        self._outbox = outbox
        self._consent = consent
        self._clock = clock
        self._stamp = stamp
        self._policy = policy
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, rng=rng)
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._finding: Finding | None = None
        self._reported_s: float | None = None
        self._window_sent: bool | None = None

    @property
    def action(self) -> Action | None:
        """The action in hand."""
        return self._book.action

    def found(self, finding: Finding) -> None:
        """Leave what the latest poll showed; an older finding that was not looked at yet is replaced."""
        with self._lock:
            self._finding = finding
        self._wake.set()

    def wake(self) -> None:
        """Something changed (an answer to a prompt): look now."""
        self._wake.set()

    def run(self, stop: Stop, beat: Beat) -> None:
        """Step until told to stop."""
        while not stop.is_set:
            wait_s = self.step()
            if not stop.is_set and wait_s > 0:
                beat.wait(self._wake, wait_s)
            self._wake.clear()

    def step(self) -> float:
        """Do the next piece of work; seconds after which it is worth calling again."""
        try:
            self._consent.expire()
            self._take_finding()
            action = self._book.action
            if action is None:
                return IDLE_S
            if action.closing is not None:
                return self._finish_closing(action, action.closing)
            if action.cancel_id:
                return self._cancel(action)
            return self._confirm(action) if action.confirming else self._deploy(action)
        except NotReachable as err:
            return self._wait_for_updater(err)
        except VarlinkError as err:
            return self._refused(err)
        except (StateWriteError, OutboxFullError) as err:
            # Disk full: nothing was decided that is not on storage; the same step is taken again.
            logger.warning("update waits: %s", err)
            return STORAGE_S
        except ConsentError as err:
            logger.info("update waits: %s", err)
            return BUSY_S
        except StateError as err:
            logger.error("%s", err)  # noqa: TRY400 - the message says all
            return STORAGE_S

    # --- what the poll showed -------------------------------------------------------------------------------------

    def _take_finding(self) -> None:
        with self._lock:
            finding, self._finding = self._finding, None
        if finding is None:
            return
        try:
            self._take_cancel(finding)
            self._take_offer(finding)
        except TidewaiterError:
            with self._lock:
                # Not lost: looked at again unless a newer poll brought another one.
                self._finding = self._finding or finding
            raise

    def _take_cancel(self, finding: Finding) -> None:
        if not finding.cancel_id:
            self._book.note_cancels((), count=self._book.cancel_count)
            return
        if finding.cancel_id in self._book.cancels:
            return
        if self._book.action is not None and self._book.action.id == finding.stop_id:
            self._book.change(cancel_id=finding.cancel_id)
        else:
            # An action we never saw or have closed: there is nothing left to stop.
            self._answer_cancel(finding.cancel_id, done=True, text="nothing of this action is running")
            self._book.close(finding.stop_id)

    def _take_offer(self, finding: Finding) -> None:
        offered, present = finding.offered, self._book.action
        if offered is None:
            if (
                present is not None
                and not finding.cancel_id
                and present.closing is None
                and not _begun(present)
            ):
                self._drop(present)
            return
        if offered.id in self._book.closed:
            return
        if present is None:
            self._begin(offered)
        elif (present.id, present.confirming, present.release_path) == (
            offered.id,
            offered.confirming,
            offered.release_path,
        ):
            self._book.change(
                download=offered.download,
                update=offered.update,
                forced=offered.forced,
                window_open=offered.window_open,
            )
        elif present.closing is None and self._let_go(present):
            self._begin(offered)

    def _begin(self, action: Action) -> None:
        self._book.save(action)
        self._reported_s = self._window_sent = None
        self._backoff.reset()
        logger.info(
            "update action begun id=%s release=%s confirming=%s",
            action.id,
            action.release_path,
            action.confirming,
        )

    def _let_go(self, present: Action) -> bool:
        """The server replaced the action: stop the old one if that is still possible."""
        if _begun(present):
            try:
                self._updater.cancel(present.digest)
            except NotReachable:
                raise
            except VarlinkError as err:
                if err.name.endswith(".Busy"):
                    return False
        self._drop(present)
        return True

    def _drop(self, action: Action) -> None:
        logger.info("update action dropped id=%s: the server no longer shows it", action.id)
        self._consent.withdraw(action.digest)
        self._book.save(None)

    # --- a deployment ---------------------------------------------------------------------------------------------

    def _deploy(self, action: Action) -> float:
        if _begun(action):
            return self._follow(action)
        if not action.download:
            return IDLE_S
        if action.stage is Stage.WAITING:
            checked = self._check(action)
            if checked is None:
                return 0.0
            action = checked
        status = self._updater.status()
        meaning = judge(status, action.digest, begun=False)
        if meaning is Meaning.SUCCEEDED:
            return self._close(success_report(status))
        if self._policy is UpdateConsent.DENY:
            return self._close(
                failure_report("consent.denied", "site policy consent.update = deny forbids updates")
            )
        if meaning is Meaning.BUSY:
            self._report(
                waiting_report("update.busy", f"the updater is at work on another release ({status.phase})")
            )
            return BUSY_S
        self._updater.install(action.digest, self._claim(action))
        self._book.change(stage=Stage.INSTALLING, detail="")
        return 0.0

    def _check(self, action: Action) -> Action | None:
        """Let the updater verify the release; None when the action ended with it."""
        offer = self._updater.check(action.release_path)
        self._backoff.reset()
        if not offer.installable:
            status = self._updater.status()
            if status.running_digest == offer.release.digest:
                self._end_refused(action, success_report(status))
            else:
                self._end_refused(action, failure_report(offer.code, offer.detail))
            return None
        checked = self._book.change(
            stage=Stage.CHECKED,
            digest=offer.release.digest,
            name=offer.release.product,
            version=offer.release.version,
            consent_policy=offer.release.consent,
            needs_local=offer.release.consent == "local" or self._policy is UpdateConsent.ASK,
            risk=offer.release.risk,
            notes=dict(offer.release.notes),
        )
        if not checked.confirming:
            name = f"{checked.name} {checked.version}"
            self._report(
                Report(execution="proceeding", finished="none", details=(f"release {name} is verified",))
            )
        return checked

    def _end_refused(self, action: Action, report: Report) -> None:
        if action.confirming:
            self._answer_confirmation(action, confirmed=False, details=report.details)
        else:
            self._close(report)

    def _follow(self, action: Action) -> float:
        status = self._updater.status()
        self._backoff.reset()
        match judge(status, action.digest, begun=True):
            case Meaning.SUCCEEDED:
                return self._close(success_report(status))
            case Meaning.FAILED:
                return self._close(failure_report(status.last_code, status.last_text))
            case Meaning.INSTALL:
                self._book.change(stage=Stage.WAITING)
                return 0.0
            case Meaning.BUSY:
                self._report(
                    waiting_report(
                        "update.busy", f"the updater is at work on another release ({status.phase})"
                    )
                )
                return BUSY_S
            case Meaning.CONSENT:
                return self._ask(action, status)
            case Meaning.ACTIVATE:
                self._consent.withdraw(action.digest)
                return self._activate(action, status)
            case _:
                self._consent.withdraw(action.digest)
                self._report(report_of(status))
                return ACTIVE_S

    def _activate(self, action: Action, status: UpdaterStatus) -> float:
        self._report(report_of(status))
        if not action.update:
            return WAITING_S
        if status.phase == "STAGED" or self._window_sent is not action.window_open:
            self._updater.activate(action.digest, window_open=action.window_open)
            self._window_sent = action.window_open
            self._book.change(stage=Stage.ACTIVATING)
        return ACTIVE_S

    def _ask(self, action: Action, status: UpdaterStatus) -> float:
        match self._consent.ask(_subject(action), reason=_reason(action, status)):
            case Decision.GRANTED if not action.needs_local:
                self._updater.install(action.digest, self._claim(action))
                return ACTIVE_S
            case Decision.DENIED:
                why = self._consent.denial_reason(action.digest)
                self._updater.cancel(action.digest)
                code = "consent.timeout" if why == "timeout" else "consent.denied"
                return self._close(failure_report(code, f"release {action.version}: {why} at the device"))
            case _:
                self._report(report_of(status))
                return WAITING_S

    def _claim(self, action: Action) -> ConsentClaim | None:
        grant = self._consent.grant_for(action.digest)
        if grant is None:
            return None
        return ConsentClaim(
            digest=grant.digest,
            who=grant.given_by,
            given_utc=grant.given.utc,
            expires_utc=self._consent.expires_utc(grant),
        )

    # --- a confirmation -------------------------------------------------------------------------------------------

    def _confirm(self, action: Action) -> float:
        if action.stage is Stage.WAITING:
            checked = self._check(action)
            if checked is None:
                return IDLE_S
            action = checked
        if self._policy is UpdateConsent.DENY:
            decision = Decision.DENIED
        elif not action.digest:
            return IDLE_S
        else:
            decision = self._consent.ask(_subject(action), reason="the server asks for your confirmation")
        if decision is Decision.PENDING:
            if action.stage is Stage.ANSWERED and action.detail == "denied":
                # A day has passed since the denial: ask and answer again.
                self._book.change(stage=Stage.CHECKED, detail="")
            return WAITING_S
        answer = "confirmed" if decision is Decision.GRANTED else "denied"
        if action.stage is not Stage.ANSWERED or action.detail != answer:
            self._answer_confirmation(
                action,
                confirmed=decision is Decision.GRANTED,
                details=(f"release {action.version} {answer} at the device",),
            )
        return IDLE_S

    def _answer_confirmation(self, action: Action, *, confirmed: bool, details: tuple[str, ...]) -> None:
        answer = "confirmed" if confirmed else "denied"
        self._put(
            f"{action.id}-{answer}-{action.sent}",
            rel="confirmationBase",
            action_id=action.id,
            body={"confirmation": answer, "details": list(details)},
            final=True,
        )
        self._book.change(stage=Stage.ANSWERED, detail=answer, sent=action.sent + 1)

    # --- a cancel -------------------------------------------------------------------------------------------------

    def _cancel(self, action: Action) -> float:
        if not _begun(action):
            return self._canceled(action, "canceled before anything was installed")
        status = self._updater.status()
        match judge(status, action.digest, begun=True):
            case Meaning.SUCCEEDED:
                self._answer_cancel(action.cancel_id, done=False, text="too late: the release is committed")
                self._book.change(cancel_id="")
                return 0.0
            case Meaning.FAILED if status.last_code not in CANCELED_CODES:
                return self._canceled(action, f"already ended: {status.last_code}")
            case Meaning.FAILED | Meaning.INSTALL | Meaning.BUSY:
                return self._canceled(action, "canceled; the running release is untouched")
            case _:
                return self._stop(action)

    def _stop(self, action: Action) -> float:
        try:
            self._updater.cancel(action.digest)
        except VarlinkError as err:
            if not err.name.endswith(".Busy"):
                raise
            self._answer_cancel(
                action.cancel_id, done=False, text=f"too late: {err.parameters.get('phase', 'armed')}"
            )
            self._book.change(cancel_id="")
        return ACTIVE_S

    def _canceled(self, action: Action, text: str) -> float:
        self._consent.withdraw(action.digest)
        self._answer_cancel(action.cancel_id, done=True, text=text)
        self._book.close(action.id)
        return 0.0

    def _answer_cancel(self, cancel_id: str, *, done: bool, text: str) -> None:
        report = Report(
            execution="closed" if done else "rejected",
            finished="success" if done else "none",
            details=(text,),
        )
        # The count makes the id new when the server cancels the same action again after a rejection.
        self._put(
            f"cancel-{cancel_id}-{self._book.cancel_count}",
            rel="cancelAction",
            action_id=cancel_id,
            body=self._body(report),
            final=True,
        )
        self._book.note_cancels((*self._book.cancels, cancel_id), count=self._book.cancel_count + 1)

    # --- telling the server ---------------------------------------------------------------------------------------

    def _close(self, report: Report) -> float:
        action = self._book.change(closing=self._body(report))
        logger.info("update action closed id=%s %s %s", action.id, report.finished, report.details[:2])
        self._on_change(
            "update.closed", {"action": action.id, "result": report.finished, "text": report.details[0]}
        )
        return self._finish_closing(action, action.closing or {})

    def _finish_closing(self, action: Action, body: Mapping[str, Any]) -> float:
        """Queue the final feedback under its fixed id, then forget the action; safe to repeat."""
        self._put(f"{action.id}-closed", rel="deploymentBase", action_id=action.id, body=body, final=True)
        self._consent.withdraw(action.digest)
        self._book.close(action.id)
        return 0.0

    def _report(self, report: Report) -> None:
        action = self._book.action
        now_s = self._clock.boottime_s()
        if action is None or not is_due(
            report, last_key=action.reported_key, last_s=self._reported_s, now_s=now_s
        ):
            return
        self._reported_s = now_s
        self._book.change(
            reported_key=report.key, sent=action.sent + 1, detail=" ".join(report.details)[:200]
        )
        try:
            self._put(
                f"{action.id}-{action.sent}",
                rel="deploymentBase",
                action_id=action.id,
                body=self._body(report),
                group=f"progress-{action.id}" if report.percent is not None else "",
            )
        except (OutboxFullError, StateWriteError) as err:
            logger.warning("progress is not reported: %s", err)

    def _put(
        self,
        item_id: str,
        *,
        rel: str,
        action_id: str,
        body: Mapping[str, Any],
        group: str = "",
        final: bool = False,
    ) -> None:
        self._outbox.put(
            Item(
                id=item_id,
                kind=ItemClass.FEEDBACK,
                rel=rel,
                path_args={"action_id": action_id},
                body=body,
                group=group,
                final=final,
                stamp=self._stamp(),
            )
        )

    def _body(self, report: Report) -> dict[str, Any]:
        result: dict[str, Any] = {"finished": report.finished}
        if report.percent is not None:
            result["progress"] = {"cnt": report.percent, "of": 100}
        return {
            "timestamp": int(self._clock.now_utc().timestamp() * 1000),
            "status": {"execution": report.execution, "result": result, "details": list(report.details)},
        }

    # --- refusals -------------------------------------------------------------------------------------------------

    def _refused(self, err: VarlinkError) -> float:
        action = self._book.action
        if action is None:
            return IDLE_S
        if err.name.endswith(".Busy"):
            phase = str(err.parameters.get("phase", ""))
            if not action.confirming:
                self._report(waiting_report("update.busy", f"the updater is busy ({phase})"))
            return BUSY_S
        text = str(err.parameters.get("detail") or err.parameters.get("message") or err)
        if err.code == "release.unknown":
            # The updater lost or ended what we had in hand: begin with Check again.
            self._book.change(stage=Stage.WAITING)
            return self._backoff.next_s()
        if err.retryable:
            if not action.confirming:
                self._report(waiting_report(err.code, text))
            return self._backoff.next_s()
        self._end_refused(action, failure_report(err.code, text))
        return 0.0 if not action.confirming else IDLE_S

    def _wait_for_updater(self, err: NotReachable) -> float:
        logger.warning("updater: %s", err)
        return min(self._backoff.next_s(), IDLE_S)


def _begun(action: Action) -> bool:
    return action.stage in (Stage.INSTALLING, Stage.ACTIVATING)


def _subject(action: Action) -> Subject:
    return Subject(
        digest=action.digest,
        product=action.name,
        version=action.version,
        risk=action.risk,
        notes=dict(action.notes or {}),
        needs_local=action.needs_local,
    )


def _reason(action: Action, status: UpdaterStatus) -> str:
    what = "install" if status.phase == "WAIT_CONSENT" else "restart into"
    return f"{what} {action.name} {action.version}"
