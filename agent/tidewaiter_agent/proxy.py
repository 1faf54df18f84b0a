"""The only CONNECT implementation: opens a TCP connection to the server, directly or through the site's
proxy.

Rules of the reader (agent design section 10): status line and headers at most 8 KiB, read up to the blank
line exactly; a byte after
it is refused, because a TLS server never speaks first; 200 with a body or an HTML type is not a tunnel.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from tidewaiter_core.clock import Clock, Deadline

from tidewaiter_agent.errors import NetError, ProxyError

HEAD_LIMIT_BYTES = 8192
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: [^\r\n]*)?")


@dataclass(frozen=True, slots=True)
class Route:
    """One way out of the building."""

    kind: str
    """DIRECT or PROXY."""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return "DIRECT" if self.kind == "DIRECT" else f"PROXY {self.host}:{self.port}"


def parse_routes(entries: Sequence[str]) -> tuple[Route, ...]:
    """Read `network.proxy_route`; the first route that connects is used."""
    routes = tuple(_parse_route(entry) for entry in entries)
    if not routes:
        raise ProxyError(
            "network.proxy_route is empty; expected DIRECT or PROXY host:port; no server can be reached",
            code="proxy.scheme-unsupported",
            retryable=False,
        )
    return routes


def _parse_route(entry: str) -> Route:
    if entry == "DIRECT":
        return Route("DIRECT")
    kind, _, target = entry.partition(" ")
    host, _, port = target.rpartition(":")
    if (
        kind == "PROXY"
        and _HOST.fullmatch(host)
        and port.isascii()
        and port.isdigit()
        and 0 < int(port) < 65536
    ):
        return Route("PROXY", host.strip("[]"), int(port))
    raise ProxyError(
        f"network.proxy_route: {entry!r} is not usable; expected DIRECT or PROXY host:port; the agent does "
        "not start",
        code="proxy.scheme-unsupported",
        retryable=False,
    )


def dial(host: str, port: int, *, routes: Sequence[Route], clock: Clock, timeout_s: float) -> socket.socket:
    """A connected TCP socket to `host`:`port` over the first route that works; the error of the last one
    otherwise.
    """
    error: NetError | None = None
    for route in routes:
        try:
            return _dial_route(host, port, route, clock=clock, timeout_s=timeout_s)
        except NetError as err:
            error = err
    assert error is not None  # noqa: S101  # parse_routes refuses an empty list
    raise error


def _dial_route(host: str, port: int, route: Route, *, clock: Clock, timeout_s: float) -> socket.socket:
    deadline = Deadline(clock, timeout_s)
    if route.kind == "DIRECT":
        return _connect(host, port, timeout_s, f"server {host}:{port}")
    sock = _connect(route.host, route.port, timeout_s, f"proxy {route.host}:{route.port}")
    try:
        _tunnel(sock, host, port, route, deadline)
    except OSError as err:
        sock.close()
        raise ProxyError(
            f"{route}: the connection broke during CONNECT to {host}:{port} ({err}); asked again after a "
            "back-off",
            code="proxy.refused",
        ) from err
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(host: str, port: int, timeout_s: float, what: str) -> socket.socket:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as err:
        raise NetError(
            f"{what}: the name has no address ({err}); nothing was sent, asked again after a back-off",
            code="net.dns",
        ) from err
    error: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock
        except OSError as err:
            sock.close()
            error = err
    raise NetError(
        f"{what}: no TCP connection within {timeout_s:g} s ({error}); nothing was sent, asked again after a "
        "back-off",
        code="net.tcp",
    ) from error


def _tunnel(sock: socket.socket, host: str, port: int, route: Route, deadline: Deadline) -> None:
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    sock.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode("ascii"))
    head = read_head(sock, route, deadline)
    lines = head.split(b"\r\n")
    match = _STATUS.fullmatch(lines[0])
    if match is None:
        raise ProxyError(
            f"{route}: expected an HTTP status line after CONNECT, found {lines[0][:60]!r}; this port is no "
            "HTTP proxy",
            code="proxy.not-a-tunnel",
        )
    fields = {
        name.strip().lower(): value.strip()
        for name, colon, value in (line.partition(b":") for line in lines[1:])
        if colon
    }
    status = int(match.group(1))
    if status == 407:
        offered = fields.get(b"proxy-authenticate", b"").decode("latin-1")[:80] or "no scheme named"
        raise ProxyError(
            f"{route}: asks for a password (407, {offered}); this agent is set to none; no server can be "
            "reached",
            code="proxy.auth-required",
            retryable=False,
        )
    if status != 200:
        raise ProxyError(
            f"{route}: refused CONNECT to {authority} with status {status}; allow this name and port in the "
            "proxy",
            code="proxy.refused",
            retryable=status >= 500,
        )
    if b"html" in fields.get(b"content-type", b"").lower() or fields.get(b"content-length", b"0") != b"0":
        raise ProxyError(
            f"{route}: answered CONNECT with a page instead of a tunnel; a portal or block page stands in "
            "the way",
            code="proxy.not-a-tunnel",
        )
    with contextlib.suppress(BlockingIOError):
        sock.setblocking(False)
        if sock.recv(1, socket.MSG_PEEK):
            raise ProxyError(
                f"{route}: bytes arrived before our TLS hello; a TLS server speaks second; the connection "
                "is dropped",
                code="proxy.early-data",
            )
        raise ProxyError(f"{route}: closed the tunnel at once", code="proxy.refused")
    sock.setblocking(True)


def read_head(sock: socket.socket, route: Route, deadline: Deadline) -> bytes:
    """Bytes up to the blank line, one at a time after the first look, so that nothing behind it is consumed."""
    head = bytearray()
    while not head.endswith(b"\r\n\r\n"):
        if len(head) >= HEAD_LIMIT_BYTES:
            raise ProxyError(
                f"{route}: the answer to CONNECT is longer than {HEAD_LIMIT_BYTES} bytes; refused",
                code="proxy.not-a-tunnel",
            )
        remaining = deadline.remaining_s()
        if remaining <= 0:
            raise ProxyError(f"{route}: no complete answer to CONNECT in time; asked again after a back-off")
        sock.settimeout(remaining)
        piece = sock.recv(1)
        if not piece:
            raise ProxyError(
                f"{route}: closed the connection after {len(head)} bytes of its answer to CONNECT",
                code="proxy.refused",
            )
        head += piece
    return bytes(head[:-4])
