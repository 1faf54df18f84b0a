"""The agent's entries in its audit chain: one method per thing that happens, so that kinds and fields stand in one place.

What must be recorded before it takes effect (consent) lets AuditUnavailableError pass; what only tells of the network or the
outbox is
logged instead, because polling and reporting never stop for the log (security-and-audit.md section 6).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from tidewaiter_core.audit import Actor, AuditLog, AuditUnavailableError, Outcome
from tidewaiter_core.clock import Clock

from tidewaiter_agent.consent_values import ConsentRecord
from tidewaiter_agent.errors import ConsentError

logger = logging.getLogger(__name__)

COMPONENT = Actor(kind="component", id="tidewaiter-agent")
SERVER = Actor(kind="server", id="server")
AUTH_GAP_S = 3600.0
REFUSED_LIMIT = 64
"""Relations remembered as refused: a server that invents ever new ones fills neither memory nor chain."""


@dataclass(slots=True)
class Trail:
    """Writes to the chain `agent`."""

    log: AuditLog
    clock: Clock
    _server_state: str = ""
    _refused: set[str] = field(default_factory=set)
    _auth_s: float | None = None

    def started(self, version: str) -> None:
        """The process runs."""
        self._soft("process.started", Outcome.OK, version=version)

    def stopped(self, version: str) -> None:
        """The process ends in order."""
        self._soft("process.stopped", Outcome.OK, version=version)

    def server_reached(self) -> None:
        """An authenticated exchange succeeded; recorded when that is news."""
        if self._server_state:
            self._soft("server.authenticated", Outcome.OK, actor=SERVER, result="ok")
        self._server_state = ""

    def server_failed(self, code: str, text: str) -> None:
        """Authentication failed in either direction; recorded once per cause, a refusal of us again every hour."""
        if not code.startswith(("auth.", "net.intercepted", "net.tls-verify", "net.clock-before-build")):
            return
        now_s = self.clock.boottime_s()
        again = self._auth_s is not None and now_s - self._auth_s >= AUTH_GAP_S
        if code != self._server_state or again:
            self._server_state, self._auth_s = code, now_s
            self._soft(
                "server.authenticated", Outcome.SERIOUS, actor=SERVER, result="failed", code=code, detail=text
            )

    def foreign_link(self, rel: str, code: str, text: str) -> None:
        """The server named a link that is not followed; told once per relation and start, not at every poll."""
        if rel not in self._refused and len(self._refused) < REFUSED_LIMIT:
            self._refused.add(rel)
            logger.warning("%s: %s", rel, text)
            self._soft("command.refused", Outcome.MINOR, actor=SERVER, action=rel, code=code, detail=text)

    def outbox(self, code: str, text: str) -> None:
        """An item was quarantined, buried or dropped."""
        self._soft("outbox.dropped", Outcome.MINOR, item=text.partition(":")[0], code=code, detail=text)

    def consent(self, record: ConsentRecord) -> None:
        """Consent was given, refused, revoked or ended.

        Raises:
            ConsentError: Giving cannot be recorded, so it is refused; everything that takes away goes on.
        """
        actor = (
            Actor(kind="local", id=record.who)
            if record.who.startswith("uid:")
            else Actor(kind="system", id=record.who)
        )
        outcome = Outcome.MINOR if record.kind == "consent.refused" else Outcome.OK
        fields = {"digest": record.digest, "scopes": ["install", "activate"]}
        key = "reason" if record.kind == "consent.refused" else "grant"
        try:
            self.log.append(record.kind, actor=actor, outcome=outcome, fields={**fields, key: record.detail})
        except AuditUnavailableError as err:
            if record.kind == "consent.given":
                raise ConsentError(
                    f"the audit log takes no record ({err}); no consent is given until it does",
                    code="audit.unavailable",
                    retryable=True,
                ) from err
            logger.warning("not in the audit log: %s %s", record.kind, err)

    def audit_read(self, who: str, component: str) -> None:
        """Somebody read a chain."""
        self._soft("audit.read", Outcome.OK, actor=Actor(kind="local", id=who), component=component)

    def _soft(self, kind: str, outcome: Outcome, *, actor: Actor = COMPONENT, **fields: object) -> None:
        try:
            self.log.append(kind, actor=actor, outcome=outcome, fields=fields)
        except AuditUnavailableError as err:
            logger.warning("not in the audit log: %s %s: %s", kind, fields, err)
