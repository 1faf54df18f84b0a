"""The simulated injector's end of the cable: a pty with a stable name, as udev would give it."""

import os
import select
import termios
import tty
from pathlib import Path
from typing import Final

READ_BYTES: Final = 4096


class PtyLine:
    """`link` always points to the current node; `plug` makes a new one, as a USB adapter does."""

    def __init__(self, link: Path, *, bytes_per_s: float | None = None) -> None:
        self._link = link
        self._bytes_per_s = bytes_per_s
        self._master: int | None = None
        self._free_s = 0.0

    @property
    def is_plugged(self) -> bool:
        """Whether there is a node."""
        return self._master is not None

    def plug(self) -> None:
        """Make a new node and let the link point to it."""
        self.unplug()
        master, slave = os.openpty()
        for fd in (master, slave):
            tty.setraw(fd, termios.TCSANOW)
        node = os.ttyname(slave)
        os.chmod(slave, 0o600)  # noqa: PTH101 - the node is open here; its path may already be somebody else's
        os.close(slave)
        os.set_blocking(master, False)
        self._master = master
        self._link.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._link.with_name(f".{self._link.name}.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(node)
        temporary.replace(self._link)

    def unplug(self) -> None:
        """Pull the cable: the node hangs up and its name is gone."""
        if self._master is not None:
            self._link.unlink(missing_ok=True)
            os.close(self._master)
            self._master = None

    def fileno(self) -> int | None:
        """The descriptor to wait for; None while unplugged."""
        return self._master

    def read(self) -> bytes:
        """What arrived; b"" also while nobody has the other end open."""
        if self._master is None:
            return b""
        try:
            return os.read(self._master, READ_BYTES)
        except (BlockingIOError, OSError):
            return b""  # EIO: the other end is closed; a pty says so instead of waiting

    def write(self, data: bytes) -> None:
        """Send; what does not fit is lost, as on a wire nobody reads."""
        if self._master is None:
            return
        try:
            os.write(self._master, data)
        except (BlockingIOError, OSError):
            return

    def pace_s(self, count: int, now_s: float) -> float:
        """How long `count` bytes take after what is on the wire already; 0 without pacing."""
        if not self._bytes_per_s:
            return 0.0
        self._free_s = max(self._free_s, now_s) + count / self._bytes_per_s
        return self._free_s - now_s

    def is_open_elsewhere(self) -> bool:
        """Whether somebody has the other end open (a closed one hangs up)."""
        if self._master is None:
            return False
        poller = select.poll()
        poller.register(self._master, 0)
        return not any(event & select.POLLHUP for _, event in poller.poll(0))
