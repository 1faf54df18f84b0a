"""Copies a directory tree on the real file system.

A copy keeps what belongs to a file: owner, mode, times, extended attributes with access lists, hard links, symbolic links,
holes. Blocks are shared where the file system can (FICLONE), else copied by the kernel. The walk goes by descriptors, so that
neither a path of any length nor a link that somebody plants leads it astray; what it remembers is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tidewaiter_updater.errors import DataStepError
from tidewaiter_updater.set_store import Beat

DEPTH_LIMIT: Final = 128
"""Open directories at a time."""
LINK_LIMIT: Final = 65_536
"""Files whose other names were not met yet."""
PIECE_BYTES: Final = 4 * 1024 * 1024
BUFFER_BYTES: Final = 1024 * 1024
FICLONE: Final = 0x40049409
_CANNOT_CLONE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS})
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Links:
    """Files with several names of which some are still to come."""

    left: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    """(device, inode): names to come, first copied name below the target."""

    def first(self, status: os.stat_result) -> str | None:
        """Where the file was copied to, None when this is the first of its names."""
        key = (status.st_dev, status.st_ino)
        known = self.left.get(key)
        if known is None:
            return None
        count, name = known
        if count == 1:
            del self.left[key]
        else:
            self.left[key] = (count - 1, name)
        return name

    def note(self, status: os.stat_result, name: str) -> None:
        """Remember the first of several names; DataStepError data.limit where there are too many."""
        if len(self.left) >= LINK_LIMIT:
            raise DataStepError(
                f"more than {LINK_LIMIT} files with several names; the data are not copied", code="data.limit"
            )
        self.left[status.st_dev, status.st_ino] = (status.st_nlink - 1, name)


@contextlib.contextmanager
def opened(path: Path | str, *, at: int | None = None, flags: int = _FOLDER) -> Iterator[int]:
    """A descriptor of a directory, or of whatever `flags` say, below the directory `at`."""
    fd = os.open(path, flags, dir_fd=at)
    try:
        yield fd
    finally:
        os.close(fd)


class Copy:
    """One copy; `root` is the directory that gets it."""

    def __init__(self, root: int, beat: Beat) -> None:
        self._root = root
        self._beat = beat
        self._links = Links()

    def folder(self, old: int, new: int, path: str, *, depth: int) -> None:
        """Everything inside `old` into `new`; the caller dresses the directory itself, last: filling it changes its time."""
        if depth > DEPTH_LIMIT:
            raise DataStepError(
                f"{path[:200]}...: deeper than {DEPTH_LIMIT} directories; the data are not copied",
                code="data.limit",
            )
        with os.scandir(old) as listing:
            for entry in listing:
                status = entry.stat(follow_symlinks=False)
                name = entry.name
                below = f"{path}{name}"
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(name, 0o700, dir_fd=new)
                    with opened(name, at=old) as inner_old, opened(name, at=new) as inner_new:
                        self.folder(inner_old, inner_new, f"{below}/", depth=depth + 1)
                        dress(inner_old, inner_new)
                else:
                    self._leaf(old, new, name, below, status)
                self._beat(1, 0)

    def _leaf(self, old: int, new: int, name: str, below: str, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            first = self._links.first(status)
            if first is not None:
                os.link(first, name, src_dir_fd=self._root, dst_dir_fd=new, follow_symlinks=False)
                return
            self._links.note(status, below)
        if stat.S_ISREG(status.st_mode):
            self._file(old, new, name, status)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=old), name, dir_fd=new)
            _dress_link(old, new, name, status)
        elif stat.S_ISFIFO(status.st_mode):
            os.mkfifo(name, 0o600, dir_fd=new)
            with opened(name, at=new, flags=os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) as fifo:
                os.fchown(fifo, status.st_uid, status.st_gid)
                _finish(fifo, status)
        elif not stat.S_ISSOCK(status.st_mode):  # a socket is of no use without its process
            raise DataStepError(
                f"{below[-200:]}: is a device node; the product's data may hold none, they are not copied",
                code="data.special",
            )

    def _file(self, old: int, new: int, name: str, status: os.stat_result) -> None:
        with opened(name, at=old, flags=_READ) as source:
            target = os.open(name, _WRITE, 0o600, dir_fd=new)
            try:
                if not _cloned(source, target):
                    self._content(source, target, status.st_size)
                dress(source, target)
            finally:
                os.close(target)

    def _content(self, source: int, target: int, size: int) -> None:
        os.ftruncate(target, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
                end = os.lseek(source, at, os.SEEK_HOLE)
            except OSError as err:
                if err.errno == errno.ENXIO:  # only a hole is left
                    return
                end = size
            self._span(source, target, at, min(end, size))
            at = end

    def _span(self, source: int, target: int, at: int, end: int) -> None:
        while at < end:
            count = _copied(source, target, at, min(PIECE_BYTES, end - at))
            if count == 0:  # became shorter: somebody else writes it
                raise OSError(errno.EIO, "ended early while it was copied")
            at += count
            self._beat(0, count)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, FICLONE, source)
    except OSError as err:
        if err.errno not in _CANNOT_CLONE:
            raise
        return False
    return True


def _copied(source: int, target: int, at: int, count: int) -> int:
    try:
        return os.copy_file_range(source, target, count, at, at)
    except OSError as err:
        if err.errno not in _CANNOT_CLONE | {errno.EPERM}:
            raise
    data = os.pread(source, min(count, BUFFER_BYTES), at)
    done = 0
    while done < len(data):
        done += os.pwrite(target, data[done:], at + done)
    return done


def dress(source: int, target: int) -> None:
    """Owner, attributes, mode, times; in this order, because each may undo a later one."""
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    for name in _attributes(lambda: os.listxattr(source)):
        os.setxattr(target, name, os.getxattr(source, name))
    _finish(target, status)


def _finish(target: int, status: os.stat_result) -> None:
    os.fchmod(target, stat.S_IMODE(status.st_mode))
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _dress_link(old: int, new: int, name: str, status: os.stat_result) -> None:
    os.chown(name, status.st_uid, status.st_gid, dir_fd=new, follow_symlinks=False)
    os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=new, follow_symlinks=False)
    # There is no call for the attributes of a link by descriptor; /proc leads to its directory.
    source, target = f"/proc/self/fd/{old}/{name}", f"/proc/self/fd/{new}/{name}"
    for attribute in _attributes(lambda: os.listxattr(source, follow_symlinks=False)):
        value = os.getxattr(source, attribute, follow_symlinks=False)
        os.setxattr(target, attribute, value, follow_symlinks=False)


def _attributes(listed: Callable[[], list[str]]) -> list[str]:
    try:
        return listed()
    except OSError as err:
        if err.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
            return []
        raise
