"""The file system under durable state, as a port: `SystemDisk` is the kernel's, a test world has its own.

Everything that has to survive a power cut goes through these calls and through nothing else, so that the crash explorer can log
each of them and then ask what storage may hold after a cut between any two (update-engine.md section 17.1). The methods are what
the kernel offers, no more: which of them makes what durable is the business of `durable` and of the stores above it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class DiskEntry:
    """One name in a directory."""

    name: str
    size_bytes: int
    changed_ns: int
    is_directory: bool = False


class Disk(Protocol):
    """A file system. Every method raises OSError when the medium refuses."""

    def create(self, path: Path) -> int:
        """Open a regular file for reading and writing, created empty if absent, and lock it against other writers."""

    def open(self, path: Path) -> int:
        """Open a file for reading."""

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the end of the file."""

    def length(self, fd: int) -> int:
        """Size of an open file in bytes."""

    def write(self, fd: int, data: bytes) -> int:
        """Write at the file's position; may take less than it is given."""

    def write_at(self, fd: int, data: bytes, offset: int) -> int:
        """Write from `offset` on, whatever the file's position; may take less than it is given."""

    def truncate(self, fd: int, length: int) -> None: ...
    def permit(self, fd: int, mode: int) -> None:
        """Set the permission bits of an open file."""

    def sync(self, fd: int) -> None:
        """Return when content and size of the file are on storage; its name may not be."""

    def close(self, fd: int) -> None: ...
    def replace(self, source: Path, target: Path) -> None:
        """Give `source` the name `target`, whatever had it before."""

    def remove(self, path: Path) -> None:
        """Remove a file; an absent one is fine."""

    def sync_directory(self, directory: Path) -> None:
        """Return when the names in `directory` are on storage."""

    def read(self, path: Path, limit_bytes: int) -> bytes:
        """The content of a file, at most `limit_bytes` of it."""

    def exists(self, path: Path) -> bool:
        """Whether the name is taken, by whatever."""

    def make_directory(self, path: Path) -> None:
        """Create a directory; one that exists is fine. Its name may not be on storage."""

    def entries(self, directory: Path) -> list[DiskEntry]:
        """What is in a directory, by name."""

    def free_bytes(self, directory: Path) -> int:
        """What an unprivileged user may still write."""


class SystemDisk:
    """The real medium."""

    def create(self, path: Path) -> int:
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
            try:
                _require_regular(fd, path)
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Another writer may have renamed this very file into place while we waited for its lock.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.lstat(path)):
                        return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def open(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def length(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def write_at(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def permit(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def close(self, fd: int) -> None:
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        source.replace(target)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, path: Path, limit_bytes: int) -> bytes:
        with path.open("rb") as file:
            return file.read(limit_bytes)

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)

    def entries(self, directory: Path) -> list[DiskEntry]:
        found = []
        with os.scandir(directory) as listing:
            for entry in listing:
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    status = entry.stat(follow_symlinks=False)
                    is_directory = stat.S_ISDIR(status.st_mode)
                    found.append(DiskEntry(entry.name, status.st_size, status.st_mtime_ns, is_directory))
        return sorted(found, key=lambda entry: entry.name)

    def free_bytes(self, directory: Path) -> int:
        status = os.statvfs(directory)
        return status.f_bavail * status.f_frsize


def _require_regular(fd: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EEXIST, f"{path.name} is in the way and is no regular file")


SYSTEM_DISK: Final[Disk] = SystemDisk()
