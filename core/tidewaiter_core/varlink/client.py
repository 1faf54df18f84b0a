"""A Varlink client: blocking calls with a time limit each. One thread uses one Client."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tidewaiter_core.varlink.catalog import SERVICE_NAME, interface_names, load_interface
from tidewaiter_core.varlink.descriptors import send
from tidewaiter_core.varlink.errors import NotReachable, ProtocolError, VarlinkError
from tidewaiter_core.varlink.framing import Decoder, FramingError, encode
from tidewaiter_core.varlink.idl import Direction, ShapeError, shape

_RECV_BYTES = 64 * 1024


class RawReader:
    """The bytes behind an upgrade reply. Those that arrived with the reply come first."""

    def __init__(self, connection: socket.socket, early: bytes, path: Path) -> None:
        self._socket = connection
        self._early = early
        self._path = path

    def settimeout(self, timeout_s: float | None) -> None:
        """Time limit of each following recv."""
        self._socket.settimeout(timeout_s)

    def recv(self, size: int) -> bytes:
        """At most `size` bytes, b"" at the end.

        Raises:
            NotReachable: The service died or nothing came in time.
        """
        if self._early:
            piece, self._early = self._early[:size], self._early[size:]
            return piece
        try:
            return self._socket.recv(size)
        except TimeoutError as err:
            raise NotReachable(f"{self._path}: no bytes within {self._socket.gettimeout()} s") from err
        except OSError as err:
            raise NotReachable(f"{self._path}: reading failed: {err}") from err

    def close(self) -> None:
        """End the connection, also in the middle."""
        self._socket.close()

    def __enter__(self) -> RawReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Client:
    """Calls methods of the service at `path`. Connects at the first call and again when the service was
    restarted in between.

    A connection that a time-out, a bad reply or an unfinished stream left in the middle of something is
    never used again.
    """

    def __init__(self, path: Path, *, timeout_s: float = 5.0) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._decoder = Decoder()

    def call(
        self,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
        descriptors: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Call `method` and return its reply.

        Args:
            descriptors: Open files to send along, by index in a parameter; they stay open here, too.

        Raises:
            VarlinkError: The service answered with an error.
            NotReachable: It did not answer (in time), or not in Varlink (ProtocolError).
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        until = time.monotonic() + limit_s
        try:
            self._send({"method": method, "parameters": dict(parameters or {})}, until, descriptors)
            reply, _ = self._reply(method, until, limit_s)
        except NotReachable:
            self.close()
            raise
        return reply

    def notify(self, method: str, parameters: Mapping[str, Any] | None = None) -> None:
        """Call `method` one way: nothing is answered, not even an error."""
        until = time.monotonic() + self._timeout_s
        try:
            self._send({"method": method, "parameters": dict(parameters or {}), "oneway": True}, until)
        except NotReachable:
            self.close()
            raise

    def more(
        self, method: str, parameters: Mapping[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Iterator[dict[str, Any]]:
        """Call `method` for a stream of replies; `timeout_s` limits the wait for each. Stop early with
        `close()` of the iterator.

        Raises: as `call`, also between two replies.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        continues = True
        try:
            request = {"method": method, "parameters": dict(parameters or {}), "more": True}
            self._send(request, time.monotonic() + limit_s)
            while continues:
                try:
                    reply, continues = self._reply(method, time.monotonic() + limit_s, limit_s)
                except VarlinkError:
                    continues = False
                    raise
                yield reply
        finally:
            if continues:
                self.close()

    def upgrade(
        self, method: str, parameters: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Any], RawReader]:
        """Call `method` with upgrade: its reply, and a reader for the raw bytes that follow. The connection
        is the reader's then.
        """
        until = time.monotonic() + self._timeout_s
        try:
            self._send({"method": method, "parameters": dict(parameters or {}), "upgrade": True}, until)
            reply, _ = self._reply(method, until, self._timeout_s)
        except NotReachable:
            self.close()
            raise
        connection, self._socket = self._socket, None
        assert connection is not None  # noqa: S101 - a reply came over it
        connection.settimeout(self._timeout_s)
        return reply, RawReader(connection, self._decoder.take_rest(), self._path)

    def close(self) -> None:
        """Hang up. The client can be used again; it connects anew."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._decoder = Decoder()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, request: dict[str, Any], until: float, descriptors: Sequence[int] = ()) -> None:
        try:
            data = encode(request)
        except FramingError as err:
            raise ValueError(f"{request['method']}: {err}") from err
        connection = self._connected(until)
        try:
            connection.settimeout(max(0.001, until - time.monotonic()))
            send(connection, data, descriptors)
        except OSError as err:
            raise NotReachable(f"{self._path}: sending {request['method']} failed: {err}") from err

    def _connected(self, until: float) -> socket.socket:
        if self._socket is not None and _is_stale(self._socket):
            self.close()  # nothing of the new request was sent over it, so connecting again is safe
        if self._socket is None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                connection.settimeout(max(0.001, until - time.monotonic()))
                connection.connect(str(self._path))
            except OSError as err:
                connection.close()
                raise NotReachable(f"{self._path}: cannot connect: {err}; is the service running?") from err
            self._socket = connection
        return self._socket

    def _reply(self, method: str, until: float, limit_s: float) -> tuple[dict[str, Any], bool]:
        message = self._receive(method, until, limit_s)
        parameters = message.get("parameters")
        parameters = {} if parameters is None else parameters
        error = message.get("error")
        continues = message.get("continues") or False
        if not isinstance(parameters, dict) or not isinstance(continues, bool):
            raise ProtocolError(f"{self._path}: the answer to {method} is not a Varlink reply")
        if error is not None:
            if not isinstance(error, str) or len(error) > 255:
                raise ProtocolError(f"{self._path}: the answer to {method} has an error without a name")
            raise VarlinkError(error, parameters)
        return self._checked(method, parameters), continues

    def _checked(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """What a service says is input like any other: if we have its interface file, the reply must fit
        it.
        """
        interface_name, _, short = method.rpartition(".")
        if interface_name != SERVICE_NAME and interface_name not in interface_names():
            return parameters
        interface = load_interface(interface_name)
        if short not in interface.methods:
            return parameters
        try:
            checked = shape(interface, interface.methods[short].reply, parameters, Direction.ANSWER)
        except ShapeError as err:
            raise ProtocolError(
                f"{self._path}: the answer to {method} does not fit its interface: {err}"
            ) from err
        assert isinstance(checked, dict)  # noqa: S101 - a StructType gives a dict
        return checked

    def _receive(self, method: str, until: float, limit_s: float) -> dict[str, Any]:
        assert self._socket is not None  # noqa: S101 - _send connected it
        while True:
            try:
                message = self._decoder.next_message()
            except FramingError as err:
                raise ProtocolError(f"{self._path}: the answer to {method} is not Varlink: {err}") from err
            if message is not None:
                return message
            try:
                self._socket.settimeout(max(0.001, until - time.monotonic()))
                data = self._socket.recv(_RECV_BYTES)
            except TimeoutError as err:
                raise NotReachable(
                    f"{self._path}: no answer to {method} within {limit_s:g} s; its effect is unknown"
                ) from err
            except OSError as err:
                raise NotReachable(f"{self._path}: no answer to {method}: {err}") from err
            if not data:
                raise NotReachable(
                    f"{self._path}: the service ended the connection without answering {method}"
                )
            self._decoder.feed(data)


def _is_stale(connection: socket.socket) -> bool:
    """Hung up by the service, or bytes are waiting that belong to no request of ours."""
    poller = select.poll()
    poller.register(connection, select.POLLIN | select.POLLRDHUP)
    return bool(poller.poll(0))
