"""Files on the EFI system partition: FAT, where a rename is two writes of directory entries that a power cut may part.

After a cut the old name may be there, the new one, both or neither. Both means that two names may lead to the same clusters:
removing one would free what the other needs. So files are recognized by what their names say, and of two that may be
the same nothing is removed here; they are moved aside, which touches names only, and the file system check of the next boot
decides.

Source: update-engine.md section 8.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Final

from tidewaiter_core.disk import SYSTEM_DISK, Disk
from tidewaiter_core.model import Sha256

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.medium import aligned_buffer

ENTRIES: Final = "EFI/Linux"
"""What systemd-boot offers."""
PRIVATE: Final = "EFI/tidewaiter"
"""What it does not look at: records, images that are not in force yet, files moved aside."""
PIECE_BYTES: Final = 1024 * 1024
SECTOR_BYTES: Final = 512


class Esp:
    """The mounted partition. Every method raises BootEnvError where the medium refuses; changes are on storage on return."""

    def __init__(self, root: Path, *, disk: Disk = SYSTEM_DISK) -> None:
        self.name = str(root)
        self._root = root
        self._disk = disk

    def check_layout(self) -> None:
        """Refuse a directory that is not the mounted partition of an image with this loader; BootEnvError boot.env-layout."""
        for folder in (ENTRIES, PRIVATE):
            try:
                self._disk.entries(self._root / folder)
            except OSError as err:
                raise BootEnvError(
                    f"{self._root / folder}: expected a folder of the EFI system partition, found {err.strerror}; "
                    "the updater does not start",
                    code="boot.env-layout",
                ) from err

    def files(self, folder: str) -> dict[str, int]:
        """Names and sizes in bytes."""
        with self._refusing(f"listing {folder}"):
            return {
                entry.name: entry.size_bytes
                for entry in self._disk.entries(self._root / folder)
                if not entry.is_directory
            }

    def others_with(self, stem: str, name: str) -> list[str]:
        """Files whose names contain `stem`, apart from `name`: after a cut they may lead to the same clusters."""
        return [
            other
            for folder in (ENTRIES, PRIVATE)
            for other in self.files(folder)
            if stem in other and other != name
        ]

    def free_name(self, stem: str) -> str:
        """A name in PRIVATE that nothing has."""
        taken = self.files(PRIVATE)
        number = 0
        while f"{stem}.{number}" in taken:
            number += 1
        return f"{stem}.{number}"

    def free_bytes(self) -> int:
        with self._refusing("asking for free space"):
            return self._disk.free_bytes(self._root)

    def write(self, path: str, pieces: Iterable[bytes]) -> None:
        """Make a new file, whole and on storage."""
        target = self._root / path
        with self._refusing(f"writing {path}"):
            fd = self._disk.create(target)
            try:
                self._disk.truncate(fd, 0)
                for piece in pieces:
                    view = memoryview(piece)
                    while view:
                        view = view[self._disk.write(fd, bytes(view)) :]
                self._disk.sync(fd)
            finally:
                self._disk.close(fd)
            self._disk.sync_directory(target.parent)

    def fill(self, path: str, blocks: Iterable[tuple[int, bytes]], *, length: int, sync_bytes: int) -> None:
        """Put blocks at their offsets into a file that may be there, and leave the rest of its `length` bytes as it is.

        Blocks are on storage every `sync_bytes`, and all of them when this returns or when `blocks` raises. Without a first block
        no file is made.
        """
        target = self._root / path
        source = iter(blocks)
        ready = list(itertools.islice(source, 1))
        with self._refusing(f"writing {path}"):
            fd = self._disk.create(target)
            try:
                if self._disk.length(fd) > length:
                    self._disk.truncate(fd, length)
                self._disk.sync_directory(target.parent)
                unsynced = 0
                for offset, block in itertools.chain(ready, source):
                    done = 0
                    while done < len(block):
                        done += self._disk.write_at(fd, block[done:], offset + done)
                    unsynced += len(block)
                    if unsynced >= sync_bytes:
                        self._disk.sync(fd)
                        unsynced = 0
            finally:
                try:
                    self._disk.sync(fd)
                finally:
                    self._disk.close(fd)

    def pieces(self, path: str) -> Generator[bytes, None, None]:
        """The content from the medium, in pieces."""
        with self._refusing(f"reading {path}"):
            fd = self._disk.open(self._root / path)
            try:
                offset = 0
                while piece := self._disk.read_at(fd, PIECE_BYTES, offset):
                    yield piece
                    offset += len(piece)
            finally:
                self._disk.close(fd)

    def digest(self, path: str) -> Sha256:
        """SHA-256 of what the medium holds."""
        total = hashlib.sha256()
        for piece in self.pieces(path):
            total.update(piece)
        return Sha256(total.hexdigest())

    def rename(self, old: str, new: str) -> None:
        """Give the file `old` the free name `new`."""
        with self._refusing(f"renaming {old} to {new}"):
            self._disk.replace(self._root / old, self._root / new)
            for folder in {(self._root / new).parent, (self._root / old).parent}:
                self._disk.sync_directory(folder)

    def remove(self, path: str) -> None:
        with self._refusing(f"removing {path}"):
            self._disk.remove(self._root / path)
            self._disk.sync_directory((self._root / path).parent)

    @contextlib.contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise BootEnvError(f"{self.name}: {what} failed: {err.strerror or err}") from err


class DirectEsp(Esp):
    """The real partition: read back past the page cache."""

    def pieces(self, path: str) -> Generator[bytes, None, None]:
        with self._refusing(f"reading {path}"), aligned_buffer(PIECE_BYTES) as buffer:
            fd = os.open(self._root / path, os.O_RDONLY | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                offset = 0
                while done := os.preadv(fd, [buffer], offset):
                    yield buffer[:done]
                    offset += done
                    if done % SECTOR_BYTES:
                        return  # the end of the file; a direct read from an odd offset may be an error instead of no bytes
            finally:
                os.close(fd)
