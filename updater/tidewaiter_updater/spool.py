"""Files of a release that are read many times (the index, the head of a patch): fetched once into a folder of the state.

A file is kept under the SHA-256 that the signed release names, and hashed against it each time it is opened: it is a hint that
proves itself, like everything in the state directory (I3). Nothing of it is parsed before.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidewaiter_core.disk import Disk
from tidewaiter_core.errors import StateWriteError
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.index import ReadAt

from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.sources import SPAN_LIMIT_BYTES, Source

_WINDOW_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledPart:
    """The beginning of a target, or all of it."""

    target: str
    """Where the repository serves it, hash prefix included."""
    length: int
    sha256: Sha256
    """Of these `length` bytes."""
    suffix: str
    """Of the file that keeps it."""


class Spool:
    """A folder of such files."""

    def __init__(self, folder: Path, *, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk

    def has(self, part: SpooledPart, step: Callable[[], None] = lambda: None) -> bool:
        """Whether the file is here and is what was signed, by hashing it."""
        found = hashlib.sha256()
        try:
            fd = self._disk.open(self._path(part))
            try:
                if self._disk.length(fd) != part.length:
                    return False
                for offset in range(0, part.length, _WINDOW_BYTES):
                    found.update(self._disk.read_at(fd, _WINDOW_BYTES, offset))
                    step()
            finally:
                self._disk.close(fd)
        except OSError:
            return False
        return found.hexdigest() == part.sha256

    @contextlib.contextmanager
    def opened(self, part: SpooledPart, source: Source, step: Callable[[], None]) -> Iterator[ReadAt]:
        """Read the file by windows, after fetching it if it is not here or not intact.

        Raises:
            SourceError: It could not be fetched, or is not what the release signed (source.bad-bytes).
            StateWriteError: No room for it.
        """
        if not self.has(part, step):
            self._fetch(part, source, step)
        disk = self._disk
        fd = disk.open(self._path(part))
        try:
            yield lambda offset, length: disk.read_at(fd, length, offset)
        finally:
            disk.close(fd)

    def _path(self, part: SpooledPart) -> Path:
        return self._folder / f"{part.sha256}{part.suffix}"

    def _fetch(self, part: SpooledPart, source: Source, step: Callable[[], None]) -> None:
        path = self._path(part)
        unfinished = path.with_suffix(".part")
        try:
            fd = self._disk.create(unfinished)
            try:
                self._disk.truncate(fd, 0)
                found = self._receive(part, source, fd, step)
                if found != part.sha256:
                    raise SourceError(
                        f"{part.target}: expected SHA-256 {part.sha256}, found {found} in {part.length} bytes; "
                        "they are not used and nothing was written to a slot",
                        code="source.bad-bytes",
                    )
                self._disk.sync(fd)
            finally:
                self._disk.close(fd)
            self._disk.replace(unfinished, path)
            self._disk.sync_directory(self._folder)
        except OSError as err:
            with contextlib.suppress(OSError):
                self._disk.remove(unfinished)
            raise StateWriteError(
                f"{path}: cannot be written ({err.strerror or err}); nothing was installed"
            ) from err

    def _receive(self, part: SpooledPart, source: Source, fd: int, step: Callable[[], None]) -> str:
        """Write what the source sends to `fd`; returns its SHA-256."""
        digest = hashlib.sha256()
        for offset in range(0, part.length, SPAN_LIMIT_BYTES):
            for piece in source.span(part.target, offset, min(SPAN_LIMIT_BYTES, part.length - offset)):
                digest.update(piece)
                done = 0
                while done < len(piece):
                    done += self._disk.write(fd, piece[done:])
                step()
        return digest.hexdigest()
