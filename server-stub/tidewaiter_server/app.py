"""Composition: settings -> database -> two applications -> two listeners on one loop, until SIGTERM.

Two `uvicorn.Server`s share the loop; each would install its own signal handlers, so both are told not to and one handler
here stops both.
"""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from tidewaiter_core.clock import Clock, SystemClock
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_server import api, artifacts, audit, ddi, limits, tls
from tidewaiter_server.db import Database
from tidewaiter_server.ddi_context import Ddi
from tidewaiter_server.devices import Presence
from tidewaiter_server.errors import Refusal, ServerError
from tidewaiter_server.identity import Identities
from tidewaiter_server.protocol import BoundedProtocol, Connections, device_protocol
from tidewaiter_server.settings import Settings

logger = logging.getLogger(__name__)

_CONNECTIONS_LIMIT: Final = 12_000
_PRESENCE_S: Final = 2.0
_GRACE_S: Final = 1
Ready = Callable[[str, str], None]


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def run(settings: Settings, *, on_ready: Ready) -> None:
    """Serve until SIGTERM or SIGINT; `on_ready` gets the two origins once both listeners accept.

    Raises:
        TidewaiterError: Why it did not start: second instance, schema, certificate, address.
    """
    tls.bound_connections()
    clock = SystemClock()
    database = Database(settings.data_dir)
    try:
        database.read_now(lambda connection: audit.save_head(connection, settings.data_dir))
        asyncio.run(_serve(settings, database, clock, on_ready))
        database.read_now(lambda connection: audit.save_head(connection, settings.data_dir))
    finally:
        database.close()


async def _serve(settings: Settings, database: Database, clock: Clock, on_ready: Ready) -> None:
    contexts = (tls.device_context(settings), tls.console_context(settings))
    with (
        _bind(settings.device_listen, settings.device_address()) as device_socket,
        _bind(settings.console_listen, settings.console_address()) as console_socket,
    ):
        identities = Identities(
            database, clock, tenant=settings.tenant, recheck_s=settings.identity_recheck_s
        )
        connections, revoked, files, presence = Connections(), set[str](), artifacts.Files(), Presence()

        def end_connections(keys: frozenset[str]) -> None:
            revoked.update(keys)
            identities.forget(keys)
            logger.info("revoked keys=%d connections ended=%d", len(keys), connections.abort(keys))

        device_app = ddi.build(
            Ddi(
                settings=settings,
                database=database,
                clock=clock,
                identities=identities,
                presence=presence,
                files=files,
                buckets=limits.Buckets(clock, rate_per_s=10, burst=60),
                origin=_origin(settings, device_socket),
                revoked=revoked,
            )
        )
        console_app = api.build(
            api.Api(settings=settings, database=database, clock=clock, end_connections=end_connections)
        )
        servers = (
            _server(device_app, contexts[0], device_protocol(connections), {}),
            _server(console_app, contexts[1], BoundedProtocol, _CONSOLE_HEADERS),
        )
        _handle_signals(servers, contexts, settings)
        flusher = asyncio.create_task(_flush_presence(presence, database))
        listening = [
            asyncio.create_task(server.serve(sockets=[sock]))
            for server, sock in zip(servers, (device_socket, console_socket), strict=True)
        ]
        try:
            await _until_started(servers, listening)
            on_ready(_bound(device_socket), _bound(console_socket))
            await asyncio.gather(*listening)
        finally:
            flusher.cancel()
            with suppress(asyncio.CancelledError):
                await flusher
            with suppress(Refusal):
                await presence.flush(database)
            files.close()


_CONSOLE_HEADERS: Final = {
    "Strict-Transport-Security": "max-age=31536000",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
}


def _server(
    app: ASGIApp, context: ssl.SSLContext, protocol: type[BoundedProtocol], headers: dict[str, str]
) -> _Server:
    """Every uvicorn option that has a default we do not want is set here."""
    return _Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            headers=list(headers.items()),
            limit_concurrency=_CONNECTIONS_LIMIT,
            backlog=2048,
            timeout_keep_alive=330,
            timeout_graceful_shutdown=_GRACE_S,
            ssl_context_factory=lambda _config, _default: context,
        )
    )


def _handle_signals(
    servers: tuple[_Server, _Server], contexts: tuple[ssl.SSLContext, ssl.SSLContext], settings: Settings
) -> None:
    def stop() -> None:
        for server in servers:
            server.should_exit = True

    def reload() -> None:
        try:
            for context in contexts:
                tls.load_certificate(context, settings)
        except TidewaiterError as error:
            logger.error("certificate not reloaded, the old one stays: %s", error)  # noqa: TRY400

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGHUP, reload)


async def _until_started(servers: tuple[_Server, _Server], listening: list["asyncio.Task[None]"]) -> None:
    while not all(server.started for server in servers):
        for task in listening:
            if task.done():
                await task
                raise ServerError("a listener ended while it started; the server does not start")
        await asyncio.sleep(0.01)


async def _flush_presence(presence: Presence, database: Database) -> None:
    while True:
        await asyncio.sleep(_PRESENCE_S)
        try:
            await presence.flush(database)
        except Refusal as error:
            logger.warning("presence not written: %s", error)


def _bind(name: str, address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ServerError(
            f"{name}: cannot listen there ({error.strerror or error}); the server does not start"
        ) from error
    return sock


def _bound(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def _origin(settings: Settings, sock: socket.socket) -> str:
    """What links start with: configured, never from a Host header."""
    if not settings.device_url:
        return _bound(sock)
    return settings.device_url.replace("{port}", str(sock.getsockname()[1]))
