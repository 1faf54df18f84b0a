"""Our HTTP protocol class: shows the peer certificate to the application and limits what a slow or huge head can cost.

uvicorn 0.54 exposes no peer certificate and has no header time-out. This subclass is the one place that touches its
inside; an integration test on real TLS guards the seam.
"""

import asyncio
import contextlib
from collections.abc import MutableMapping
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from tidewaiter_server.devices import read_certificate

HEAD_LIMIT_BYTES: Final = 16_384
HEAD_TIMEOUT_S: Final = 10.0
PEER_CERTIFICATE: Final = "tw.peer_cert"
_TOO_LARGE: Final = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)


class Connections:
    """The device connections of this process, to end those of a revoked key at once."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Transport, bytes] = {}

    def add(self, transport: asyncio.Transport, certificate_der: bytes) -> None:
        self._open[transport] = certificate_der

    def remove(self, transport: asyncio.Transport) -> None:
        self._open.pop(transport, None)

    def abort(self, spki_sha256: frozenset[str]) -> int:
        """End every connection of these keys, whatever it is doing."""
        ended = 0
        for transport, certificate_der in list(self._open.items()):
            with contextlib.suppress(ValueError):
                if read_certificate(certificate_der).spki_sha256 in spki_sha256:
                    transport.abort()
                    ended += 1
        return ended


class BoundedProtocol(HttpToolsProtocol):
    """HTTP with a bounded head and, on the device listener, the peer certificate in the ASGI scope."""

    registry: Connections | None = None
    """Set by `device_protocol`; None on the console listener."""

    _head_timer: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_head()
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        if self.registry is not None and certificate is not None:
            self.registry.add(transport, certificate)
        application = self.app

        async def with_peer(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})[PEER_CERTIFICATE] = certificate
            await application(scope, receive, send)

        self.app = with_peer

    def connection_lost(self, exc: Exception | None) -> None:
        if self.registry is not None:
            self.registry.remove(self.transport)
        self._head_done()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_head and self._head_timer is None and self._between_requests():
            self._expect_head()
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_LIMIT_BYTES and not self.transport.is_closing():
            # Counted on raw bytes: the parser reports a header only when it is complete.
            self._head_done()
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        if not self._in_head:  # a pipelined request: its head began inside data that we have seen
            self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._head_done()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_LIMIT_BYTES:
            self.transport.write(_TOO_LARGE)
            self.transport.close()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def _between_requests(self) -> bool:
        return self.cycle is None or (self.cycle.response_complete and not self.cycle.more_body)

    def _expect_head(self) -> None:
        # From the first byte on: uvicorn cancels its keep-alive timer at the first trickled one.
        self._in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _head_done(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self.transport.abort()


def device_protocol(registry: Connections) -> type[BoundedProtocol]:
    """The protocol class of the device listener, bound to `registry`."""
    return type("DeviceProtocol", (BoundedProtocol,), {"registry": registry})
