"""The updater as its neighbors see it: the real interface on a real socket, with phases that a test sets. No product logic."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tidewaiter_core import activation
from tidewaiter_core.varlink import Call, Handler, Server, VarlinkError
from tidewaiter_core.workers import Stop

NAME = "io.tidewaiter.Updater"
DIGEST = "d" * 64
RELEASE = "releases/contrast-injector/2.1.0/release.json"


def refused(code: str, detail: str = "because", *, retryable: bool = False) -> VarlinkError:
    return VarlinkError(f"{NAME}.Refused", {"code": code, "detail": detail, "retryable": retryable})


def busy(phase: str) -> VarlinkError:
    return VarlinkError(f"{NAME}.Busy", {"phase": phase})


@dataclass
class Offered:
    """A release in the repository."""

    digest: str = DIGEST
    version: str = "2.1.0"
    consent: str = "none"
    reversible: bool = True
    code: str = ""
    """Not empty: not installable, for this reason."""
    sequence: int = 2


@dataclass
class UpdaterWorld:
    """Set attributes to change what it says; `calls` is what it was asked."""

    path: Path
    releases: dict[str, Offered] = field(default_factory=lambda: {RELEASE: Offered()})
    phase: str = "IDLE"
    digest: str = ""
    waiting_for: list[str] = field(default_factory=list)
    running: tuple[str, str] = ("2.0.0", "0" * 64)
    """Version and digest."""
    last: tuple[str, str, str] | None = None
    """Code, text, digest."""
    done_bytes: int = 0
    total_bytes: int = 64 * 1024 * 1024
    raises: dict[str, VarlinkError] = field(default_factory=dict)
    """Errors by method name, until removed."""
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    media: list[str] = field(default_factory=list)
    """Where the descriptors led that came with calls."""
    source: str = "relay"
    paused: bool = False
    consent_given: bool = False

    def __enter__(self) -> UpdaterWorld:
        self._stop = Stop()
        self._server = Server(
            activation.listener("updater", self.path, mode=0o600, inherited={}),
            {NAME: self._handlers()},
            authorize=lambda peer, method: None,
            name="updater-world",
            on_bug=lambda err: None,
            max_descriptors=1,
        )
        self._thread = threading.Thread(target=self._server.run, args=(self._stop,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def called(self, method: str) -> list[dict[str, Any]]:
        return [parameters for name, parameters in self.calls if name == method]

    def commit(self) -> None:
        """The release in hand booted and was committed."""
        self.running, self.phase, self.waiting_for = ("2.1.0", self.digest), "COMMITTED", []

    def end(self, phase: str, code: str, text: str = "it broke") -> None:
        """The transaction ended badly."""
        self.phase, self.last, self.waiting_for = phase, (code, text, self.digest), []

    def forget(self) -> None:
        """What a restart shows after an ending: IDLE with the last outcome."""
        self.phase, self.digest = "IDLE", ""

    def _handlers(self) -> dict[str, Handler]:
        table: dict[str, Handler] = {
            "List": self._list,
            "Check": self._check,
            "Install": self._install,
            "Activate": self._activate,
            "Cancel": self._cancel,
            "GetStatus": lambda call: {"status": self.status()},
            "Watch": self._watch,
            "Consent": self._consent,
            "Resume": self._resume,
        }
        return {name: self._noted(name, handler) for name, handler in table.items()}

    def _noted(self, name: str, handler: Handler) -> Handler:
        def handle(call: Call) -> Any:
            self.calls.append((name, call.parameters))
            self.media += [os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in call.descriptors]
            if name in self.raises:
                raise self.raises[name]
            return handler(call)

        return handle

    def _list(self, call: Call) -> dict[str, Any]:
        return {
            "releases": [{"path": path, "digest": offered.digest} for path, offered in self.releases.items()]
        }

    def _check(self, call: Call) -> dict[str, Any]:
        offered = self.releases.get(call.parameters["release"])
        if offered is None:
            raise refused("trust.repository", "no such target", retryable=True)
        return {
            "offer": {
                "release": self._release(offered),
                "installable": not offered.code,
                "code": offered.code,
                "detail": "not for this device" if offered.code else "",
                "target": "B",
                "expected_fetch": 1000,
            }
        }

    def _install(self, call: Call) -> dict[str, Any]:
        digest = call.parameters["digest"]
        if self.phase in ("IDLE", "COMMITTED", "ROLLED_BACK", "FAILED"):
            self.digest, self.last, self.phase, self.consent_given = digest, None, "WAIT_CONSENT", False
        elif self.digest != digest:
            raise busy(self.phase)
        self.source = call.parameters["source"] or "relay"
        offered = next(o for o in self.releases.values() if o.digest == digest)
        self.consent_given |= call.parameters["consent"] is not None
        if self.phase == "WAIT_CONSENT":
            needs = offered.consent == "local" or (offered.consent == "site" and not self.consent_given)
            self.phase, self.waiting_for = ("WAIT_CONSENT", ["update.consent"]) if needs else ("TRANSFER", [])
        return {"status": self.status()}

    def _activate(self, call: Call) -> dict[str, Any]:
        if call.parameters["digest"] != self.digest:
            raise refused("release.unknown")
        self.phase = "WAIT_WINDOW"
        self.waiting_for = [] if call.parameters["window_open"] else ["update.window"]
        return {"status": self.status()}

    def _cancel(self, call: Call) -> dict[str, Any]:
        if call.parameters["digest"] != self.digest or self.phase in ("IDLE", "COMMITTED"):
            raise refused("release.unknown")
        if self.phase in ("TRIAL", "HEALTH", "ARMED"):
            raise busy(self.phase)
        self.last = ("update.canceled", "canceled", self.digest)
        self.phase, self.digest, self.waiting_for = "IDLE", "", []
        return {"status": self.status()}

    def _consent(self, call: Call) -> dict[str, Any]:
        if self.phase == "WAIT_CONSENT":
            self.phase, self.waiting_for = "TRANSFER", []
        return {"status": self.status()}

    def _resume(self, call: Call) -> dict[str, Any]:
        self.paused = False
        return {"status": self.status()}

    def _watch(self, call: Call) -> Iterator[dict[str, Any]]:
        while True:
            yield {"status": self.status()}
            if call.wait_closed(0.1):
                return

    def _release(self, offered: Offered) -> dict[str, Any]:
        return {
            "digest": offered.digest,
            "product": "contrast-injector",
            "version": offered.version,
            "sequence": offered.sequence,
            "security_epoch": 1,
            "consent": offered.consent,
            "risk": "minor",
            "activation": "any",
            "reversible": offered.reversible,
            "notes": {"en": "fixes"},
        }

    def status(self) -> dict[str, Any]:
        in_hand = next((o for o in self.releases.values() if o.digest == self.digest), None)
        last = None
        if self.last is not None:
            code, text, digest = self.last
            last = {
                "code": code,
                "text": text,
                "what_to_do": "call",
                "step": "",
                "at_utc": "",
                "digest": digest,
            }
        return {
            "phase": self.phase,
            "paused": self.paused,
            "degraded": None,
            "release": self._release(in_hand) if in_hand else None,
            "digest": self.digest or None,
            "target": "B" if self.digest else None,
            "source": self.source if self.digest else None,
            "booted": "A",
            "committed": "A",
            "running": {"version": self.running[0], "sequence": 1, "digest": self.running[1]},
            "bytes": {
                "total": self.total_bytes,
                "written": self.done_bytes,
                "skipped": 0,
                "fetched": self.done_bytes // 2,
                "expected_fetch": self.total_bytes // 2,
            },
            "by_source": {"resume": 0, "copy": 0, "patch": 0, "pack": self.done_bytes, "zero": 0},
            "speed_bytes_per_s": 5 * 1024 * 1024,
            "remaining_s": 10,
            "waiting_for": list(self.waiting_for),
            "tries_left": 3,
            "floors": {"sequence": 1, "security_epoch": 1, "time_utc": "2026-11-01T00:00:00.000Z"},
            "last": last,
            "since_utc": "2026-11-24T12:00:00.000Z",
        }
