"""One medium (a stick, a folder on it) as `export` writes it: whole files or none, resumable, nothing of others touched.

`TIDEWAITER/metadata/*.json` and `TIDEWAITER/targets/<hash-prefixed paths>`. The medium may be FAT: no mode, no link, no owner
is set, and a file must stay below 4 GiB. A file is written as `<name>.part`, synced, renamed; what an interrupted export left
is compared with its source and continued.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tidewaiter_release.errors import InputError, MediumError

TOP_NAME = "TIDEWAITER"
_PIECE_BYTES = 2**20
_SYNC_EVERY_BYTES = 16 * 2**20
_FAT_LIMIT_BYTES = 2**32 - 1
_FAT = frozenset({"vfat", "msdos"})

Tick = Callable[[int], None]
"""Called with the number of bytes just done."""


class Medium:
    """The TIDEWAITER folder of one medium."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.top = directory / TOP_NAME
        self.metadata = self.top / "metadata"
        self.targets = self.top / "targets"

    def check(self) -> None:
        """Refuse what cannot be a medium.

        Raises:
            MediumError: No directory, a link where a folder belongs, or files of somebody else below TIDEWAITER.
        """
        if not self.directory.is_dir():
            raise MediumError(f"{self.directory}: no directory; is the medium mounted? Nothing was written")
        for path in (self.top, self.metadata, self.targets):
            if path.is_symlink() or (path.exists() and not path.is_dir()):
                raise MediumError(f"{path}: expected a folder, found something else; nothing was written")
        if not self.top.is_dir():
            return
        for path in sorted(self.top.rglob("*")):
            inside = path.relative_to(self.top).parts
            strange = path.is_symlink() or not (path.is_dir() or path.is_file())
            if strange or inside[0] not in ("metadata", "targets") or (len(inside) == 1 and path.is_file()):
                raise MediumError(
                    f"{path}: was not made by an export; move it away or take another medium. Nothing was written"
                )

    def free_bytes(self) -> int:
        """What a user may still write there."""
        try:
            found = os.statvfs(self.directory)
        except OSError as err:
            raise MediumError(f"{self.directory}: cannot be asked for its free space: {err}") from err
        return found.f_bavail * found.f_frsize

    def part_bytes(self, target: Path) -> int:
        """What an interrupted export left of the target at this place."""
        place = self.targets / target
        with contextlib.suppress(OSError):
            return place.with_name(place.name + ".part").stat().st_size
        return 0

    def largest_file_bytes(self) -> int | None:
        """The most bytes one file may have there; None if that is no question."""
        return _FAT_LIMIT_BYTES if _file_system(self.directory) in _FAT else None

    def holds(self, place: Path, *, length: int, sha256: str) -> bool:
        """Whether exactly this file is there."""
        with contextlib.suppress(OSError):
            if place.is_symlink() or place.stat().st_size != length:
                return False
            with place.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        return False

    def copy(self, source: Path, place: Path, *, length: int, sha256: str, tick: Tick) -> None:
        """Copy a file to its place, continue what an earlier attempt left, read it back.

        Raises:
            MediumError: The medium refused, or returned other bytes than were written.
            InputError: The source is not the file that was signed.
        """
        part = place.with_name(place.name + ".part")
        try:
            self.make_directory(place.parent)
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as err:
            raise MediumError(f"{place}: cannot be written: {err}") from err
        try:
            with source.open("rb") as reader:
                _copy(reader.read, fd, length=length, tick=tick)
            _check(fd, place, source, length=length, sha256=sha256)
            part.replace(place)
            sync_directory(place.parent)
        except OSError as err:
            raise MediumError(
                f"{place}: writing failed: {err}; the same command continues where it stopped"
            ) from err
        finally:
            os.close(fd)

    def write(self, place: Path, data: bytes) -> None:
        """Put one small file in place, whole or not at all.

        Raises:
            MediumError: The medium refused.
        """
        part = place.with_name(place.name + ".part")
        try:
            self.make_directory(place.parent)
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                done = 0
                while done < len(data):
                    done += os.write(fd, data[done:])
                os.fsync(fd)
            finally:
                os.close(fd)
            part.replace(place)
            sync_directory(place.parent)
        except OSError as err:
            raise MediumError(f"{place}: writing failed: {err}; the same command can be repeated") from err

    def make_directory(self, directory: Path) -> None:
        """Make a folder below the medium, durable."""
        if directory.is_symlink():
            raise MediumError(f"{directory}: a link where a folder belongs; nothing was written through it")
        if not directory.is_dir():
            self.make_directory(directory.parent)
            directory.mkdir()
            sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Make the entries of a folder durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _copy(read: Callable[[int], bytes], fd: int, *, length: int, tick: Tick) -> None:
    """Write the source from the first byte on that the file does not hold yet."""
    done = unsynced = 0
    same = True
    while piece := read(_PIECE_BYTES):
        same = same and os.pread(fd, len(piece), done) == piece
        if not same:
            written = 0
            while written < len(piece):
                written += os.pwrite(fd, piece[written:], done + written)
            unsynced += len(piece)
        done += len(piece)
        tick(len(piece))
        if unsynced >= _SYNC_EVERY_BYTES:  # so that the progress is the medium's, not the page cache's
            os.fdatasync(fd)
            unsynced = 0
        if done > length:
            break
    os.ftruncate(fd, done)
    os.fsync(fd)


def _check(fd: int, place: Path, source: Path, *, length: int, sha256: str) -> None:
    """Read the file back, past the page cache as far as the kernel allows, and compare."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if _sha256(_pieces(fd)) == sha256 and os.fstat(fd).st_size == length:
        return
    with source.open("rb") as file:
        signed = os.fstat(file.fileno()).st_size == length and _sha256(_pieces(file.fileno())) == sha256
    os.ftruncate(fd, 0)  # nothing to continue from
    if not signed:
        raise InputError(f"{source}: is not the file that was signed; {place.name} was not exported")
    raise MediumError(f"{place}: the medium returns other bytes than were written; take another one")


def _pieces(fd: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(fd, _PIECE_BYTES, offset):
        offset += len(piece)
        yield piece


def _sha256(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _file_system(directory: Path) -> str:
    """The type of the file system, "" if it cannot be found out."""
    with contextlib.suppress(OSError, ValueError):
        device = directory.stat().st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                return after.split()[0]
    return ""
