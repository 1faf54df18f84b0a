"""A medium for state files that fails on request: full, broken, or without power from one effect on."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tidewaiter_core.durable import SystemDisk


class PowerCut(BaseException):
    """The device lost power: nothing runs after it, no handler and no clean-up."""


class StateDisk(SystemDisk):
    """The real file system, whose four effects of an atomic write can be made to fail.

    Effects are counted from 0 over all methods. `cut_before` is the effect that power fails at; a write is torn in
    the middle by it.
    """

    def __init__(self, *, cut_before: int | None = None, room_bytes: int | None = None) -> None:
        self._real = SystemDisk()
        self._cut_before = cut_before
        self._room_bytes = room_bytes
        self.broken: set[str] = set()
        """Effects that fail with an I/O error: write, sync, replace, sync_directory."""
        self.effects: list[str] = []

    def write(self, fd: int, data: bytes) -> int:
        if self._is_cut("write"):
            os.write(fd, data[: len(data) // 2])
            raise PowerCut
        # A real write may take less than it is given; half of it here, so that nobody relies on the contrary.
        part = data[: max(1, len(data) // 2)]
        if self._room_bytes is not None:
            if self._room_bytes <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            part = part[: self._room_bytes]
            self._room_bytes -= len(part)
        return self._real.write(fd, part)

    def sync(self, fd: int) -> None:
        self._enter("sync")
        self._real.sync(fd)

    def replace(self, source: Path, target: Path) -> None:
        self._enter("replace")
        self._real.replace(source, target)

    def sync_directory(self, directory: Path) -> None:
        self._enter("sync_directory")
        self._real.sync_directory(directory)

    def _enter(self, effect: str) -> None:
        if self._is_cut(effect):
            raise PowerCut

    def _is_cut(self, effect: str) -> bool:
        index = len(self.effects)
        self.effects.append(effect)
        if effect in self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return index == self._cut_before
