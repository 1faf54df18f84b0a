"""`io.tidewaiter.Agent` on the local socket: what the HMI and the command line may see and do.

Reading is free to whoever may open the socket (its mode says who). PollNow, Answer, Grant and Revoke need the operator group, by
the
kernel's word for the peer. Nothing here reaches the network or the injector.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.varlink import Call, Handler, Peer, VarlinkError

from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.consent_values import Grant, Prompt
from tidewaiter_agent.errors import ConsentError

logger = logging.getLogger(__name__)

INTERFACE = "io.tidewaiter.Agent"
OPERATOR_METHODS = frozenset(f"{INTERFACE}.{name}" for name in ("PollNow", "Answer", "Grant", "Revoke"))
ALIVE_S = 10.0
_ERRORS = {
    "consent.not-pending": "NotPending",
    "consent.no-such-grant": "NoSuchGrant",
}


def authorize_operator(group_id: int, group_name: str) -> Callable[[Peer, str], None]:
    """The second gate behind the socket's mode; root must be a member like anybody else."""

    def authorize(peer: Peer, method: str) -> None:
        if method in OPERATOR_METHODS and group_id not in peer.groups:
            raise VarlinkError(
                f"{INTERFACE}.NotAllowed", {"who": f"uid:{peer.uid}", "needs": f"group {group_name}"}
            )

    return authorize


@dataclass(slots=True)
class Bulletin:
    """Wakes subscribers: a counter and the latest event under one condition."""

    clock: Clock
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _number: int = 0
    _event: dict[str, Any] = field(default_factory=dict)

    def post(self, kind: str, detail: Mapping[str, str]) -> None:
        """Tell all subscribers."""
        with self._changed:
            self._number += 1
            self._event = {"kind": kind, "detail": dict(detail), "at_utc": format_utc(self.clock.now_utc())}
            self._changed.notify_all()

    @property
    def number(self) -> int:
        """How many events there were."""
        return self._number

    def wait(self, seen: int, timeout_s: float) -> tuple[int, dict[str, Any] | None]:
        """The newest event after `seen`, or None when there is none within the time."""
        with self._changed:
            self._changed.wait_for(lambda: self._number != seen, timeout_s)
            return self._number, None if self._number == seen else self._event


class LocalService:
    """The handlers."""

    def __init__(
        self,
        *,
        status: Callable[[], dict[str, Any]],
        consent: ConsentStore,
        poll_now: Callable[[], None],
        on_answer: Callable[[], None],
        bulletin: Bulletin,
    ) -> None:
        self._status = status
        self._consent = consent
        self._poll_now = poll_now
        self._on_answer = on_answer
        self._bulletin = bulletin

    def handlers(self) -> Mapping[str, Handler]:
        """Method table for the Varlink server."""
        return {
            "Status": lambda call: {"status": self._status()},
            "PollNow": self._poll,
            "ListPrompts": lambda call: {
                "prompts": [self._prompt(prompt) for prompt in self._consent.prompts()]
            },
            "Answer": self._answer,
            "Grant": self._grant,
            "ListGrants": lambda call: {"grants": [self._show(grant) for grant in self._consent.grants()]},
            "Revoke": self._revoke,
            "Subscribe": self._subscribe,
        }

    def _poll(self, call: Call) -> None:
        self._poll_now()

    def _answer(self, call: Call) -> dict[str, Any]:
        parameters = call.parameters
        with _translated(parameters["prompt_id"]):
            grant = self._consent.answer(
                parameters["prompt_id"],
                yes=parameters["yes"],
                who=_who(call),
                duration_s=parameters["duration_s"],
            )
        self._on_answer()
        return {"grant": None if grant is None else self._show(grant)}

    def _grant(self, call: Call) -> dict[str, Any]:
        digest = call.parameters["digest"]
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise VarlinkError("org.varlink.service.InvalidParameter", {"parameter": "digest"})
        with _translated(digest):
            grant = self._consent.grant(digest, who=_who(call), duration_s=call.parameters["duration_s"])
        self._on_answer()
        return {"grant": self._show(grant)}

    def _revoke(self, call: Call) -> None:
        with _translated(call.parameters["grant_id"]):
            self._consent.revoke(call.parameters["grant_id"], who=_who(call))
        self._on_answer()

    def _subscribe(self, call: Call) -> Iterator[dict[str, Any]]:
        seen = self._bulletin.number
        yield self._event({"kind": "subscribed", "detail": {}, "at_utc": ""})
        waited_s = 0.0
        while not call.closed():
            # Short waits, so that a subscriber who left and a stop of the service are noticed.
            seen, event = self._bulletin.wait(seen, 0.5)
            waited_s += 0.5
            if event is not None:
                yield self._event(event)
                waited_s = 0.0
            elif waited_s >= ALIVE_S:
                yield self._event({"kind": "alive", "detail": {}, "at_utc": ""})
                waited_s = 0.0

    def _event(self, event: Mapping[str, Any]) -> dict[str, Any]:
        return {"event": dict(event), "status": self._status()}

    def _prompt(self, prompt: Prompt) -> dict[str, Any]:
        subject = prompt.subject
        return {
            "id": prompt.id,
            "digest": subject.digest,
            "product": subject.product,
            "version": subject.version,
            "risk": subject.risk,
            "notes": dict(subject.notes or {}),
            "reason": prompt.reason,
            "needs_local": subject.needs_local,
            "asked_utc": prompt.asked.utc,
            "remaining_s": self._consent.remaining_s(prompt),
        }

    def _show(self, grant: Grant) -> dict[str, Any]:
        return {
            "id": grant.id,
            "digest": grant.digest,
            "scope": ["install", "activate"],
            "channel": grant.channel,
            "given_by": grant.given_by,
            "given_utc": grant.given.utc,
            "remaining_s": self._consent.remaining_s(grant),
        }


def _who(call: Call) -> str:
    return f"uid:{call.peer.uid}"


class _translated:
    """Turns a ConsentError into the error of the interface."""

    def __init__(self, subject: str) -> None:
        self._subject = subject

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, err: BaseException | None, trace: object) -> None:
        if isinstance(err, ConsentError):
            name = _ERRORS.get(err.code)
            if name is None:
                raise VarlinkError(f"{INTERFACE}.Busy", {"detail": str(err)}) from err
            field_name = "prompt_id" if name == "NotPending" else "grant_id"
            raise VarlinkError(f"{INTERFACE}.{name}", {field_name: self._subject[:64]}) from err
