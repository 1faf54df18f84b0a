"""Port tidewaiter_core.disk.Disk over the simulated storage.

The model is what POSIX promises and no more: fsync of a file makes its content durable but not its name, fsync of a directory
makes names durable but not content, a rename is atomic, and a rename whose content was not synced may leave an empty file.
"""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import dataclass
from pathlib import Path

from tidewaiter_core.disk import DiskEntry

from tests.sim.storage.log import Log
from tests.sim.storage.units import DIRECTORY, FileLength, FileWrite, Moved, Names, Unit

FREE_BYTES = 1 << 30


@dataclass
class _Open:
    inode: int
    position: int = 0


class SimDisk:
    """The file system of a simulated device. Paths are absolute."""

    def __init__(self, storage: Log, *, fat: Path | None = None) -> None:
        """
        Args:
            fat: Below this a rename is not atomic: after a cut the old name, the new one, both or neither may exist.
        """
        self._storage = storage
        self._fat = fat
        self._files: dict[int, _Open] = {}
        self._descriptors = itertools.count(1000)

    def create(self, path: Path) -> int:
        with self._storage.lock:
            inode = self._inode(path)
            if inode is None:
                inode = self._storage.new_inode()
                folder, name = self._place(path)
                self._storage.issue(f"create {name}", [Names(((folder, name, inode),))])
            return self._opened(inode)

    def open(self, path: Path) -> int:
        with self._storage.lock:
            return self._opened(self._file(path))

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        return self._content(self._files[fd].inode)[offset : offset + length]

    def length(self, fd: int) -> int:
        return len(self._content(self._files[fd].inode))

    def write(self, fd: int, data: bytes) -> int:
        file = self._files[fd]
        self._storage.issue("write file", [FileWrite(file.inode, file.position, bytes(data))])
        file.position += len(data)
        return len(data)

    def write_at(self, fd: int, data: bytes, offset: int) -> int:
        self._storage.issue("write file", [FileWrite(self._files[fd].inode, offset, bytes(data))])
        return len(data)

    def truncate(self, fd: int, length: int) -> None:
        if self.length(fd) != length:
            self._storage.issue("truncate", [FileLength(self._files[fd].inode, length)])

    def permit(self, fd: int, mode: int) -> None:
        """Permissions are not modeled."""

    def sync(self, fd: int) -> None:
        inode = self._files[fd].inode
        self._storage.flush("fsync", lambda unit: _is_content(unit, inode))

    def close(self, fd: int) -> None:
        del self._files[fd]

    def replace(self, source: Path, target: Path) -> None:
        with self._storage.lock:
            inode = self._file(source)
            old, new = self._place(source), self._place(target)
            changes = ((*new, inode), (*old, None))
            is_atomic = self._fat is None or not target.is_relative_to(self._fat)
            units = [Names(changes)] if is_atomic else [Names((change,), keeps=True) for change in changes]
            self._storage.issue(f"rename to {new[1]}", units)

    def remove(self, path: Path) -> None:
        with self._storage.lock:
            if self._inode(path) is not None:
                folder, name = self._place(path)
                self._storage.issue(f"unlink {name}", [Names(((folder, name, None),))])

    def sync_directory(self, directory: Path) -> None:
        folder = str(directory)
        self._storage.flush("fsync directory", lambda unit: _is_in(unit, folder))

    def read(self, path: Path, limit_bytes: int) -> bytes:
        with self._storage.lock:
            return self._content(self._file(path))[:limit_bytes]

    def exists(self, path: Path) -> bool:
        return str(path) == "/" or self._inode(path) is not None

    def make_directory(self, path: Path) -> None:
        with self._storage.lock:
            if self._inode(path) is None:
                place = self._place(path)
                self._storage.issue(f"mkdir {path.name}", [Names(((*place, DIRECTORY),))])

    def entries(self, directory: Path) -> list[DiskEntry]:
        folder = str(directory)
        with self._storage.lock:
            names = {
                key[2]: value
                for key, value in self._storage.view.items()
                if key[0] == "name" and key[1] == folder
            }
        return [
            DiskEntry(name, len(self._content(inode)), inode, inode == DIRECTORY)
            for name, inode in sorted(names.items())
        ]

    def free_bytes(self, directory: Path) -> int:
        return FREE_BYTES

    def _opened(self, inode: int) -> int:
        fd = next(self._descriptors)
        self._files[fd] = _Open(inode)
        return fd

    def _content(self, inode: int) -> bytes:
        content: bytes = self._storage.view.get(("inode", inode), b"")
        return content

    def _inode(self, path: Path) -> int | None:
        found: int | None = self._storage.view.get(("name", *_split(path)))
        return found

    def _file(self, path: Path) -> int:
        inode = self._inode(path)
        if inode is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        if inode == DIRECTORY:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        return inode

    def _place(self, path: Path) -> tuple[str, str]:
        folder, name = _split(path)
        if folder != "/" and self._inode(path.parent) != DIRECTORY:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return folder, name


def _split(path: Path) -> tuple[str, str]:
    """Folder and name; the methods of Path that do the same cost a tenth of an exploration."""
    folder, _, name = str(path).rpartition("/")
    return folder or "/", name


def _is_content(unit: Unit, inode: int) -> bool:
    return isinstance(unit, FileWrite | FileLength) and unit.inode == inode


def _is_in(unit: Unit, folder: str) -> bool:
    if isinstance(unit, Moved):
        return unit.folder == folder
    return isinstance(unit, Names) and any(directory == folder for directory, _, _ in unit.changes)
