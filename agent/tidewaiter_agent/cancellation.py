"""The server takes an action back (cancelAction): stop it if the updater still can, and say which of the two it was.

hawkBit facts: `canceled` on a cancel is only a warning, so it is acknowledged with closed/success; too late is `rejected`.
"""

from __future__ import annotations

from tidewaiter_core.varlink import VarlinkError

from tidewaiter_agent.action import Action, ActionBook
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.deployment import ACTIVE_S
from tidewaiter_agent.feedback import Feedback
from tidewaiter_agent.update_rules import CANCELED_CODES, Meaning, judge
from tidewaiter_agent.updater_client import Updater


class Cancellation:
    """Steps of a cancel."""

    def __init__(
        self, *, book: ActionBook, updater: Updater, consent: ConsentStore, feedback: Feedback
    ) -> None:
        self._book = book
        self._updater = updater
        self._consent = consent
        self._feedback = feedback

    def step(self, action: Action) -> float:
        """Do the next piece of work for the cancel."""
        if not action.begun:
            return self._canceled(action, "canceled before anything was installed")
        status = self._updater.status()
        match judge(status, action.digest, begun=True):
            case Meaning.SUCCEEDED:
                self._feedback.answer_cancel(
                    action.cancel_id, done=False, text="too late: the release is committed"
                )
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
            self._feedback.answer_cancel(
                action.cancel_id, done=False, text=f"too late: {err.parameters.get('phase', 'armed')}"
            )
            self._book.change(cancel_id="")
        return ACTIVE_S

    def _canceled(self, action: Action, text: str) -> float:
        self._consent.withdraw(action.digest)
        self._feedback.answer_cancel(action.cancel_id, done=True, text=text)
        self._book.close(action.id)
        return 0.0
