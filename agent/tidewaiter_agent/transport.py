"""HTTPS to the one configured origin: mutual TLS, pinned CA, bounded in bytes and time. The only user of
`requests`.

What the library does by itself and what is done about it (agent design section 4):
- A `Session` reads proxies, .netrc and CA bundles from the environment, keeps cookies, and reads the body of
a redirect without any
  bound even with allow_redirects=False. So there is no Session: prepared requests go straight to an
  HTTPAdapter.
- `verify=True` would load the public CA bundle into our context; the pinned file is passed with every
  request.
- `timeout=` bounds gaps. Headers are bounded by MeteredSocket, bodies by Deadline, RateFloor and a byte
  limit, read by `read1`.
- The tunnel code of urllib3 loses the proxy's answer; connections are opened by `proxy.dial`.
"""

from __future__ import annotations

import http.client
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast
from urllib.parse import urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from tidewaiter_core.clock import Clock, Deadline
from urllib3.connection import HTTPSConnection
from urllib3.connectionpool import HTTPSConnectionPool
from urllib3.exceptions import SystemTimeWarning
from urllib3.response import HTTPResponse

from tidewaiter_agent.body import Body
from tidewaiter_agent.causes import cause, innermost_text
from tidewaiter_agent.errors import NetError
from tidewaiter_agent.exchange import JSON_LIMIT_BYTES, Reply, Stream
from tidewaiter_agent.identity import Identity
from tidewaiter_agent.limits import TokenBucket
from tidewaiter_agent.proxy import Route, dial
from tidewaiter_agent.tls import (
    HEADER_ALLOWANCE_BYTES,
    HeaderLimitError,
    MeteredSocket,
    explain_tls_failure,
    make_context,
    seen_issuer,
)

logger = logging.getLogger(__name__)

CONNECTION_AGE_LIMIT_S = 3600.0
CONNECTION_IDLE_LIMIT_S = 240.0
"""Below the keep-alive time of the servers we know (330 s), so that a request never meets a connection the
server just closed.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Time-outs and caps of one transport."""

    connect_timeout_s: float
    request_timeout_s: float
    up: TokenBucket
    down: TokenBucket


@dataclass(frozen=True, slots=True)
class _Dialer:
    """How a connection of the pool comes to be; name and proxy settings are looked up anew for each."""

    clock: Clock
    routes: Callable[[], Sequence[Route]]
    limits: Limits

    def dial(self, host: str, port: int) -> socket.socket:
        timeout_s = self.limits.connect_timeout_s
        sock = dial(host, port, routes=self.routes(), clock=self.clock, timeout_s=timeout_s)
        sock.settimeout(timeout_s)
        return sock


class _Connection(HTTPSConnection):
    dialer: ClassVar[_Dialer]
    opened_s = 0.0
    used_s = 0.0

    def _new_conn(self) -> socket.socket:
        self.opened_s = self.used_s = self.dialer.clock.boottime_s()
        return self.dialer.dial(self.host, self.port or 443)

    def getresponse(self) -> Any:
        sock = self.sock
        if not isinstance(sock, MeteredSocket):
            return super().getresponse()
        sock.deadline = Deadline(self.dialer.clock, self.dialer.limits.request_timeout_s)
        sock.allowance_bytes = HEADER_ALLOWANCE_BYTES
        try:
            return super().getresponse()
        finally:
            sock.deadline = None
            sock.allowance_bytes = None
            self.used_s = self.dialer.clock.boottime_s()


class _Pool(HTTPSConnectionPool):
    clock: ClassVar[Clock]

    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)
        if isinstance(connection, _Connection) and connection.sock is not None:
            now_s = self.clock.boottime_s()
            old = now_s - connection.opened_s > CONNECTION_AGE_LIMIT_S
            if old or now_s - connection.used_s > CONNECTION_IDLE_LIMIT_S:
                # Closed here, opened again by urllib3: server and device prove themselves to each other
                # again.
                connection.close()
        return connection


class _Adapter(HTTPAdapter):
    def __init__(self, context: ssl.SSLContext, dialer: _Dialer, pool_size: int) -> None:
        self._context = context
        super().__init__(pool_connections=1, pool_maxsize=pool_size)
        connection = type("Connection", (_Connection,), {"dialer": dialer})
        pool = type("Pool", (_Pool,), {"ConnectionCls": connection, "clock": dialer.clock})
        # No entry for "http": a plaintext request has no pool to run in.
        self.poolmanager.pool_classes_by_scheme = {"https": pool}

    def init_poolmanager(
        self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any
    ) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **pool_kwargs)


