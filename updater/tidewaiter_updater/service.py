"""io.tidewaiter.Updater: who may ask for what, and the engine's answers.

Invariants: the agent's socket carries nothing that only a person at the device may do, and what it says about consent is recorded
as a claim; Health and Commit are for the updater's own units; a refusal always carries a stable code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

from tidewaiter_core.audit import Actor
from tidewaiter_core.clock import format_utc, parse_utc
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import Sha256
from tidewaiter_core.varlink import Authorize, Call, Handler, Peer, VarlinkError

from tidewaiter_updater.consent import as_claimed_by_agent
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import EngineBusyError
from tidewaiter_updater.given_medium import INVALID, GivenMedia
from tidewaiter_updater.journal import parse_consent
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.model import RELAY, Channel, Consent, Scope
from tidewaiter_updater.phases import RESTING, Phase
from tidewaiter_updater.status import render_offer, render_status

INTERFACE = "io.tidewaiter.Updater"
LIST_LIMIT = 256
"""A reply has at most 64 KiB."""
FOR_AGENT = frozenset({"Check", "Install", "Pause", "Resume", "Cancel", "Activate", "GetStatus", "Watch"})
FOR_UNITS = frozenset({"Health", "Commit"})
INSTALL_ENDS = RESTING | {Phase.STAGED, Phase.WAIT_WINDOW, Phase.ARMED, Phase.TRIAL, Phase.HEALTH}
PACE_S = 0.5
QUIET_S = 10.0
CANCEL_WAIT_S = 5.0
CONSENT_LIMIT = timedelta(days=30)


def authorize_agent(agent_uid: int) -> Authorize:
    """updater.sock: the agent's user, and none of the methods of a person at the device."""

    def authorize(peer: Peer, method: str) -> None:
        name = _updater_method(method)
        if name is None:
            return
        if peer.uid != agent_uid:
            raise not_allowed(peer, "the agent's user")
        if name not in FOR_AGENT:
            raise not_allowed(peer, "the local socket")

    return authorize


def authorize_local(*, operator_gid: int, updater_uid: int) -> Authorize:
    """updater-local.sock: operators; Health and Commit only for the updater's own user."""

    def authorize(peer: Peer, method: str) -> None:
        name = _updater_method(method)
        if name is None:
            return
        if name in FOR_UNITS:
            if peer.uid != updater_uid:
                raise not_allowed(peer, "the updater's user")
        elif operator_gid not in peer.groups and peer.uid != updater_uid:
            raise not_allowed(peer, "the operator group")

    return authorize


def not_allowed(peer: Peer, needs: str) -> VarlinkError:
    """The refusal of a peer."""
    return VarlinkError(f"{INTERFACE}.NotAllowed", {"who": f"uid:{peer.uid}", "needs": needs})


def _updater_method(method: str) -> str | None:
    interface, _, name = method.rpartition(".")
    return name if interface == INTERFACE else None


