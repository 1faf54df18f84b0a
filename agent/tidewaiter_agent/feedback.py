"""What the server is told about an action: queued under ids that make a repetition harmless, in the words of DDI.

Order that matters: a final message is written into the action first, queued under its fixed id second, and only then is the
action
forgotten. A cut anywhere in between repeats the second step, and the outbox knows the id.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from tidewaiter_core import ddi
from tidewaiter_core.clock import Clock
from tidewaiter_core.errors import StateWriteError

from tidewaiter_agent.action import Action, ActionBook, Stage
from tidewaiter_agent.errors import OutboxFullError
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.outbox_item import Item, ItemClass
from tidewaiter_agent.update_rules import Report, is_due

logger = logging.getLogger(__name__)


class Feedback:
    """Turns reports into outbox items."""

    def __init__(
        self,
        book: ActionBook,
        outbox: Outbox,
        *,
        clock: Clock,
        stamp: Callable[[], Mapping[str, Any]],
        on_change: Callable[[str, Mapping[str, str]], None],
    ) -> None:
        self._book = book
        self._outbox = outbox
        self._clock = clock
        self._stamp = stamp
        self._on_change = on_change
        self._reported_s: float | None = None

    def begin(self) -> None:
        """A new action: its first report is due at once."""
        self._reported_s = None

    def close(self, report: Report) -> None:
        """End the action with its final message."""
        action = self._book.change(closing=self._body(report))
        logger.info(
            "update action closed id=%s %s %s", action.id, report.standing.finished, report.details[:2]
        )
        self._on_change(
            "update.closed",
            {"action": action.id, "result": report.standing.finished, "text": report.details[0]},
        )
        self.finish_closing(action, action.closing or {})

    def finish_closing(self, action: Action, body: Mapping[str, Any]) -> None:
        """Queue the final feedback under its fixed id, then forget the action; safe to repeat."""
        self._put(f"{action.id}-closed", rel="deploymentBase", action_id=action.id, body=body, final=True)
        self._book.close(action.id)

    def report(self, report: Report) -> None:
        """Tell how it goes, if that is news; losing one of these is no harm."""
        action = self._book.action
        now_s = self._clock.boottime_s()
        if action is None or not is_due(
            report, last_key=action.reported_key, last_s=self._reported_s, now_s=now_s
        ):
            return
        self._reported_s = now_s
        self._book.change(
            reported_key=report.key, sent=action.sent + 1, detail="; ".join(report.details)[:200]
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
        return ddi.feedback(
            report.standing,
            details=report.details,
            progress=None if report.percent is None else (report.percent, 100),
            timestamp_ms=int(self._clock.now_utc().timestamp() * 1000),
        )

    def answer_confirmation(self, action: Action, *, confirmed: bool, details: tuple[str, ...]) -> None:
        """Answer the question of a confirmation; the action waits for the server's next word."""
        answer = "confirmed" if confirmed else "denied"
        self._put(
            f"{action.id}-{answer}-{action.sent}",
            rel="confirmationBase",
            action_id=action.id,
            body=ddi.confirmation(confirmed=confirmed, details=details),
            final=True,
        )
        self._book.change(stage=Stage.ANSWERED, detail=answer, sent=action.sent + 1)

    def answer_cancel(self, cancel_id: str, *, done: bool, text: str) -> None:
        """Acknowledge a cancel: closed/success when the action is stopped, rejected when it is too late."""
        report = Report(standing=ddi.CANCEL_DONE if done else ddi.CANCEL_TOO_LATE, details=(text,))
        # The count makes the id new when the server cancels the same action again after a rejection.
        self._put(
            f"cancel-{cancel_id}-{self._book.cancel_count}",
            rel="cancelAction",
            action_id=cancel_id,
            body=self._body(report),
            final=True,
        )
        self._book.note_cancels((*self._book.cancels, cancel_id), count=self._book.cancel_count + 1)
