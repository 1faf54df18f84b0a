"""The DDI poll loop: asks the server when it is time, reads the links, and hands on what they mean.

The server may lengthen the interval; site and image bound it; jitter spreads a fleet. A link is followed only if it belongs to
the
configured origin and the tenant's path. Nothing here decides about software: the poller leaves a Finding, `updates` does the
rest.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tidewaiter_core import ddi
from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.heartbeat import Beat
from tidewaiter_core.settings import Poll
from tidewaiter_core.workers import Stop

from tidewaiter_agent import inventory
from tidewaiter_agent.action import Action
from tidewaiter_agent.courier import Courier
from tidewaiter_agent.exchange import StatusError, Transport, expect_json
from tidewaiter_agent.links import ArtifactTable, LinkRule
from tidewaiter_agent.origin import LinkTable, Origin
from tidewaiter_agent.patience import Patience
from tidewaiter_agent.trail import Trail
from tidewaiter_agent.updates import Finding, Updates

logger = logging.getLogger(__name__)

FIRST_WAIT_CAP_S = 60.0
JITTER_RATIO = 0.1
SERVER_SLEEP_MIN_S = 15
SERVER_SLEEP_MAX_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """How the relation to the server stands, for people."""

    last_success_utc: str = ""
    next_poll_boottime_s: float | None = None
    error_code: str = ""
    error_text: str = ""

    @property
    def online(self) -> bool:
        """The last exchange succeeded."""
        return bool(self.last_success_utc) and not self.error_code


@dataclass(slots=True, kw_only=True)
class Poller:
    """One thread runs it; `poll_now` may be called by others."""

    transport: Transport
    origin: Origin
    links: LinkTable
    link_rule: LinkRule
    artifacts: ArtifactTable
    ignored_rels: frozenset[str] = frozenset()
    """Links of features that the site has switched off: never followed."""
    updates: Updates | None
    courier: Courier
    trail: Trail
    clock: Clock
    poll: Poll
    config_data: Callable[[], Mapping[str, str]]
    on_success: Callable[[], None]
    identity_finding: Callable[[], str | None] = lambda: None
    rng: random.Random = field(default_factory=random.SystemRandom)
    contact: Contact = Contact()
    _wake: threading.Event = field(default_factory=threading.Event)
    _patience: Patience | None = None
    _sent_fingerprint: str = ""
    _told_all: bool = False
    _progress: Callable[[], None] = lambda: None

    def poll_now(self) -> None:
        """Somebody wants an answer now; the interval starts again afterwards."""
        self._wake.set()

    def run(self, stop: Stop, beat: Beat) -> None:
        """Poll until told to stop. After a boot a whole hospital switches on at once: the first poll is spread."""
        self._progress = beat.step
        wait_s = self.rng.uniform(0.0, min(FIRST_WAIT_CAP_S, float(self.poll.interval_min_s)))
        while not stop.is_set:
            self.contact = _scheduled(self.contact, self.clock.boottime_s() + wait_s)
            beat.wait(self._wake, wait_s)
            self._wake.clear()
            if not stop.is_set:
                wait_s = self.poll_once()

    def poll_once(self) -> float:
        """One poll; seconds until the next."""
        patience = self._patience = self._patience or Patience(self.clock, self.rng)
        try:
            asked_s = self._exchange()
        except TidewaiterError as err:
            self._failed(err)
            at_least_s = err.wait_s if isinstance(err, StatusError) else 0.0
            if err.code.startswith("auth."):
                # Nobody but a person changes that; asking every second would only fill two logs.
                at_least_s = max(at_least_s, float(self.poll.interval_min_s))
            return patience.next_s(at_least_s)
        patience.succeeded()
        self.contact = Contact(last_success_utc=format_utc(self.clock.now_utc()))
        self.trail.server_reached()
        self.courier.readmitted()
        self.on_success()
        return self.interval_s(asked_s)

    def interval_s(self, asked_s: float) -> float:
        """What the server asks for, clamped by image and site, with ten percent of jitter."""
        asked_s = min(
            max(asked_s, float(min(SERVER_SLEEP_MIN_S, self.poll.clamp_min_s))), float(SERVER_SLEEP_MAX_S)
        )
        bounded_s = min(max(asked_s, float(self.poll.interval_min_s)), float(self.poll.interval_max_s))
        return bounded_s * self.rng.uniform(1.0 - JITTER_RATIO, 1.0 + JITTER_RATIO)

    def _exchange(self) -> float:
        base = ddi.parse_base(self._get(self.origin.poll_path, "poll"))
        paths = self._follow(base.links)
        self.links.replace(paths)
        self._send_config_data(paths.get("configData"))
        if self.updates is not None:
            self.updates.found(self._finding(paths))
        return float(base.sleep_s)

    def _follow(self, links: Mapping[str, str]) -> dict[str, str]:
        """Origin-relative paths of the links that are ours; the others are recorded and ignored."""
        paths: dict[str, str] = {}
        for rel, href in links.items():
            if rel in self.ignored_rels:
                continue
            try:
                paths[rel] = self.link_rule(href)
            except ddi.ForeignLinkError as err:
                self.trail.foreign_link(rel, err.code, str(err))
        return paths

    def _finding(self, paths: Mapping[str, str]) -> Finding:
        """What the server wants of us; a cancel goes before everything else."""
        if "cancelAction" in paths:
            cancel = ddi.parse_cancel(self._get(paths["cancelAction"], "cancelAction"))
            return Finding(cancel_id=cancel.id, stop_id=cancel.stop_id)
        if "deploymentBase" in paths:
            return self._offered(self._get(paths["deploymentBase"], "deploymentBase"), confirming=False)
        if "confirmationBase" in paths:
            return self._question(paths["confirmationBase"])
        return Finding()

    def _question(self, path: str) -> Finding:
        body = self._get(path, "confirmationBase")
        if urlsplit(path).path.endswith("/confirmationBase"):
            # Some servers link the list, which links the one action that waits.
            found = self._follow({"confirmationBase": ddi.parse_confirmation_base(body) or ""})
            if "confirmationBase" not in found:
                return Finding()
            body = self._get(found["confirmationBase"], "confirmationBase")
        return self._offered(body, confirming=True)

    def _offered(self, body: bytes, *, confirming: bool) -> Finding:
        try:
            deployment = ddi.parse_deployment(body)
        except ddi.UnusableDeploymentError as err:
            unusable = Action(id=err.action_id, release_path="", name="", version="", confirming=confirming)
            return Finding(offered=unusable, refusal=(err.code, str(err)))
        for chunk in deployment.chunks:
            self.artifacts.replace(self._follow(chunk.artifacts))
        return Finding(
            offered=Action(
                id=deployment.id,
                release_path=deployment.release.path,
                name=deployment.release.name,
                version=deployment.release.version,
                confirming=confirming,
                download=deployment.download is not ddi.Handling.SKIP,
                update=deployment.update is not ddi.Handling.SKIP,
                forced=ddi.Handling.FORCED in (deployment.download, deployment.update),
                window_open=deployment.maintenance_window != "unavailable",
            )
        )

    def _send_config_data(self, path: str | None) -> None:
        """When the server asks, and unasked once per start, until no reading is missing any more.

        Not with every poll: asking the updater would start it again and again, and it ends itself when idle to save memory.
        """
        if path is None and self._told_all:
            return
        data = self.config_data()
        fingerprint = inventory.fingerprint(data)
        self._told_all = not any(value.startswith(inventory.MISSING) for value in data.values())
        if path is None and fingerprint == self._sent_fingerprint:
            return
        self._progress()
        target = path or f"{self.origin.poll_path}/configData"
        reply = self.transport.request("PUT", target, body=json.dumps(ddi.config_data(data)).encode())
        if reply.status in (401, 403):
            expect_json(reply, "configData", now_epoch_s=self.clock.now_utc().timestamp())
        if reply.ok:
            self._sent_fingerprint = fingerprint
        else:
            # The inventory is no reason to give up the poll; the next one sends it again.
            self._told_all = False
            logger.warning("configData: the server answered %d; sent again with the next poll", reply.status)

    def _get(self, path: str, what: str) -> bytes:
        self._progress()
        reply = self.transport.request("GET", path)
        return expect_json(reply, what, now_epoch_s=self.clock.now_utc().timestamp())

    def _failed(self, err: TidewaiterError) -> None:
        text = str(err)
        finding = self.identity_finding()
        if err.code.startswith("auth.") and finding:
            text = f"{text} ({finding})"
        if err.code != self.contact.error_code:
            logger.warning("poll failed code=%s: %s", err.code, text)
        self.contact = Contact(
            last_success_utc=self.contact.last_success_utc, error_code=err.code, error_text=text[:400]
        )
        self.trail.server_failed(err.code, text)


def _scheduled(contact: Contact, boottime_s: float) -> Contact:
    return Contact(
        last_success_utc=contact.last_success_utc,
        next_poll_boottime_s=boottime_s,
        error_code=contact.error_code,
        error_text=contact.error_text,
    )
