"""Messages to the service manager; the only importer of sdnotify.

sdnotify 0.3.2 swallows every error, encodes as Latin-1 (a status with another character loses the whole datagram),
blocks for ever when PID 1 does not read, and cannot pass descriptors. Hence: debug=True and a non-blocking socket,
one message per datagram, ASCII only, descriptors by sendmsg on the same socket. A datagram that cannot be sent is
counted, not raised: the service manager notices its absence.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
from typing import Final, Self

import sdnotify

logger = logging.getLogger(__name__)

_STATUS_LIMIT_CHARS: Final = 256


class Notifier:
    """One process's line to its service manager; without one (`link` is None) every message goes nowhere."""

    def __init__(self, link: socket.socket | None) -> None:
        self._link = link
        self._missed = 0

    @classmethod
    def from_environment(cls) -> Self:
        """Connected to NOTIFY_SOCKET if the process was started by a service manager."""
        if not os.environ.get("NOTIFY_SOCKET"):
            return cls(None)
        try:
            link = sdnotify.SystemdNotifier(debug=True).socket
        except OSError as err:
            logger.warning(
                "notify.unreachable: NOTIFY_SOCKET cannot be used (%s); going on without", err.strerror
            )
            return cls(None)
        link.setblocking(False)
        return cls(link)

    @property
    def connected(self) -> bool:
        """There is a service manager to talk to."""
        return self._link is not None

    @property
    def missed(self) -> int:
        """How many datagrams the service manager did not take."""
        return self._missed

    def ready(self) -> bool:
        """The service does its work now; False if the message was not taken and has to be repeated."""
        return self._send("READY=1")

    def watchdog(self) -> bool:
        """Every worker makes progress. Alone in its datagram, so that nothing can take it down."""
        return self._send("WATCHDOG=1")

    def watchdog_trigger(self) -> bool:
        """A worker is stuck: end this process now instead of when the watchdog expires."""
        return self._send("WATCHDOG=trigger")

    def stopping(self) -> bool:
        """The service is on its way out."""
        return self._send("STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for `systemctl status`; other than printable ASCII becomes `?`."""
        plain = "".join(c if " " <= c <= "~" else "?" for c in text[:_STATUS_LIMIT_CHARS])
        return self._send(f"STATUS={plain}")

    def fdstore(self, name: str, fd: int) -> bool:
        """Leave `fd` with the service manager; the next instance inherits it as `name`."""
        _check_fd_name(name)
        return self._send(f"FDSTORE=1\nFDNAME={name}", fd=fd)

    def fdstore_remove(self, name: str) -> bool:
        """Take back every descriptor stored as `name`."""
        _check_fd_name(name)
        return self._send(f"FDSTOREREMOVE=1\nFDNAME={name}")

    def barrier(self, timeout_s: float) -> bool:
        """Wait until the service manager has read everything sent so far; False if it did not in `timeout_s`."""
        if self._link is None:
            return True
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                sent = self._send("BARRIER=1", fd=writer)
            finally:
                os.close(writer)
            if not sent:
                return False
            # The service manager closes its copy once it got here: end of file is the answer.
            poller = select.poll()
            poller.register(reader, select.POLLHUP)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(reader)

    def close(self) -> None:
        """Say no more."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _send(self, message: str, *, fd: int | None = None) -> bool:
        if self._link is None:
            return True
        passed = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        try:
            self._link.sendmsg([message.encode("ascii")], passed)
        except OSError:
            self._missed += 1
            return False
        return True


def _check_fd_name(name: str) -> None:
    if not (0 < len(name) <= 255 and name.isascii() and name.isprintable() and ":" not in name):
        raise ValueError(
            f"descriptor name {name!r}: expected 1 to 255 printable ASCII characters without a colon"
        )
