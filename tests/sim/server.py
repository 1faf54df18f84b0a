"""A world with a real TLS server in it: answers the DDI protocol, serves a repository, takes telemetry and
audit lines,
and misbehaves on demand. Nothing of the product's own server is used, so agent and server are tested apart.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.sim.certificates import Authority, Leaf

BLOCK_PAGE = (
    b"<!DOCTYPE html><html><head><title>Access denied by WebGate</title></head><body>blocked</body></html>"
)


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    connection: int
    """Number of the TCP connection it came over."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What the server says; `misbehave` replaces the body by something that writes to the socket itself."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/hal+json"
    misbehave: Callable[[_Request], None] | None = None


def html() -> Answer:
    """The block page of a proxy, with status 200 as portals like it."""
    return Answer(body=BLOCK_PAGE, content_type="text/html")


def status(code: int, *, retry_after: str | None = None, body: bytes = b"{}") -> Answer:
    return Answer(status=code, body=body, headers={"Retry-After": retry_after} if retry_after else {})


def redirect(target: str) -> Answer:
    return Answer(status=302, headers={"Location": target})


def truncated(body: bytes, cut: int) -> Answer:
    """Announces all of `body`, sends `cut` bytes and ends the connection."""

    def act(request: _Request) -> None:
        request.start(200, {"Content-Type": "application/hal+json", "Content-Length": str(len(body))})
        request.wfile.write(body[:cut])
        request.close_connection = True

    return Answer(misbehave=act)


def endless(*, chunk: bytes = b" " * 65536) -> Answer:
    """A body without a length that never ends by itself."""

    def act(request: _Request) -> None:
        request.start(200, {"Content-Type": "application/hal+json", "Connection": "close"})
        request.close_connection = True
        with contextlib.suppress(OSError):
            while not request.world.stopping.is_set():
                request.wfile.write(chunk)

    return Answer(misbehave=act)


def drip(body: bytes, *, interval_s: float, in_headers: bool = False) -> Answer:
    """One byte at a time, in the body or already in the headers."""

    def act(request: _Request) -> None:
        fields = f"Content-Type: application/hal+json\r\nContent-Length: {len(body)}\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\n" + fields.encode()
        request.close_connection = True
        with contextlib.suppress(OSError):
            if not in_headers:
                request.connection.sendall(head)
            for byte in (head + body) if in_headers else body:
                request.connection.sendall(bytes([byte]))
                if request.world.stopping.wait(interval_s):
                    return

    return Answer(misbehave=act)


def raw(data: bytes) -> Answer:
    """Exactly these bytes instead of an HTTP answer, then the end of the connection."""

    def act(request: _Request) -> None:
        request.close_connection = True
        with contextlib.suppress(OSError):
            request.connection.sendall(data)

    return Answer(misbehave=act)