class HttpsTransport:
    """Implements `exchange.Transport`. One per worker thread; the buckets are shared."""

    def __init__(
        self,
        *,
        url: str,
        ca_file: Path,
        identity: Identity,
        routes: Callable[[], Sequence[Route]],
        clock: Clock,
        limits: Limits,
        clock_unset: Callable[[], bool],
        user_agent: str,
        pool_size: int = 1,
    ) -> None:
        parts = urlsplit(url)
        self._origin = f"https://{parts.netloc}"
        self._host, self._port = parts.hostname or "", parts.port or 443
        self._ca_file = ca_file
        self._identity = identity
        self._clock = clock
        self._limits = limits
        self._clock_unset = clock_unset
        self._user_agent = user_agent
        self._dialer = _Dialer(clock, routes, limits)
        self.context = make_context(ca_file, identity)
        self._adapter = _Adapter(self.context, self._dialer, pool_size)
        # It would be printed once per connection; `net.clock-before-build` says it better.
        urllib3.disable_warnings(SystemTimeWarning)

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/hal+json, application/json",
        headers: Mapping[str, str] | None = None,
        limit_bytes: int = JSON_LIMIT_BYTES,
    ) -> Reply:
        """One exchange, the whole body in memory; NetError for everything that is not an answer of the right
        size in time.
        """
        deadline = Deadline(self._clock, self._limits.request_timeout_s)
        sent = {"Accept": accept, **(headers or {})}
        if body is not None:
            sent["Content-Type"] = content_type
            self._limits.up.take(len(body))
        what = f"{method} {self._origin}{path.partition('?')[0]}"
        with self._exchange(method, path, body, sent, what) as stream:
            data = b"".join(
                stream.chunks(limit_bytes=limit_bytes, deadline_s=max(deadline.remaining_s(), 0.0))
            )
            return Reply(status=stream.status, headers=stream.headers, body=data)

    @contextmanager
    def open(self, path: str, *, headers: Mapping[str, str]) -> Iterator[Stream]:
        """A GET whose body the caller takes piece by piece; leaving early closes the connection."""
        with self._exchange("GET", path, None, headers, f"GET {self._origin}{path}") as stream:
            yield stream

    @contextmanager
    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], what: str
    ) -> Iterator[Body]:
        if not path.startswith("/") or path.startswith("//"):
            raise ValueError(f"{path!r} is not an origin-relative path")
        full = {"User-Agent": self._user_agent, "Accept-Encoding": "identity", **headers}
        prepared = requests.Request(method, self._origin + path, headers=full, data=body).prepare()
        timeout = (self._limits.connect_timeout_s, self._limits.request_timeout_s)
        try:
            response = self._adapter.send(
                prepared, stream=True, timeout=timeout, verify=str(self._ca_file), proxies={}
            )
        except (
            requests.RequestException,
            urllib3.exceptions.HTTPError,
            OSError,
            http.client.HTTPException,
        ) as err:
            raise self._explain(err, what) from err
        raw = cast(HTTPResponse, response.raw)
        stream = Body(raw, what=what, clock=self._clock, bucket=self._limits.down, explain=self._explain)
        try:
            stream.check()
            yield stream
        finally:
            if stream.complete:
                raw.release_conn()
            else:
                raw.close()

    def _explain(self, err: BaseException, what: str) -> NetError:
        tls = cause(err, ssl.SSLError)
        # urllib3 also reports an abrupt end as SSLEOFError: that is a broken connection, not a wrong
        # certificate.
        if tls is not None and not isinstance(tls, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return explain_tls_failure(
                tls,
                f"{self._host}:{self._port}",
                clock_unset=self._clock_unset(),
                identity=self._identity,
                probe_issuer=lambda: seen_issuer(
                    lambda: self._dialer.dial(self._host, self._port),
                    self._host,
                    self._limits.connect_timeout_s,
                ),
            )
        if cause(err, HeaderLimitError, http.client.LineTooLong) is not None or "headers" in str(err):
            return NetError(
                f"{what}: expected at most 16 KiB of headers, found more; dropped", code="net.too-large"
            )
        if cause(err, TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError) is not None:
            return NetError(
                f"{what}: no answer within {self._limits.request_timeout_s:g} s; asked again after a "
                "back-off",
                code="net.slow",
            )
        return NetError(
            f"{what}: the connection broke ({innermost_text(err)}); asked again after a back-off",
            code="net.tcp",
        )

    def close(self) -> None:
        """Drop all connections."""
        self._adapter.close()