class UpdaterService:
    """Handlers for one socket. `is_local`: the socket of operators and units."""

    def __init__(
        self,
        engine: Engine,
        *,
        is_local: bool,
        active: Callable[[], None] = lambda: None,
        bay: MediaBay | None = None,
    ) -> None:
        """
        Args:
            bay: For the media that operators bring; None takes none.
            active: Called at each command; postpones the idle exit.
        """
        self._engine = engine
        self._is_local = is_local
        self._active = active
        self._media = GivenMedia(engine, bay if is_local else None)

    def handlers(self) -> Mapping[str, Mapping[str, Handler]]:
        """All methods of the interface; who may call which is the socket's rule."""
        return {
            INTERFACE: {
                "List": self._answering(self.list_releases),
                "Check": self._answering(self.check),
                "Install": self._answering(self.install),
                "Activate": self._answering(self.activate),
                "Pause": self._answering(lambda call: self._set_paused(paused=True)),
                "Resume": self._answering(lambda call: self._set_paused(paused=False)),
                "Cancel": self._answering(self.cancel),
                "GetStatus": self._answering(lambda call: self._status()),
                "Watch": self._answering(self.watch),
                "Consent": self._answering(self.consent),
                "Reject": self._answering(self.reject),
                "ClearQuarantine": self._answering(self.clear_quarantine),
                "RepairEnv": self._answering(self.repair_env),
                "Health": self._answering(self.health),
                "Commit": self._answering(self.commit),
            }
        }

    def list_releases(self, call: Call) -> dict[str, Any]:
        with self._media.source(call) as source:
            found = self._engine.releases(source)
        return {"releases": [{"path": one.path, "digest": one.sha256} for one in found[:LIST_LIMIT]]}

    def check(self, call: Call) -> dict[str, Any]:
        with self._media.source(call) as source:
            offer = self._engine.check(
                source, str(call.parameters["release"]), actor=self._actor(call.peer), is_local=self._is_local
            )
        return {"offer": render_offer(offer)}

    def install(self, call: Call) -> dict[str, Any] | Iterator[dict[str, Any]]:
        digest = _digest(call)
        if call.parameters["source"] is None:
            # The agent knows a release from the relay, whoever else may have checked it since.
            self._install(call, digest, source=None if self._is_local else RELAY)
        else:
            with self._media.source(call, holding=digest) as source:
                self._install(call, digest, source=source)
        return (
            self._until(call, lambda: self._engine.transaction.phase in INSTALL_ENDS)
            if call.more
            else self._status()
        )

    def _install(self, call: Call, digest: Sha256, *, source: str | None) -> None:
        claimed = call.parameters.get("consent")
        self._engine.install(
            digest,
            source=source,
            consent=self._as_recorded(claimed, call.peer) if claimed else None,
            actor=self._actor(call.peer),
            is_local=self._is_local,
        )

    def activate(self, call: Call) -> dict[str, Any]:
        self._engine.activate(_digest(call), window_open=call.parameters["window_open"] is True)
        return self._status()

    def cancel(self, call: Call) -> dict[str, Any]:
        transaction = self._engine.transaction
        self._engine.cancel(_digest(call))
        with transaction.changed:
            transaction.changed.wait_for(lambda: not transaction.is_cancel_requested(), CANCEL_WAIT_S)
        return self._status()

    def consent(self, call: Call) -> dict[str, Any]:
        now = self._engine.transaction.ports.clock.now_utc()
        consent = Consent(
            digest=_digest(call),
            scope=_scopes(call.parameters["scope"]),
            channel=Channel.LOCAL,
            who=f"uid:{call.peer.uid}",
            given_utc=format_utc(now),
            expires_utc=_until_utc(str(call.parameters["until"]), now),
        )
        self._engine.consent(consent, actor=self._actor(call.peer))
        return self._status()

    def reject(self, call: Call) -> dict[str, Any]:
        self._engine.reject(_digest(call), str(call.parameters["reason"])[:200], actor=self._actor(call.peer))
        return self._status()

    def clear_quarantine(self, call: Call) -> dict[str, Any]:
        self._engine.clear_quarantine(_digest(call))
        return {}

    def repair_env(self, call: Call) -> dict[str, Any]:
        self._engine.repair_env()
        return self._status()

    def health(self, call: Call) -> dict[str, Any]:
        verdict = self._engine.health(given_up=call.closed)
        if verdict is None:
            return {"trial": False, "healthy": True, "checks": []}
        checks = [
            {"name": check.name, "result": check.result.value, "detail": check.detail}
            for check in verdict.checks
        ]
        return {"trial": True, "healthy": verdict.healthy, "checks": checks}

    def commit(self, call: Call) -> dict[str, Any]:
        committed = self._engine.commit()
        return {"committed": committed, **self._status()}

    def watch(self, call: Call) -> dict[str, Any] | Iterator[dict[str, Any]]:
        return self._until(call, lambda: False) if call.more else self._status()

    def _until(self, call: Call, is_over: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """A status at each change, at most two per second, at least every 10 s; the last one is current."""
        while not call.closed():
            over = is_over()
            seen = self._engine.transaction.revision
            yield self._status()
            if over or call.wait_closed(PACE_S):
                return
            self._wait_change(call, seen)

    def _wait_change(self, call: Call, seen: int) -> None:
        """Until something changed, the client hung up, or it is time for a sign of life."""
        transaction = self._engine.transaction
        with transaction.changed:
            # Short waits, because a client that hung up is noticed only between them.
            for _ in range(int(QUIET_S)):
                if transaction.changed.wait_for(lambda: transaction.revision != seen, 1.0) or call.closed():
                    return

    def _set_paused(self, *, paused: bool) -> dict[str, Any]:
        self._engine.set_paused(paused)
        return self._status()

    def _status(self) -> dict[str, Any]:
        return {"status": render_status(self._engine.transaction)}

    def _actor(self, peer: Peer) -> Actor:
        if self._is_local:
            return Actor(kind="local", id=f"uid:{peer.uid}")
        return Actor(kind="component", id="agent", via=f"uid:{peer.uid}")

    def _as_recorded(self, document: Mapping[str, Any], peer: Peer) -> Consent:
        try:
            consent = parse_consent(document)
            parse_utc(consent.expires_utc)
        except (KeyError, ValueError) as err:
            raise VarlinkError(INVALID, {"parameter": "consent"}) from err
        if not self._is_local:
            return as_claimed_by_agent(consent)
        now = self._engine.transaction.ports.clock.now_utc()
        return Consent(
            digest=consent.digest,
            scope=consent.scope,
            channel=Channel.LOCAL,
            who=f"uid:{peer.uid}",
            given_utc=format_utc(now),
            expires_utc=_until_utc(consent.expires_utc, now),
        )

    def _answering(self, handler: Callable[[Call], dict[str, Any] | Iterator[dict[str, Any]]]) -> Handler:
        """`handler` with our errors as the interface's errors."""

        def answer(call: Call) -> dict[str, Any] | Iterator[dict[str, Any]]:
            self._active()
            try:
                return handler(call)
            except VarlinkError:
                raise
            except EngineBusyError as err:
                raise VarlinkError(f"{INTERFACE}.Busy", {"phase": err.phase}) from err
            except TidewaiterError as err:
                fields = {"code": err.code, "detail": str(err)[:2000], "retryable": err.retryable}
                raise VarlinkError(f"{INTERFACE}.Refused", fields) from err

        return answer


def _digest(call: Call) -> Sha256:
    try:
        return Sha256.parse(str(call.parameters["digest"]))
    except ValueError as err:
        raise VarlinkError(INVALID, {"parameter": "digest"}) from err


def _scopes(names: list[str]) -> tuple[Scope, ...]:
    try:
        return tuple(Scope(name) for name in names)
    except ValueError as err:
        raise VarlinkError(INVALID, {"parameter": "scope"}) from err


def _until_utc(text: str, now: datetime) -> str:
    """A moment in the future, at most 30 days away: a forgotten consent must not outlive its reason."""
    try:
        until = parse_utc(text)
    except ValueError as err:
        raise VarlinkError(INVALID, {"parameter": "until"}) from err
    if not now < until <= now + CONSENT_LIMIT:
        raise VarlinkError(INVALID, {"parameter": "until"})
    return format_utc(until)
