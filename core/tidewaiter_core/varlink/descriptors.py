"""Open files that travel with a call over a Unix socket (SCM_RIGHTS), as in systemd's varlink: a parameter holds the index of a
descriptor among those sent with the same message.

A service takes none unless it says how many; the kernel closes what nobody receives. What a handler does not duplicate is closed
when the call is over.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Iterable, Sequence

_INT_BYTES = array.array("i").itemsize


class TooManyDescriptorsError(Exception):
    """The peer sent more than this service takes."""


class Inbox:
    """Descriptors that arrived and belong to the message that is being read."""

    def __init__(self, limit: int) -> None:
        """
        Args:
            limit: Most descriptors of one message; 0 takes none.
        """
        self._limit = limit
        self._held: list[int] = []

    def recv(self, connection: socket.socket, size: int) -> bytes:
        """Like `connection.recv`, keeping descriptors that come along.

        Raises:
            TooManyDescriptorsError: All that were kept are closed.
        """
        if not self._limit:
            return connection.recv(size)
        room = socket.CMSG_SPACE(self._limit * _INT_BYTES)
        data, ancillary, flags, _ = connection.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self._held += array.array("i", payload[: len(payload) - len(payload) % _INT_BYTES])
        if flags & socket.MSG_CTRUNC or len(self._held) > self._limit:
            self.close()
            raise TooManyDescriptorsError(f"more than {self._limit} descriptors with one message")
        return data

    def take(self) -> tuple[int, ...]:
        """The descriptors of the message that is complete now; the caller closes them."""
        taken, self._held = tuple(self._held), []
        return taken

    def close(self) -> None:
        """Close what nobody took."""
        close_all(self.take())


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors that are no longer needed."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):  # nothing was written through it: there is nothing to lose
            os.close(descriptor)


def send(connection: socket.socket, data: bytes, descriptors: Sequence[int]) -> None:
    """Like `connection.sendall`, with open files; they stay open here, too."""
    if not descriptors:
        connection.sendall(data)
        return
    sent = socket.send_fds(connection, [data], list(descriptors))
    connection.sendall(data[sent:])
