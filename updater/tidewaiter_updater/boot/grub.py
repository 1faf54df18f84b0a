"""GRUB's environment in two files of one 1024-byte block each, which GRUB itself writes with `save_env`.

The files lie on an ext2 without journal, are made by the image builder and never grow, shrink or move: GRUB writes to the disk
blocks it found. So they are opened without creating or truncating (`grub-editenv set` of GRUB 2.06 truncates first, and a cut
then leaves an empty file), written in place, synced, and read back past the page cache.

Source: update-engine.md section 8.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tidewaiter_core.model import SlotName

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.copies import CopyStore, TwoCopies
from tidewaiter_updater.boot.envcopy import from_variables, to_variables
from tidewaiter_updater.boot.grubenv import BLOCK_BYTES, LAYOUT
from tidewaiter_updater.boot.medium import write_whole
from tidewaiter_updater.medium import aligned_buffer
from tidewaiter_updater.model import BootEnv

FILES: Final = ("env_a", "env_b")
_DIRECT_BYTES: Final = 4096
"""O_DIRECT reads whole sectors of any disk."""


class EnvFiles:
    """CopyStore over two files that exist."""

    def __init__(self, directory: Path) -> None:
        self.name = str(directory)
        self._paths = tuple(directory / name for name in FILES)

    def check_layout(self) -> None:
        """Refuse anything but two regular files of one block.

        A shorter one is what a cut in `grub-editenv set` leaves: it counts as no copy, and our next write fills it again.

        Raises:
            BootEnvError: boot.env-layout; the updater does not start.
        """
        for path in self._paths:
            try:
                status = path.lstat()
            except OSError as err:
                raise BootEnvError(
                    f"{path}: expected an environment block, found {err.strerror}; the updater does not start",
                    code="boot.env-layout",
                ) from err
            if not stat.S_ISREG(status.st_mode) or status.st_size > BLOCK_BYTES:
                raise BootEnvError(
                    f"{path}: expected a file of {BLOCK_BYTES} bytes, found {status.st_size} bytes of mode "
                    f"{stat.filemode(status.st_mode)}; the updater does not start",
                    code="boot.env-layout",
                )

    def read(self, index: int) -> bytes:
        path = self._paths[index]
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                return _read_from_medium(fd, path)
            finally:
                os.close(fd)
        except OSError as err:
            raise BootEnvError(f"{path}: reading {BLOCK_BYTES} bytes failed: {err.strerror}") from err

    def write(self, index: int, data: bytes) -> None:
        path = self._paths[index]
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                write_whole(fd, data, 0)
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as err:
            raise BootEnvError(
                f"{path}: writing {len(data)} bytes failed: {err.strerror or err}; the earlier record still decides"
            ) from err


def _read_from_medium(fd: int, path: Path) -> bytes:
    """The block as it is on storage. Where the file system has no O_DIRECT, after its pages were dropped from the cache."""
    try:
        direct = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, BLOCK_BYTES + 1, 0)
    try:
        with aligned_buffer(_DIRECT_BYTES) as buffer:
            done = os.preadv(direct, [buffer], 0)
            return buffer[:done]
    finally:
        os.close(direct)


class GrubBoot:
    """BootControl over GRUB's two environment blocks."""

    def __init__(self, store: CopyStore, *, booted: Callable[[], SlotName]) -> None:
        self._copies = TwoCopies(store, LAYOUT)
        self._booted = booted

    def read(self) -> BootEnv | None:
        copy = self._copies.read()
        return from_variables(copy.variables) if copy else None

    def booted(self) -> SlotName:
        return self._booted()

    def write(self, env: BootEnv) -> None:
        self._copies.write(to_variables(env))
