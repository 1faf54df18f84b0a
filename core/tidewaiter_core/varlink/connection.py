"""One client's connection on the server side: read, dispatch, answer, each with a time limit. Runs in its
own thread.

A peer that sends garbage, stops in the middle of a message or never reads its replies costs its own
connection and nothing else. A bug in a handler costs the process, because the house rule is that a half-dead
process does not stay alive.
"""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.varlink import errors
from tidewaiter_core.varlink.call import Call, Upgrade
from tidewaiter_core.varlink.descriptors import Inbox, TooManyDescriptorsError, close_all
from tidewaiter_core.varlink.dispatch import Bound, Dispatcher
from tidewaiter_core.varlink.errors import VarlinkError
from tidewaiter_core.varlink.framing import Decoder, FramingError, encode
from tidewaiter_core.varlink.peer import Peer

logger = logging.getLogger(__name__)

_RECV_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a peer may keep a connection waiting."""

    call_timeout_s: float
    """From the first to the last byte of a message, from connect to the first message, and for the peer to
    take a reply.
    """
    idle_timeout_s: float
    """Between two calls."""
    stream_timeout_s: float
    """For the peer to take one piece of an upgraded body: it may be waiting for a slow medium."""
    max_descriptors: int = 0
    """Open files that one message may bring."""


class _PeerFailed(Exception):
    """The connection has no future because of the peer; the text says why. Never a bug."""


class Connection:
    """Serves one accepted socket until the peer or `end()` ends it."""

    def __init__(
        self,
        connection: socket.socket,
        peer: Peer,
        *,
        dispatcher: Dispatcher,
        limits: Limits,
        on_bug: Callable[[BaseException], None],
    ) -> None:
        self._socket = connection
        self._peer = peer
        self._dispatcher = dispatcher
        self._limits = limits
        self._on_bug = on_bug
        self._decoder = Decoder()
        self._inbox = Inbox(limits.max_descriptors)
        self._ending = threading.Event()

    def serve(self) -> None:
        """Answer calls until the connection ends; never raises."""
        try:
            self._serve()
        except _PeerFailed as err:
            logger.warning("varlink connection of %s closed: %s", self._peer, err)
        except Exception as err:
            logger.exception("varlink: a handler failed with an error it does not declare; this is a bug")
            self._try_send({"error": errors.INTERNAL_ERROR, "parameters": {}})
            self._on_bug(err)
        finally:
            self._ending.set()
            self._inbox.close()
            self._socket.close()

    def end(self, *, at_once: bool) -> None:
        """From another thread: no further call; a reply on its way still leaves unless `at_once`."""
        self._ending.set()
        try:
            self._socket.shutdown(socket.SHUT_RDWR if at_once else socket.SHUT_RD)
        except OSError:  # already gone
            return

    def _serve(self) -> None:
        wait_s = self._limits.call_timeout_s
        while not self._ending.is_set():
            request = self._receive(wait_s)
            if request is None:
                return
            descriptors = self._inbox.take()
            try:
                if not self._answer(request, descriptors):
                    return
            finally:
                close_all(descriptors)
            wait_s = self._limits.idle_timeout_s

    def _receive(self, wait_s: float) -> dict[str, Any] | None:
        """The next request, or None when the peer has hung up or been idle between two requests."""
        until = time.monotonic() + wait_s
        partial = False
        while True:
            try:
                message = self._decoder.next_message()
            except FramingError as err:
                raise _PeerFailed(str(err)) from err
            if message is not None:
                return message
            if self._decoder.has_partial and not partial:
                partial = True
                until = time.monotonic() + self._limits.call_timeout_s
            remaining_s = until - time.monotonic()
            if remaining_s <= 0:
                if partial:
                    raise _PeerFailed(f"half a message, then nothing for {self._limits.call_timeout_s} s")
                return None
            try:
                self._socket.settimeout(remaining_s)
                data = self._inbox.recv(self._socket, _RECV_BYTES)
            except TimeoutError:
                continue
            except TooManyDescriptorsError as err:
                raise _PeerFailed(str(err)) from err
            except OSError as err:
                raise _PeerFailed(f"reading failed: {err}") from err
            if not data:
                if partial and not self._ending.is_set():
                    raise _PeerFailed("it ended in the middle of a message")
                return None
            self._decoder.feed(data)

    def _answer(self, request: dict[str, Any], descriptors: tuple[int, ...]) -> bool:
        """Handle one request; False when the connection ends with it."""
        method, parameters, flags = _parse_request(request)
        bound: Bound | None = None
        try:
            bound = self._dispatcher.resolve(method)
            call = Call(
                parameters=self._dispatcher.accept(bound, parameters, self._peer),
                peer=self._peer,
                more=flags["more"],
                upgrade=flags["upgrade"],
                oneway=flags["oneway"],
                descriptors=descriptors,
                hung_up=self._hung_up,
            )
            return self._run(bound, call)
        except TidewaiterError as err:
            if isinstance(err, VarlinkError) and err.name == errors.PERMISSION_DENIED:
                logger.warning("varlink: %s may not call %s", self._peer, method)
            elif bound is None or isinstance(err, VarlinkError):
                logger.info("varlink: %s asked for %.100s, answered %s", self._peer, method, err)
            else:
                logger.warning("varlink: %s failed for %s: %s", method, self._peer, err)
            if not flags["oneway"]:
                self._send(self._dispatcher.error(err))
            return True

    def _run(self, bound: Bound, call: Call) -> bool:
        result = bound.handler(call)
        if isinstance(result, Upgrade):
            self._send_body(bound, call, result)
            return False
        if result is None or isinstance(result, dict):
            self._reply(bound, call, result)
            return True
        if not isinstance(result, Iterator):
            raise TypeError(f"handler of {bound.full_name} returned a {type(result).__name__}")
        try:
            return self._stream(bound, call, result)
        finally:
            _close(result)

    def _stream(self, bound: Bound, call: Call, replies: Iterator[dict[str, Any]]) -> bool:
        last: dict[str, Any] | None = None
        while True:
            try:
                value = next(replies)
            except StopIteration as end:
                last = end.value if end.value is not None else last
                break
            if not call.more:
                self._reply(bound, call, value)
                return True
            self._reply(bound, call, value, continues=True)
            last = value
            if call.closed():
                return False
        if last is None or call.closed():
            return False  # nothing to say as a last reply: the end of the connection says it
        self._reply(bound, call, last)
        return True

    def _send_body(self, bound: Bound, call: Call, result: Upgrade) -> None:
        try:
            if not call.upgrade:
                raise VarlinkError(errors.EXPECTED_UPGRADE)
            self._reply(bound, call, result.parameters)
            try:
                for piece in result.body:
                    self._send_bytes(piece, self._limits.stream_timeout_s)
            except TidewaiterError as err:
                # No error reply: the peer would take it for a piece of the body. The early end says it.
                logger.warning("varlink: body of %s for %s ended early: %s", bound.full_name, self._peer, err)
        finally:
            _close(result.body)

    def _reply(
        self, bound: Bound, call: Call, value: dict[str, Any] | None, *, continues: bool = False
    ) -> None:
        message: dict[str, Any] = {"parameters": bound.reply(value)}
        if continues:
            message["continues"] = True
        if not call.oneway:
            self._send(message)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            data = encode(message)
        except FramingError as err:
            # Depends on data, not only on code, so it must not be a way to end the process.
            raise TidewaiterError(f"reply not sent: {err}", code="core.varlink-too-large") from err
        self._send_bytes(data, self._limits.call_timeout_s)

    def _send_bytes(self, data: bytes, timeout_s: float) -> None:
        try:
            self._socket.settimeout(timeout_s)
            self._socket.sendall(data)
        except TimeoutError as err:
            raise _PeerFailed(f"it did not take its reply for {timeout_s} s") from err
        except OSError as err:
            raise _PeerFailed(f"it did not take its reply: {err}") from err

    def _try_send(self, message: dict[str, Any]) -> None:
        try:
            self._send(message)
        except _PeerFailed:
            return

    def _hung_up(self, wait_s: float) -> bool:
        """True at once when the peer hung up or the server is stopping; else after `wait_s`, False."""
        descriptor = self._socket.fileno()
        if self._ending.is_set() or descriptor < 0:
            return True
        poller = select.poll()
        poller.register(descriptor, select.POLLRDHUP)
        return bool(poller.poll(wait_s * 1000)) or self._ending.is_set()


def _parse_request(request: dict[str, Any]) -> tuple[str, Any, dict[str, bool]]:
    method = request.get("method")
    if not isinstance(method, str) or "." not in method or len(method) > 255:
        raise _PeerFailed("a request without a method name")
    flags = {name: request.get(name) or False for name in ("more", "upgrade", "oneway")}
    if not all(isinstance(value, bool) for value in flags.values()):
        raise _PeerFailed(f"a request whose flags are not true or false: {method}")
    parameters = request.get("parameters")
    return method, {} if parameters is None else parameters, flags


def _close(source: object) -> None:
    """Let a generator run its `finally`: a lease or a download behind it ends with the call."""
    close = getattr(source, "close", None)
    if callable(close):
        close()
