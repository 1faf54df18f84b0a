"""The updater as the agent sees it: typed values over `io.tidewaiter.Updater`. Raw dictionaries end here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tidewaiter_core.varlink import Client

_PREFIX = "io.tidewaiter.Updater."
CHECK_TIMEOUT_S = 330.0
"""A trust session may take 300 s (update-engine.md section 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFacts:
    """What the signed release document says."""

    digest: str
    product: str
    version: str
    consent: str
    """none, site or local."""
    risk: str
    notes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """The updater's verdict on a release."""

    release: ReleaseFacts
    installable: bool
    code: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdaterStatus:
    """Where the updater stands; the part of its Status that the agent acts on."""

    phase: str
    paused: bool
    degraded: str
    digest: str
    target: str
    source: str
    """Where bytes come from: relay, or directory: and its place."""
    booted: str
    committed: str
    running_version: str
    running_digest: str
    total_bytes: int
    done_bytes: int
    fetched_bytes: int
    expected_fetch_bytes: int
    by_source: Mapping[str, int]
    """Bytes in place by where they came from: resume, copy, patch, pack, zero."""
    speed_bytes_per_s: int
    remaining_s: int | None
    waiting_for: tuple[str, ...]
    last_code: str
    last_text: str
    last_what_to_do: str
    last_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentClaim:
    """What the agent relays; the updater records it as the agent's claim."""

    digest: str
    who: str
    given_utc: str
    expires_utc: str


class Updater(Protocol):
    """What the agent may ask of the updater. VarlinkError for a refusal, NotReachable when nobody answers."""

    def check(self, release_path: str) -> Offer: ...
    def install(self, digest: str, claim: ConsentClaim | None) -> UpdaterStatus: ...
    def activate(self, digest: str, *, window_open: bool) -> UpdaterStatus: ...
    def cancel(self, digest: str) -> UpdaterStatus: ...
    def status(self) -> UpdaterStatus: ...


class VarlinkUpdater:
    """Implements Updater; a connection per call, because the updater ends itself when idle and is started by the next."""

    def __init__(self, socket_path: Path, *, timeout_s: float = 10.0) -> None:
        self._path = socket_path
        self._timeout_s = timeout_s

    def check(self, release_path: str) -> Offer:
        """Fetch and verify the release document; nothing is installed."""
        offer = self._call("Check", {"source": "relay", "release": release_path}, timeout_s=CHECK_TIMEOUT_S)[
            "offer"
        ]
        return Offer(
            release=_release(offer["release"]),
            installable=offer["installable"],
            code=offer["code"],
            detail=offer["detail"],
        )

    def install(self, digest: str, claim: ConsentClaim | None) -> UpdaterStatus:
        """Begin or go on; returns with the first status, the transfer goes on in the updater."""
        consent = None
        if claim is not None:
            consent = {
                "digest": claim.digest,
                "scope": ["install", "activate"],
                "channel": "site",
                "who": claim.who,
                "given_utc": claim.given_utc,
                "expires_utc": claim.expires_utc,
            }
        return self._status("Install", {"digest": digest, "consent": consent})

    def activate(self, digest: str, *, window_open: bool) -> UpdaterStatus:
        """Allow the reboot as far as the server's window is concerned."""
        return self._status("Activate", {"digest": digest, "window_open": window_open})

    def cancel(self, digest: str) -> UpdaterStatus:
        """End the transaction before its reboot."""
        return self._status("Cancel", {"digest": digest})

    def status(self) -> UpdaterStatus:
        """Where it stands now."""
        return self._status("GetStatus", {})

    def _status(self, method: str, parameters: Mapping[str, Any]) -> UpdaterStatus:
        return status_from(self._call(method, parameters, timeout_s=self._timeout_s)["status"])

    def _call(self, method: str, parameters: Mapping[str, Any], *, timeout_s: float) -> dict[str, Any]:
        client = Client(self._path, timeout_s=timeout_s)
        try:
            return client.call(_PREFIX + method, parameters)
        finally:
            client.close()


def status_from(status: Mapping[str, Any]) -> UpdaterStatus:
    """Reduce a `Status` of the interface file; the Varlink client has checked its shape."""
    last = status.get("last") or {}
    counts = status["bytes"]
    return UpdaterStatus(
        phase=status["phase"],
        paused=status["paused"],
        degraded=status.get("degraded") or "",
        digest=status.get("digest") or "",
        target=status.get("target") or "",
        source=status.get("source") or "",
        booted=status["booted"],
        committed=status["committed"],
        running_version=status["running"]["version"],
        running_digest=status["running"].get("digest") or "",
        total_bytes=counts["total"],
        done_bytes=counts["written"] + counts["skipped"],
        fetched_bytes=counts["fetched"],
        expected_fetch_bytes=counts["expected_fetch"],
        by_source=dict(status["by_source"]),
        speed_bytes_per_s=status["speed_bytes_per_s"],
        remaining_s=status.get("remaining_s"),
        waiting_for=tuple(status["waiting_for"]),
        last_code=last.get("code", ""),
        last_text=last.get("text", ""),
        last_what_to_do=last.get("what_to_do", ""),
        last_digest=last.get("digest", ""),
    )


def _release(release: Mapping[str, Any]) -> ReleaseFacts:
    return ReleaseFacts(
        digest=release["digest"],
        product=release["product"],
        version=release["version"],
        consent=release["consent"],
        risk=release["risk"],
        notes=dict(release["notes"]),
    )
