"""One deployment, from the server's wish to the closed action: Check, consent, Install, Activate, and the updater's verdict.

Each step looks at the updater's present status and at the stored action, and does one thing; a restart simply takes the next
step.
"""

from __future__ import annotations

from tidewaiter_core.backoff import Backoff
from tidewaiter_core.settings import UpdateConsent
from tidewaiter_core.varlink import VarlinkError

from tidewaiter_agent.action import Action, ActionBook, Stage
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.consent_values import Decision, Subject
from tidewaiter_agent.feedback import Feedback
from tidewaiter_agent.update_rules import (
    Meaning,
    Report,
    failure_report,
    judge,
    report_of,
    success_report,
    verified_report,
    waiting_report,
)
from tidewaiter_agent.updater_client import ConsentClaim, Updater, UpdaterStatus

ACTIVE_S = 1.0
WAITING_S = 5.0
IDLE_S = 60.0
BUSY_S = 30.0


class Deployment:
    """Steps of a deployment; also Check and refusal, which a confirmation shares."""

    def __init__(
        self,
        *,
        book: ActionBook,
        updater: Updater,
        consent: ConsentStore,
        feedback: Feedback,
        policy: UpdateConsent,
        backoff: Backoff,
    ) -> None:
        self._book = book
        self._updater = updater
        self._consent = consent
        self._feedback = feedback
        self._policy = policy
        self._backoff = backoff
        self._window_sent: bool | None = None

    def begin(self) -> None:
        """A new action: nothing was told to the updater yet."""
        self._window_sent = None
        self._backoff.reset()

    def step(self, action: Action) -> float:
        """Do the next piece of work for the action."""
        if action.begun:
            return self._follow(action)
        if not action.download:
            return IDLE_S
        if action.stage is Stage.WAITING:
            checked = self.check(action)
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
            self._feedback.report(
                waiting_report("update.busy", f"the updater is at work on another release ({status.phase})")
            )
            return BUSY_S
        self._updater.install(action.digest, self._claim(action))
        self._book.change(stage=Stage.INSTALLING, detail="")
        return 0.0

    def check(self, action: Action) -> Action | None:
        """Let the updater verify the release; None when the action ended with it."""
        # The back-off is not reset here: a Check that succeeds and an Install that is refused would alternate for ever.
        offer = self._updater.check(action.release_path)
        if not offer.installable:
            status = self._updater.status()
            if status.running_digest == offer.release.digest:
                self.end_refused(action, success_report(status))
            else:
                self.end_refused(action, failure_report(offer.code, offer.detail))
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
            self._feedback.report(verified_report(f"{checked.name} {checked.version}"))
        return checked

    def end_refused(self, action: Action, report: Report) -> None:
        """The release will not be installed: a deployment closes, a question is answered with no."""
        if action.confirming:
            self._feedback.answer_confirmation(action, confirmed=False, details=report.details)
        else:
            self._close(report)

    def _follow(self, action: Action) -> float:
        status = self._updater.status()
        match judge(status, action.digest, begun=True):
            case Meaning.SUCCEEDED:
                return self._close(success_report(status))
            case Meaning.FAILED:
                return self._close(failure_report(status.last_code, status.last_text, status.last_what_to_do))
            case Meaning.INSTALL:
                # The updater lost it. The first time at once would be right, but it may lose it every time.
                self._book.change(stage=Stage.WAITING)
                return self._backoff.next_s()
            case Meaning.BUSY:
                self._feedback.report(
                    waiting_report(
                        "update.busy", f"the updater is at work on another release ({status.phase})"
                    )
                )
                return BUSY_S
            case Meaning.CONSENT:
                self._backoff.reset()
                return self._ask(action, status)
            case Meaning.ACTIVATE:
                self._consent.withdraw(action.digest)
                return self._activate(action, status)
            case _:
                self._backoff.reset()
                self._consent.withdraw(action.digest)
                self._feedback.report(report_of(status))
                if action.download and "source.vanished" in status.waiting_for:
                    # Somebody took the stick away from which this release came; the server has it, too.
                    self._updater.install(action.digest, None)
                return ACTIVE_S

    def _activate(self, action: Action, status: UpdaterStatus) -> float:
        self._feedback.report(report_of(status))
        if not action.update:
            return WAITING_S
        if status.phase == "STAGED" or self._window_sent is not action.window_open:
            self._updater.activate(action.digest, window_open=action.window_open)
            self._window_sent = action.window_open
            self._backoff.reset()
            self._book.change(stage=Stage.ACTIVATING)
        return ACTIVE_S

    def _ask(self, action: Action, status: UpdaterStatus) -> float:
        match self._consent.ask(subject_of(action), reason=_reason(action, status)):
            case Decision.GRANTED if not action.needs_local:
                self._updater.install(action.digest, self._claim(action))
                return ACTIVE_S
            case Decision.DENIED:
                why = self._consent.denial_reason(action.digest)
                self._updater.cancel(action.digest)
                code = "consent.timeout" if why == "timeout" else "consent.denied"
                return self._close(failure_report(code, f"release {action.version}: {why} at the device"))
            case _:
                self._feedback.report(report_of(status))
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

    def _close(self, report: Report) -> float:
        action = self._book.action
        self._feedback.close(report)
        if action is not None:
            self._consent.withdraw(action.digest)
        return 0.0

    def refused(self, action: Action, err: VarlinkError) -> float:
        """The updater said no to one of our calls."""
        if err.name.endswith(".Busy"):
            phase = str(err.parameters.get("phase", ""))
            if not action.confirming:
                self._feedback.report(waiting_report("update.busy", f"the updater is busy ({phase})"))
            return BUSY_S
        text = str(err.parameters.get("detail") or err.parameters.get("message") or err)
        if err.code == "release.unknown":
            # The updater lost or ended what we had in hand: begin with Check again.
            self._book.change(stage=Stage.WAITING)
            return self._backoff.next_s()
        if err.retryable:
            if not action.confirming:
                self._feedback.report(waiting_report(err.code, text))
            return self._backoff.next_s()
        self.end_refused(action, failure_report(err.code, text))
        return 0.0 if not action.confirming else IDLE_S


def subject_of(action: Action) -> Subject:
    """What a person is asked about."""
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
