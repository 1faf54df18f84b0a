"""What `Agent.Status` says: one document about this agent, put together from its parts. No I/O but a clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidewaiter_core.audit import AuditLog
from tidewaiter_core.clock import Clock

from tidewaiter_agent.action import Action
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.courier import Courier
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.poller import Poller
from tidewaiter_agent.shipping import Shipper


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusBoard:
    """Everything the document is made of."""

    device_id: str
    agent_version: str
    url: str
    clock: Clock
    clock_state: Callable[[], str]
    identity_finding: Callable[[], str | None]
    poller: Poller
    courier: Courier
    outbox: Outbox
    shipper: Shipper
    audit: AuditLog
    consent: ConsentStore
    action: Callable[[], Action | None]
    started_s: float

    def document(self) -> dict[str, Any]:
        """The status now, in the shape of the interface file."""
        action = self.action()
        return {
            "device_id": self.device_id,
            "agent_version": self.agent_version,
            "server": self._server(),
            "outbox": self._outbox(),
            "audit": self._audit(),
            "action": None if action is None else action_document(action),
            "prompts": len(self.consent.prompts()),
            "identity_finding": self.identity_finding() or "",
            "clock_state": self.clock_state(),
            "uptime_s": int(self.clock.boottime_s() - self.started_s),
        }

    def _server(self) -> dict[str, Any]:
        contact = self.poller.contact
        next_s = contact.next_poll_boottime_s
        return {
            "url": self.url,
            "online": contact.online,
            "last_success_utc": contact.last_success_utc,
            "next_poll_s": None if next_s is None else max(0, int(next_s - self.clock.boottime_s())),
            "error_code": contact.error_code,
            "error_text": contact.error_text,
        }

    def _outbox(self) -> dict[str, Any]:
        stopped = self.courier.stopped()
        return {
            "classes": [
                {
                    "name": kind.value,
                    "items": stats.items,
                    "bytes": stats.bytes,
                    "dropped": stats.dropped,
                    "stopped": stopped.get(kind, ""),
                }
                for kind, stats in self.outbox.stats().items()
            ],
            "dead_letters": self.outbox.kept("dead"),
            "quarantined": self.outbox.kept("quarantine"),
        }

    def _audit(self) -> list[dict[str, Any]]:
        chains: list[dict[str, Any]] = []
        for component, cursor in self.shipper.cursors().items():
            own = component == "agent"
            state = self.audit.unavailable_reason if own and self.audit.unavailable_reason else cursor.state
            chains.append(
                {
                    "component": component,
                    "next_seq": self.audit.next_seq if own else cursor.next_seq,
                    "shipped_seq": cursor.next_seq,
                    "state": state[:200],
                }
            )
        return chains


def action_document(action: Action) -> Mapping[str, Any]:
    """An action as the interface shows it."""
    return {
        "id": action.id,
        "release": f"{action.name} {action.version}".strip() or action.release_path,
        "digest": action.digest,
        "stage": "closed" if action.closing is not None else action.stage.value,
        "detail": action.detail,
        "forced": action.forced,
        "window_open": action.window_open,
    }
