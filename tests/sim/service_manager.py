"""What a process sees of systemd: a notification socket that reads, or never does."""

from __future__ import annotations

import array
import os
import socket
from pathlib import Path
from types import TracebackType
from typing import Self


class ServiceManager:
    """A real AF_UNIX datagram socket; give `environment` to a process, or set it with monkeypatch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(20)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def environment(self, *, watchdog_s: float | None = None) -> dict[str, str]:
        found = {
            key: value for key, value in os.environ.items() if not key.startswith(("WATCHDOG_", "NOTIFY_"))
        }
        found["NOTIFY_SOCKET"] = str(self.path)
        if watchdog_s is not None:
            found["WATCHDOG_USEC"] = str(int(watchdog_s * 1_000_000))
        return found

    def receive(self) -> str:
        """The next datagram, waiting for it."""
        return self._socket.recv(65_536).decode()

    def receive_with_fd(self) -> tuple[str, int]:
        """The next datagram and the descriptor that came with it."""
        data, ancillary, _, _ = self._socket.recvmsg(65_536, 64)
        fds = array.array("i")
        fds.frombytes(ancillary[0][2][: fds.itemsize])
        return data.decode(), fds[0]

    def received(self) -> list[str]:
        """Every datagram that is there now."""
        self._socket.setblocking(False)
        found = []
        try:
            while True:
                found.append(self._socket.recv(65_536).decode())
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(20)

    def wait_for(self, message: str) -> list[str]:
        """Read until `message` arrives; returns what came before it."""
        before = []
        while (found := self.receive()) != message:
            before.append(found)
        return before
