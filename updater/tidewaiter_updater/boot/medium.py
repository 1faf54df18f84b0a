"""Environment bytes in a file or on a block device, written through and read past the page cache."""

from __future__ import annotations

import errno
import mmap
import os
import stat
from pathlib import Path

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.envcopy import COPY_BYTES, COPY_OFFSETS


def write_whole(fd: int, data: bytes | mmap.mmap, offset: int) -> None:
    """One write of all of `data`. Half a copy is a torn one, and writing on would make it no better than beginning again."""
    if (done := os.pwrite(fd, data, offset)) != len(data):
        raise OSError(errno.EIO, f"only {done} of {len(data)} bytes were taken")


class FileMedium:
    """EnvMedium over a path. A regular file is accepted for the simulated loader and for tests."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def check_layout(self) -> None:
        """Refuse a medium that cannot hold both copies: a single copy has no fallback when a write is torn."""
        needed = COPY_OFFSETS[1] + COPY_BYTES
        try:
            with self._path.open("rb") as file:
                found = file.seek(0, os.SEEK_END)
        except OSError as err:
            raise BootEnvError(
                f"{self.name}: expected the boot environment, found {err.strerror}; the updater does not start",
                code="boot.env-layout",
            ) from err
        if found < needed:
            raise BootEnvError(
                f"{self.name}: {found} bytes cannot hold two environment copies ({needed} bytes needed); "
                "the updater does not start",
                code="boot.env-layout",
            )

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._read_direct(offset, length)
        except OSError as err:
            if not self._is_regular():
                raise BootEnvError(
                    f"{self.name}: reading {length} bytes at {offset} failed: {err.strerror}"
                ) from err
        try:
            return self._read_buffered(offset, length)
        except OSError as err:
            raise BootEnvError(
                f"{self.name}: reading {length} bytes at {offset} failed: {err.strerror}"
            ) from err

    def write(self, offset: int, data: bytes) -> None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                write_whole(fd, data, offset)
                os.fdatasync(fd)
            finally:
                os.close(fd)
        except OSError as err:
            raise BootEnvError(
                f"{self.name}: writing {len(data)} bytes at {offset} failed: {err.strerror}; "
                "the earlier record still decides"
            ) from err

    def _is_regular(self) -> bool:
        try:
            return stat.S_ISREG(self._path.stat().st_mode)
        except OSError:
            return False

    def _read_direct(self, offset: int, length: int) -> bytes:
        fd = os.open(self._path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        try:
            with mmap.mmap(-1, length) as buffer:
                got = os.preadv(fd, [buffer], offset)
                return buffer[:got]
        finally:
            os.close(fd)

    def _read_buffered(self, offset: int, length: int) -> bytes:
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
            return os.pread(fd, length, offset)
        finally:
            os.close(fd)
