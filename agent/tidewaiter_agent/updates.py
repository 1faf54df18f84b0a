"""Owns the one DDI action of this device: what the poll showed, which step is next, what a failure of a neighbor means for it.

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

from tidewaiter_agent.action import Action, ActionBook
from tidewaiter_agent.cancellation import Cancellation
from tidewaiter_agent.confirmation import Confirmation
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.deployment import BUSY_S, IDLE_S, Deployment
from tidewaiter_agent.errors import ConsentError, OutboxFullError
from tidewaiter_agent.feedback import Feedback
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.update_rules import failure_report
from tidewaiter_agent.updater_client import Updater

logger = logging.getLogger(__name__)

STORAGE_S = 30.0
RETRY_BASE_S = 5.0
RETRY_CAP_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one poll showed."""

    offered: Action | None = None
    cancel_id: str = ""
    stop_id: str = ""
    refusal: tuple[str, str] | None = None
    """Code and text: what is offered can never be carried out, whatever is tried."""


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
        self._book = book
        self._updater = updater
        self._consent = consent
        self._backoff = Backoff(base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, rng=rng)
        self._feedback = Feedback(book, outbox, clock=clock, stamp=stamp, on_change=on_change)
        self._deployment = Deployment(
            book=book,
            updater=updater,
            consent=consent,
            feedback=self._feedback,
            policy=policy,
            backoff=self._backoff,
        )
        self._confirmation = Confirmation(
            book=book, consent=consent, feedback=self._feedback, deployment=self._deployment, policy=policy
        )
        self._cancellation = Cancellation(
            book=book, updater=updater, consent=consent, feedback=self._feedback
        )
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._finding: Finding | None = None
        self._trouble = ""

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
            wait_s = self._step()
        except NotReachable as err:
            self._log_once(logging.WARNING, f"updater: {err}")
            return min(self._backoff.next_s(), IDLE_S)
        except (StateWriteError, OutboxFullError) as err:
            # Disk full: nothing was decided that is not on storage; the same step is taken again.
            self._log_once(logging.WARNING, f"update waits: {err}")
            return STORAGE_S
        except ConsentError as err:
            self._log_once(logging.INFO, f"update waits: {err}")
            return BUSY_S
        except StateError as err:
            self._log_once(logging.ERROR, str(err))
            return STORAGE_S
        self._trouble = ""
        return wait_s

    def _log_once(self, level: int, text: str) -> None:
        """The same trouble is one line until it is over or another one, not one per attempt for days."""
        if text != self._trouble:
            self._trouble = text
            logger.log(level, "%s", text)

    def _step(self) -> float:
        try:
            self._consent.expire()
            self._take_finding()
            action = self._book.action
            if action is None:
                return IDLE_S
            if action.closing is not None:
                self._feedback.finish_closing(action, action.closing)
                self._consent.withdraw(action.digest)
                return 0.0
            if action.cancel_id:
                return self._cancellation.step(action)
            return self._confirmation.step(action) if action.confirming else self._deployment.step(action)
        except VarlinkError as err:
            return self._refused(err)

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
            self._feedback.answer_cancel(
                finding.cancel_id, done=True, text="nothing of this action is running"
            )
            self._book.close(finding.stop_id)

    def _take_offer(self, finding: Finding) -> None:
        offered, present = finding.offered, self._book.action
        if offered is None:
            if (
                present is not None
                and not finding.cancel_id
                and present.closing is None
                and not present.begun
            ):
                self._drop(present)
            return
        if offered.id in self._book.closed:
            return
        if present is None:
            self._begin(offered)
            if finding.refusal is not None:
                self._deployment.end_refused(offered, failure_report(*finding.refusal))
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
        self._feedback.begin()
        self._deployment.begin()
        logger.info(
            "update action begun id=%s release=%s confirming=%s",
            action.id,
            action.release_path,
            action.confirming,
        )

    def _let_go(self, present: Action) -> bool:
        """The server replaced the action: stop the old one if that is still possible."""
        if present.begun:
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

    def _refused(self, err: VarlinkError) -> float:
        action = self._book.action
        return IDLE_S if action is None else self._deployment.refused(action, err)
