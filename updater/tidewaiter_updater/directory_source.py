"""A repository in a directory, most often a USB stick: read as if somebody hostile had made its file system.

Invariants:
1. The directory is a descriptor, never a path: whoever may read it opened it, and every name is looked up from it, one
   segment at a time, without following a link. Nothing outside it can be reached.
2. Only regular files are opened, because opening a pipe blocks and opening a device may do anything. What a name is, is asked
   before it is opened and again afterwards.
3. The size of a file is known before the first byte is read, and no more than asked for is ever read.
4. A medium that was pulled out is `source.vanished`, whatever its file system says: FAT answers "no such file" for a directory
   that it cannot read any more, so that answer counts only while the medium itself can be read.
5. As for the relay, nothing here decides what is genuine.

The directory holds `metadata` and `targets`, an ordinary TUF repository; on a stick it is called TIDEWAITER.
Source: update-engine.md sections 6 and 14.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tidewaiter_updater.errors import SourceError, SourceRefusedError
from tidewaiter_updater.sources import SPAN_LIMIT_BYTES, checked_path

PROBE: Final = "metadata/timestamp.json"
_READ_BYTES: Final = 256 * 1024
_FOLDER_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_GONE: Final = frozenset(
    {errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.EREMOTEIO}
)
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class DirectorySource:
    """The repository below a directory. Owns the descriptor: closed by `close`, or when nobody uses this object any more."""

    cost_class = "free"

    def __init__(self, descriptor: int, *, name: str = "medium") -> None:
        """
        Args:
            descriptor: An open directory that holds metadata and targets; from here on this object's.
            name: For messages.
        """
        self.descriptor = descriptor
        self._name = name
        self._received_bytes = 0
        self._lock = threading.Lock()
        self._closing = weakref.finalize(self, os.close, descriptor)

    @property
    def received_bytes(self) -> int:
        return self._received_bytes

    def close(self) -> None:
        """Let go of the medium, so that it can be unmounted; a file that is being read is read to its end."""
        with self._lock:
            self._closing()

    def metadata(self, path: str, limit: int) -> Iterator[bytes]:
        """As `Source.metadata`; of a longer file one byte more than `limit` is read, so that the caller sees the excess."""
        with self._opened(f"metadata/{checked_path(path)}") as (file, length):
            yield from self._pieces(path, file, offset=0, length=min(length, limit + 1))

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """As `Source.span`."""
        if not 0 < length <= SPAN_LIMIT_BYTES or offset < 0:
            raise ValueError(f"a span is 1..{SPAN_LIMIT_BYTES} bytes from 0 on, not {length} from {offset}")
        with self._opened(f"targets/{checked_path(path)}") as (file, total):
            if total < offset + length:
                raise SourceError(
                    f"{self._named(path)}: expected at least {offset + length} bytes, found {total}; not used",
                    code="source.bad-range",
                )
            yield from self._pieces(path, file, offset=offset, length=length)

    def has_target(self, path: str, length: int) -> bool:
        """Whether there is a regular file of this length at a target path, which carries its hash prefix already.

        Raises:
            SourceError: The medium is gone, or something hostile has that name.
        """
        try:
            with self._opened(f"targets/{checked_path(path)}") as (_, total):
                return total == length
        except SourceRefusedError:
            return False

    def require_present(self) -> None:
        """Say what is wrong with a directory that is no update medium, or that is gone.

        Raises:
            SourceError: source.vanished.
        """
        if not self._is_present():
            raise SourceError(
                f"{self._name}: {PROBE} cannot be read; the medium was removed, or it is no update medium",
                code="source.vanished",
            )

    def _is_present(self) -> bool:
        try:
            with self._chain(PROBE) as (file, _):
                # A page that is still in memory proves nothing about a stick that was pulled out.
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                return len(os.pread(file, 1, 0)) == 1
        except (OSError, _NotRegularError):
            return False

    @contextmanager
    def _opened(self, path: str) -> Iterator[tuple[int, int]]:
        """Descriptor and length of the regular file at `path` below TIDEWAITER."""
        try:
            with self._chain(path) as opened:
                yield opened
        except _NotRegularError as err:
            raise SourceError(
                f"{self._named(path)}: expected a regular file, found {err}; not opened",
                code="source.path",
                retryable=False,
            ) from err
        except OSError as err:
            raise self._explained(path, err) from err

    @contextmanager
    def _chain(self, path: str) -> Iterator[tuple[int, int]]:
        *folders, name = path.split("/")
        folder = self._top()
        try:
            for segment in folders:
                below = _open_folder(segment, folder)
                os.close(folder)
                folder = below
            _require_regular(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
            file = os.open(name, _FILE_FLAGS, dir_fd=folder)
        finally:
            os.close(folder)
        try:
            found = os.fstat(file)
            _require_regular(found.st_mode)
            yield file, found.st_size
        finally:
            os.close(file)

    def _top(self) -> int:
        with self._lock:
            if not self._closing.alive:
                raise OSError(errno.ESHUTDOWN, "the updater let go of it")
            return os.dup(self.descriptor)

    def _pieces(self, path: str, file: int, *, offset: int, length: int) -> Iterator[bytes]:
        got = 0
        while got < length:
            piece = os.pread(file, min(_READ_BYTES, length - got), offset + got)
            if not piece:
                raise SourceError(
                    f"{self._named(path)}: ended at {offset + got} bytes while it was read, expected {offset + length}; "
                    "not used",
                    code="source.bad-range",
                )
            got += len(piece)
            with self._lock:
                self._received_bytes += len(piece)
            yield piece

    def _explained(self, path: str, err: OSError) -> SourceError:
        what, reason = self._named(path), err.strerror or str(err)
        if err.errno in _GONE or (err.errno in _ABSENT and not self._is_present()):
            return SourceError(
                f"{what}: {reason}; the medium was removed or cannot be read", code="source.vanished"
            )
        if err.errno == errno.ENOENT:
            return SourceRefusedError(f"{what}: not on the medium", status=404)
        if err.errno in (errno.EACCES, errno.EPERM):
            return SourceError(
                f"{what}: the updater's user may not read it ({reason}); mount the medium so that every user may read",
            )
        return SourceError(f"{what}: {reason}; not opened", code="source.path", retryable=False)

    def _named(self, path: str) -> str:
        return f"{self._name}: {path}"


class _NotRegularError(Exception):
    """What was found in place of a regular file."""


_KINDS: Final = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise _NotRegularError(_KINDS.get(stat.S_IFMT(mode), "something else"))


def _open_folder(name: str, folder: int) -> int:
    """The directory `name` in `folder`; a link to one is none."""
    try:
        return os.open(name, _FOLDER_FLAGS, dir_fd=folder)
    except OSError as err:
        if err.errno in (errno.ENOTDIR, errno.ELOOP):
            mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
            raise _NotRegularError(f"{_KINDS.get(stat.S_IFMT(mode), 'a file')} on the way to it") from err
        raise
