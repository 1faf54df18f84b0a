"""The one DDI action this device works on, durable, so that a restart continues it and never closes it twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from tidewaiter_core.durable import load_document, save_document
from tidewaiter_core.errors import StateError

SCHEMA = 1
CLOSED_LIMIT = 64


class Stage(StrEnum):
    """How far the agent is with the action; the updater's own phase says the rest."""

    WAITING = "waiting"
    """Known, the updater was not asked yet."""
    CHECKED = "checked"
    """The updater has verified the release; its digest is known."""
    INSTALLING = "installing"
    """Install was accepted."""
    ACTIVATING = "activating"
    """Activate was accepted."""
    ANSWERED = "answered"
    """A confirmation was answered; the server's next word is awaited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """A deployment, or the question whether to deploy (`confirming`)."""

    id: str
    release_path: str
    name: str
    version: str
    confirming: bool = False
    download: bool = True
    """False: the server says skip, so nothing is fetched yet."""
    update: bool = True
    forced: bool = False
    window_open: bool = True
    stage: Stage = Stage.WAITING
    digest: str = ""
    needs_local: bool = False
    consent_policy: str = "none"
    risk: str = ""
    notes: Mapping[str, str] | None = None
    reported_key: str = ""
    sent: int = 0
    """Feedback messages so far; part of their ids."""
    closing: Mapping[str, Any] | None = None
    """The final feedback, written down before it is queued: a restart in between queues it again under the same id."""
    cancel_id: str = ""
    """A cancel of the server that is not answered yet."""
    detail: str = ""

    @property
    def begun(self) -> bool:
        """The updater was told to install it."""
        return self.stage in (Stage.INSTALLING, Stage.ACTIVATING)


class ActionBook:
    """The stored action, and the ids of those that are over."""

    def __init__(self, state_file: Path) -> None:
        """StateError leaves an unreadable file alone: an action must not be guessed."""
        self._file = state_file
        document = load_document(state_file, schema=SCHEMA) or {}
        try:
            stored = document.get("action")
            self.action: Action | None = None if stored is None else _action(stored)
            self.closed: tuple[str, ...] = tuple(str(entry) for entry in document.get("closed", []))
            self.cancels: tuple[str, ...] = tuple(str(entry) for entry in document.get("cancels", []))
            """Cancels that were answered while the server still shows them."""
            self.cancel_count = int(document.get("cancel_count", 0))
        except (KeyError, TypeError, ValueError) as err:
            raise StateError(f"{state_file}: not an action ({err}); left as it is, updates wait") from err

    def save(self, action: Action | None) -> None:
        """Storage first, memory second."""
        self._write(action, self.closed, self.cancels, self.cancel_count)
        self.action = action

    def close(self, action_id: str) -> None:
        """This action is over; a poll that still shows it is ignored. Another one that is in hand stays in hand."""
        closed = (*(entry for entry in self.closed if entry != action_id), action_id)[-CLOSED_LIMIT:]
        left = self.action if self.action is not None and self.action.id != action_id else None
        self._write(left, closed, self.cancels, self.cancel_count)
        self.action, self.closed = left, closed

    def note_cancels(self, cancels: tuple[str, ...], *, count: int) -> None:
        """Remember which cancels were answered, and how many ever."""
        if (cancels, count) != (self.cancels, self.cancel_count):
            self._write(self.action, self.closed, cancels, count)
            self.cancels, self.cancel_count = cancels, count

    def change(self, **fields: Any) -> Action:
        """Replace fields of the present action, durably."""
        if self.action is None:
            raise RuntimeError("no action to change")
        action = replace(self.action, **fields)
        if action != self.action:
            self.save(action)
        return action

    def _write(
        self, action: Action | None, closed: tuple[str, ...], cancels: tuple[str, ...], count: int
    ) -> None:
        document = {
            "action": None if action is None else asdict(action),
            "closed": list(closed),
            "cancels": list(cancels),
            "cancel_count": count,
        }
        save_document(self._file, document, schema=SCHEMA)


def _action(stored: Mapping[str, Any]) -> Action:
    known = {name: stored[name] for name in Action.__dataclass_fields__ if name in stored}
    action = Action(**known)
    for name in ("id", "release_path", "digest", "cancel_id"):
        if not isinstance(getattr(action, name), str):
            raise TypeError(f"{name} is not text")
    return replace(action, stage=Stage(action.stage))
