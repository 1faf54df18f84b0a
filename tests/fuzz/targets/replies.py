"""Answers of processes that the updater does not believe: the agent's relay and the trust child."""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from tidewaiter_updater.errors import SourceError, SourceRefusedError
from tidewaiter_updater.sources import Patience, RelaySource
from tidewaiter_updater.trust_versions import RoleFloor
from tidewaiter_updater.trust_wire import Fault, Listed, Verified, decode_reply

from tests.fuzz.target import Target, require
from tests.sim.clock import FakeClock

_ASKED = 16


class _Liar:
    """A relay that answers every call with the bytes it was given, and hangs up."""

    def __init__(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="tw-fuzz-relay-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        self.path = folder / "relay.sock"
        self.answer = b""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                asked = b""
                while piece := connection.recv(65536):
                    asked += piece
                    if asked.endswith(b"\0"):
                        break
                connection.sendall(self.answer)


@cache
def _liar() -> _Liar:
    return _Liar()


def _relay(data: bytes) -> bool:
    liar = _liar()
    liar.answer = data
    source = RelaySource(liar.path, clock=FakeClock(), patience=Patience(idle_s=5, tries=1, distrust_tries=1))
    body = b"".join(source.span("a/b", 7, _ASKED))
    require(len(body) == _ASKED, "a span of another length was passed on")
    require(data.endswith(body), "a span that is not what was sent")
    return True


def _relay_seeds() -> Iterator[bytes]:
    for parameters in (
        {"status": "ok", "offset": 7, "total": 100, "length": _ASKED, "detail": ""},
        {"status": "ok", "offset": 0, "total": 100, "length": 100, "detail": ""},
        {"status": "not-found", "offset": 0, "total": -1, "length": 0, "detail": "404"},
    ):
        yield json.dumps({"parameters": parameters}).encode() + b"\0" + bytes(range(_ASKED))
    yield b'{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"x"}}\0'


def _child(data: bytes) -> bool:
    reply = decode_reply(data)
    if isinstance(reply, Verified):
        require(
            {"root", "timestamp", "snapshot", "targets"} <= reply.versions.keys(), "a role has no version"
        )
    else:
        require("." in reply.code, "a fault without a code")
    require(decode_reply(reply.encode()) == reply, "a reply that does not round-trip")
    return True


def _child_seeds() -> Iterator[bytes]:
    versions = {
        role: RoleFloor(version=3, keys="ab" * 32) for role in ("root", "timestamp", "snapshot", "targets")
    }
    proven = datetime(2026, 11, 1, tzinfo=UTC)
    yield Verified(document=b"{}", versions=versions, proven_utc=proven).encode()
    listed = Listed(path="releases/injector/1.0/release.json", sha256="cd" * 32)
    yield Verified(listing=(listed,), versions=versions).encode()
    yield Fault(code="trust.rollback", message="older", retryable=True).encode()


TARGETS = (
    Target(
        name="relay-reply",
        what="the relay's answer",
        run=_relay,
        refusals=(SourceError, SourceRefusedError),
        seeds=_relay_seeds,
        max_bytes=1024,
        modules=("tidewaiter_updater.sources", "tidewaiter_updater.relay_source", "tidewaiter_core.varlink"),
    ),
    Target(
        name="trust-reply",
        what="the trust child's answer",
        run=_child,
        refusals=(ValueError,),
        seeds=_child_seeds,
        max_bytes=2048,
        modules=(
            "tidewaiter_updater.trust_wire",
            "tidewaiter_updater.trust_versions",
            "tidewaiter_core.strictjson",
        ),
    ),
)