class ServerWorld:
    """The server; a context manager. Faults are queued per path prefix and used up one by one."""

    def __init__(
        self,
        authority: Authority,
        *,
        devices: Authority | None = None,
        certificate: Leaf | None = None,
        plain: bool = False,
        tenant: str = "default",
    ) -> None:
        self.authority = authority
        self.tenant = tenant
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.seen: list[Seen] = []
        self.files: dict[str, bytes] = {}
        self.feedback: list[tuple[str, str, dict[str, Any]]] = []
        """(link, action id, body) of every accepted feedback, in order."""
        self.config_data: list[dict[str, Any]] = []
        self.telemetry: list[dict[str, Any]] = []
        self.audit: dict[str, list[bytes]] = {}
        self.links: dict[str, str] = {}
        """Extra or replaced `_links` of the base poll, by relation."""
        self.sleep = "00:05:00"
        self.want_config_data = False
        self._offers: dict[str, dict[str, Any]] = {}
        self._cancels: dict[str, str] = {}
        self._faults: list[tuple[str, Answer]] = []
        self._connections = 0
        self._plain = plain
        leaf = certificate or authority.server()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(leaf.certificate_file, leaf.key_file)
        if devices is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(devices.ca_file)
        self._server = _Server(("127.0.0.1", 0), self)
        self.port = int(self._server.server_address[1])
        self.url = f"https://127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="world"
        )

    def __enter__(self) -> ServerWorld:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.hang_up()
        self._thread.join()

    def fail(self, prefix: str, answer: Answer, *, times: int = 1) -> None:
        """The next `times` requests whose path starts with `prefix` get `answer`."""
        with self.lock:
            self._faults.extend([(prefix, answer)] * times)

    def clear_faults(self) -> None:
        with self.lock:
            self._faults.clear()

    def hang_up(self) -> None:
        """End every connection, as a restarted server does."""
        self._server.hang_up()

    def offer(
        self,
        action_id: str,
        release: str,
        *,
        confirm: bool = False,
        window: str | None = None,
        forced: bool = False,
    ) -> None:
        """Deploy `release` (repository path) to the device."""
        product, version = release.split("/")[1:3]
        deployment: dict[str, Any] = {
            "download": "forced" if forced else "attempt",
            "update": "forced" if forced else "attempt",
            "chunks": [
                {
                    "part": "os",
                    "name": product,
                    "version": version,
                    "artifacts": [],
                    "metadata": [{"key": "tidewaiter.release", "value": release}],
                }
            ],
        }
        if window is not None:
            deployment["maintenanceWindow"] = window
        with self.lock:
            self._offers[action_id] = {"deployment": deployment, "confirm": confirm}

    def set_window(self, action_id: str, window: str) -> None:
        with self.lock:
            self._offers[action_id]["deployment"]["maintenanceWindow"] = window

    def cancel(self, action_id: str, *, cancel_id: str = "900") -> None:
        with self.lock:
            self._cancels[cancel_id] = action_id

    def requests(self, method: str, pattern: str) -> list[Seen]:
        """All requests of `method` whose path matches `pattern`."""
        with self.lock:
            return [seen for seen in self.seen if seen.method == method and re.search(pattern, seen.path)]

    def feedback_of(self, action_id: str, link: str = "deploymentBase") -> list[dict[str, Any]]:
        with self.lock:
            return [body for where, action, body in self.feedback if (where, action) == (link, action_id)]

    def is_closed(self, action_id: str) -> bool:
        """The device has reported the end of the action."""
        return any(body["status"]["execution"] == "closed" for body in self.feedback_of(action_id))

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
        """Give the other processes time until `condition` holds; AssertionError otherwise."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, (
                f"not true within {timeout_s} s; requests: {[s.path for s in self.seen][-20:]}"
            )
            time.sleep(0.02)

    def wrap(self, connection: socket.socket) -> socket.socket:
        """The connection after its handshake; a refused client gets to read the alert that names the reason."""
        if self._plain:
            return connection
        wrapped = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        try:
            wrapped.do_handshake()
        except OSError:
            _let_the_alert_arrive(wrapped)
            raise
        return wrapped

    def next_connection(self) -> int:
        with self.lock:
            self._connections += 1
            return self._connections

    def answer(self, seen: Seen) -> Answer:
        with self.lock:
            self.seen.append(seen)
            for index, (prefix, answer) in enumerate(self._faults):
                if seen.path.startswith(prefix):
                    del self._faults[index]
                    return answer
            if seen.path.startswith("/tuf/"):
                return self._repository(seen)
            match = re.fullmatch(rf"/{self.tenant}/controller/v1/([^/?]+)(/.*)?", urlsplit(seen.path).path)
            if match is None:
                return status(404)
            return self._ddi(seen, match.group(1), match.group(2) or "")

    def _ddi(self, seen: Seen, device: str, rest: str) -> Answer:
        parts = rest.strip("/").split("/")
        if rest == "" and seen.method == "GET":
            return _json(self._base(device))
        if parts[0] == "configData" and seen.method == "PUT":
            self.config_data.append(seen.json)
            self.want_config_data = False
            return Answer()
        if parts[0] in ("deploymentBase", "confirmationBase") and len(parts) == 2:
            offer = self._offers.get(parts[1])
            if offer is None or offer["confirm"] != (parts[0] == "confirmationBase"):
                return status(404)
            key = "confirmation" if offer["confirm"] else "deployment"
            return _json({"id": parts[1], key: offer["deployment"]})
        if parts[0] == "cancelAction" and len(parts) == 2:
            stop = self._cancels.get(parts[1])
            return status(404) if stop is None else _json({"id": parts[1], "cancelAction": {"stopId": stop}})
        if len(parts) == 3 and parts[2] == "feedback" and seen.method == "POST":
            return self._take_feedback(parts[0], parts[1], seen.json)
        if parts[0] == "tw-telemetry" and seen.method == "POST":
            self.telemetry.extend(seen.json["snapshots"])
            return status(204, body=b"")
        if parts[0] == "tw-audit" and len(parts) == 2 and seen.method == "POST":
            return self._ingest(parts[1], seen)
        return status(404)

    def _base(self, device: str) -> dict[str, Any]:
        prefix = f"{self.url}/{self.tenant}/controller/v1/{device}"
        links = {"tw:telemetry": f"{prefix}/tw-telemetry", "tw:audit": f"{prefix}/tw-audit"}
        if self.want_config_data:
            links["configData"] = f"{prefix}/configData"
        cancels = list(self._cancels)
        if cancels:
            links["cancelAction"] = f"{prefix}/cancelAction/{cancels[0]}"
        elif self._offers:
            action, offer = next(iter(self._offers.items()))
            relation = "confirmationBase" if offer["confirm"] else "deploymentBase"
            links[relation] = f"{prefix}/{relation}/{action}?c={abs(hash(json.dumps(offer))) % 10**6}"
        links.update(self.links)
        return {
            "config": {"polling": {"sleep": self.sleep}},
            "_links": {relation: {"href": href} for relation, href in links.items() if href},
        }

    def _take_feedback(self, link: str, action: str, body: dict[str, Any]) -> Answer:
        if link == "cancelAction":
            if action not in self._cancels:
                return status(404)
            self.feedback.append((link, action, body))
            if body["status"]["execution"] in ("closed", "rejected"):
                stopped = self._cancels.pop(action)
                if body["status"]["execution"] == "closed":
                    self._offers.pop(stopped, None)
            return Answer()
        if action not in self._offers:
            return status(410)
        self.feedback.append((link, action, body))
        if link == "confirmationBase":
            if body["confirmation"] == "confirmed":
                self._offers[action]["confirm"] = False
        elif body["status"]["execution"] == "closed":
            del self._offers[action]
        return Answer()

    def _ingest(self, component: str, seen: Seen) -> Answer:
        stored = self.audit.setdefault(component, [])
        start = int(parse_qs(urlsplit(seen.path).query)["from"][0])
        if start > len(stored):
            return Answer(
                status=409, body=json.dumps({"code": "audit.gap", "next_seq": len(stored)}).encode()
            )
        for offset, line in enumerate(seen.body.splitlines()):
            if start + offset < len(stored):
                if stored[start + offset] != line:
                    return Answer(status=409, body=json.dumps({"code": "audit.fork"}).encode())
            else:
                stored.append(line)
        return _json({"next_seq": len(stored)})

    def _repository(self, seen: Seen) -> Answer:
        data = self.files.get(urlsplit(seen.path).path.removeprefix("/tuf/"))
        if data is None:
            return status(404)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers.get("Range", ""))
        if match is None:
            return Answer(body=data, content_type="application/octet-stream")
        first, last = int(match.group(1)), min(int(match.group(2)), len(data) - 1)
        if first >= len(data):
            return Answer(status=416, headers={"Content-Range": f"bytes */{len(data)}"})
        return Answer(
            status=206,
            body=data[first : last + 1],
            content_type="application/octet-stream",
            headers={"Content-Range": f"bytes {first}-{last}/{len(data)}"},
        )


def _json(value: object) -> Answer:
    return Answer(body=json.dumps(value).encode())


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], world: ServerWorld) -> None:
        self.world = world
        self._open: set[socket.socket] = set()
        super().__init__(address, _Request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        # The handshake belongs into the connection's own thread: a client that stalls must not stop the
        # accept loop.
        try:
            request.settimeout(10)
            wrapped = self.world.wrap(request)
        except OSError:
            request.close()
            return
        self._open.add(wrapped)
        try:
            self.finish_request(wrapped, client_address)
        except (OSError, ValueError):
            pass  # the client is gone; ValueError is what a closed file says
        finally:
            self._open.discard(wrapped)
            wrapped.close()

    def hang_up(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.world = self.server.world
        self.number = self.world.next_connection()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        seen = Seen(self.command, self.path, dict(self.headers.items()), body, self.number)
        answer = self.world.answer(seen)
        if answer.misbehave is not None:
            answer.misbehave(self)
            return
        headers = {
            "Content-Length": str(len(answer.body)),
            "Content-Type": answer.content_type,
            **answer.headers,
        }
        if answer.status == 204:
            headers = dict(answer.headers)
        self.start(answer.status, headers)
        self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = _serve

    def start(self, code: int, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet: failures show the requests themselves."""


def _let_the_alert_arrive(connection: ssl.SSLSocket) -> None:
    """Closing with unread bytes resets the connection, and the reset overtakes the TLS alert on its way to the client."""
    with socket.socket(fileno=os.dup(connection.fileno())) as raw, contextlib.suppress(OSError):
        raw.settimeout(1)
        raw.shutdown(socket.SHUT_WR)
        while raw.recv(4096):
            pass
    connection.close()
