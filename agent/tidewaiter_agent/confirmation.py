"""The server asks whether it may deploy (confirmationBase): a person at the device answers, bound to the digest of the release.

Auto-confirmation is never switched on by the device.
"""

from __future__ import annotations

from tidewaiter_core.settings import UpdateConsent

from tidewaiter_agent.action import Action, ActionBook, Stage
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.consent_values import Decision
from tidewaiter_agent.deployment import IDLE_S, WAITING_S, Deployment, subject_of
from tidewaiter_agent.feedback import Feedback


class Confirmation:
    """Steps of a question."""

    def __init__(
        self,
        *,
        book: ActionBook,
        consent: ConsentStore,
        feedback: Feedback,
        deployment: Deployment,
        policy: UpdateConsent,
    ) -> None:
        self._book = book
        self._consent = consent
        self._feedback = feedback
        self._deployment = deployment
        self._policy = policy

    def step(self, action: Action) -> float:
        """Do the next piece of work for the question."""
        if action.stage is Stage.WAITING:
            checked = self._deployment.check(action)
            if checked is None:
                return IDLE_S
            action = checked
        if self._policy is UpdateConsent.DENY:
            decision = Decision.DENIED
        elif not action.digest:
            return IDLE_S
        else:
            decision = self._consent.ask(subject_of(action), reason="the server asks for your confirmation")
        if decision is Decision.PENDING:
            if action.stage is Stage.ANSWERED and action.detail == "denied":
                # A day has passed since the denial: ask and answer again.
                self._book.change(stage=Stage.CHECKED, detail="")
            return WAITING_S
        answer = "confirmed" if decision is Decision.GRANTED else "denied"
        if action.stage is not Stage.ANSWERED or action.detail != answer:
            self._feedback.answer_confirmation(
                action,
                confirmed=decision is Decision.GRANTED,
                details=(f"release {action.version} {answer} at the device",),
            )
        return IDLE_S
