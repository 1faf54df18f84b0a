"""Directory trees on the real file system: port `Trees`. How one is copied is `tree_copy`'s business.

The walk goes by descriptors, so that neither a path of any length nor a link that somebody plants leads it astray; what it
remembers is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from tidewaiter_updater.errors import DataStepError
from tidewaiter_updater.set_store import Beat
from tidewaiter_updater.syncfs import syncfs
from tidewaiter_updater.tree_copy import DEPTH_LIMIT, FICLONE, Copy, Links, dress, opened


class SystemTrees:
    """The kernel's file system."""

    def make(self, folder: Path) -> None:
        folder.mkdir(mode=0o755)
        folder.chmod(0o755)

    def copy(self, source: Path, target: Path, *, beat: Beat) -> None:
        target.mkdir(mode=0o700)
        with opened(source) as old, opened(target) as new:
            Copy(new, beat).folder(old, new, "", depth=0)
            dress(old, new)

    def mark(self, folder: Path, *, beat: Beat) -> str:
        seen = hashlib.sha256()
        with opened(folder) as fd:
            for name, status in _walk(fd, beat):
                facts = (status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid)
                times = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                seen.update(os.fsencode(name) + b"\0" + repr((facts, times)).encode() + b"\0")
        return seen.hexdigest()

    def used_bytes(self, folder: Path, *, beat: Beat) -> int:
        total, links = 0, Links()
        with opened(folder) as fd:
            for name, status in _walk(fd, beat):
                if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                    if links.first(status) is not None:
                        continue
                    links.note(status, name)
                total += status.st_blocks * 512
        return total

    def shares(self, folder: Path) -> bool:
        """Tried with two files that have no name: what a file system is called says little."""
        try:
            first = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            second = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            try:
                os.write(first, bytes(4096))
                fcntl.ioctl(second, FICLONE, first)
            except OSError:
                return False
            finally:
                os.close(second)
        finally:
            os.close(first)
        return True

    def sync(self, folder: Path) -> None:
        with opened(folder) as fd:
            syncfs(fd)

    def remove(self, folder: Path, *, beat: Beat) -> None:
        with contextlib.suppress(FileNotFoundError):
            with opened(folder) as fd:
                _empty(fd, fd, beat, depth=0)
            folder.rmdir()

    def rename(self, source: Path, target: Path) -> None:
        # A plain rename would silently replace an empty directory.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _walk(root: int, beat: Beat) -> Iterator[tuple[str, os.stat_result]]:
    """Every name below `root` and `root` itself, in an order that is the same for the same tree."""
    yield ".", os.fstat(root)
    yield from _below(root, "", beat, depth=0)


def _below(fd: int, path: str, beat: Beat, *, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    if depth > DEPTH_LIMIT:
        raise DataStepError(
            f"{path[:200]}...: deeper than {DEPTH_LIMIT} directories; the data are not copied",
            code="data.limit",
        )
    with os.scandir(fd) as listing:
        for entry in listing:
            status = entry.stat(follow_symlinks=False)
            yield f"{path}{entry.name}", status
            beat(0, 0)
            if stat.S_ISDIR(status.st_mode):
                with opened(entry.name, at=fd) as inner:
                    yield from _below(inner, f"{path}{entry.name}/", beat, depth=depth + 1)


def _empty(root: int, fd: int, beat: Beat, *, depth: int) -> None:
    """Remove everything below `fd`. A tree deeper than a copy may be is hung up at the top, so that no tree is too deep to go."""
    again = True
    while again:  # what is removed while a listing runs may hide a neighbor from it
        again = False
        with os.scandir(fd) as listing:
            for entry in listing:
                again = True
                beat(0, 0)
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
                elif depth >= DEPTH_LIMIT:
                    os.rename(entry.name, f".deep-{entry.inode()}", src_dir_fd=fd, dst_dir_fd=root)
                else:
                    with opened(entry.name, at=fd) as inner:
                        _empty(root, inner, beat, depth=depth + 1)
                    os.rmdir(entry.name, dir_fd=fd)
