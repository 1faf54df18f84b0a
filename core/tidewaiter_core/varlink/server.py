"""A Varlink service on a socket that already listens: this module neither binds nor listens (see
`activation`).
"""

from __future__ import annotations

import errno
import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from tidewaiter_core.varlink.call import Handler
from tidewaiter_core.varlink.connection import Connection, Limits
from tidewaiter_core.varlink.dispatch import Dispatcher
from tidewaiter_core.varlink.peer import Authorize, peer_of

logger = logging.getLogger(__name__)

_ACCEPT_WAIT_S = 0.2
_END_POLITE_S = 0.2
_END_HARD_S = 0.2


class StopRequest(Protocol):
    """What the accept loop needs from workers.Stop."""

    @property
    def event(self) -> threading.Event: ...


class Server:
    """Accepts connections and serves each in a named thread."""

    def __init__(
        self,
        listener: socket.socket,
        interfaces: Mapping[str, Mapping[str, Handler]],
        *,
        authorize: Authorize,
        name: str,
        max_connections: int = 8,
        call_timeout_s: float = 5.0,
        idle_timeout_s: float = 60.0,
        stream_timeout_s: float = 60.0,
        max_descriptors: int = 0,
        on_bug: Callable[[BaseException], None] | None = None,
        beat: Callable[[], None] | None = None,
    ) -> None:
        """Build the service; ValueError or BadInterfaceError if handlers and interface files disagree.

        Args:
            listener: A listening AF_UNIX stream socket; `run` closes it.
            interfaces: Handlers by interface and method name; methods without one answer
                MethodNotImplemented.
            max_descriptors: Open files that one call may bring; none unless the service has a use for them.
            authorize: Second gate behind the socket's mode; raises VarlinkError to refuse.
            on_bug: Told of an exception that no handler may raise; the default ends `run` with it.
            beat: Called in every turn of the accept loop.
        """
        self._listener = listener
        self._dispatcher = Dispatcher(interfaces, authorize=authorize, product=name)
        self._name = name
        self._max_connections = max_connections
        self._limits = Limits(
            call_timeout_s=call_timeout_s,
            idle_timeout_s=idle_timeout_s,
            stream_timeout_s=stream_timeout_s,
            max_descriptors=max_descriptors,
        )
        self._on_bug = on_bug or self._keep_bug
        self._beat = beat
        self._bug: BaseException | None = None
        self._open: dict[Connection, threading.Thread] = {}
        self._lock = threading.Lock()
        self._accepted = 0
        self._full_reported = False

    def run(self, stop: StopRequest) -> None:
        """Serve until `stop`; returns within a second, also when handlers hang. Re-raises a bug of a
        handler.
        """
        self._listener.setblocking(False)
        poller = select.poll()
        poller.register(self._listener, select.POLLIN)
        try:
            while not stop.event.is_set() and self._bug is None:
                if self._beat is not None:
                    self._beat()
                if poller.poll(_ACCEPT_WAIT_S * 1000):
                    self._accept(stop)
        finally:
            self._listener.close()
            self._end_all()
        if self._bug is not None:
            raise self._bug

    @property
    def connections(self) -> int:
        """Connections open now."""
        with self._lock:
            return len(self._open)

    def _accept(self, stop: StopRequest) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError as err:
            if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                logger.warning("varlink %s: cannot accept a connection: %s", self._name, err)
                stop.event.wait(_ACCEPT_WAIT_S)  # or the loop would spin until a descriptor is free
            return  # else: the peer left between poll and accept
        try:
            peer = peer_of(accepted)
        except OSError:
            accepted.close()
            return
        with self._lock:
            is_full = len(self._open) >= self._max_connections
        if is_full:
            if not self._full_reported:
                logger.warning(
                    "varlink %s: connection of %s closed: %d connections are open, which is the limit",
                    self._name, peer, self._max_connections,
                )  # fmt: skip
            self._full_reported = True
            accepted.close()
            return
        self._full_reported = False
        self._start(
            Connection(accepted, peer, dispatcher=self._dispatcher, limits=self._limits, on_bug=self._on_bug)
        )

    def _start(self, connection: Connection) -> None:
        def serve() -> None:
            try:
                connection.serve()
            finally:
                with self._lock:
                    self._open.pop(connection, None)

        self._accepted += 1
        thread = threading.Thread(target=serve, name=f"{self._name}-{self._accepted}", daemon=True)
        with self._lock:
            self._open[connection] = thread
        thread.start()

    def _end_all(self) -> None:
        """Politely first, so that a reply under way still leaves; a handler that hangs is left behind
        (daemon thread).
        """
        for at_once, wait_s in ((False, _END_POLITE_S), (True, _END_HARD_S)):
            with self._lock:
                left = dict(self._open)
            for connection in left:
                connection.end(at_once=at_once)
            until = time.monotonic() + wait_s
            for thread in left.values():
                thread.join(max(0.0, until - time.monotonic()))
        with self._lock:
            names = sorted(thread.name for thread in self._open.values())
        if names:
            logger.warning("varlink %s: stopped with calls still running: %s", self._name, ", ".join(names))

    def _keep_bug(self, err: BaseException) -> None:
        if self._bug is None:
            self._bug = err
