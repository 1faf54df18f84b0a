"""Port tidewaiter_updater.set_store.Trees over the simulated file system: trees, step by step, nothing durable by itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tidewaiter_updater.set_store import Beat

from tests.sim.storage.disk import SimDisk
from tests.sim.storage.log import Log
from tests.sim.storage.units import FileLength, FileWrite, Moved, Names

FILE_LIMIT_BYTES = 1 << 16


class SimTrees:
    """What a tree holds are files; owners and attributes are not modeled."""

    def __init__(self, storage: Log) -> None:
        self._storage = storage
        self._disk = SimDisk(storage)

    def make(self, folder: Path) -> None:
        self._disk.make_directory(folder)

    def copy(self, source: Path, target: Path, *, beat: Beat) -> None:
        self.make(target)
        for path, is_folder in self._below(source):
            place = target / path.relative_to(source)
            if is_folder:
                self.make(place)
            else:
                fd = self._disk.create(place)
                self._disk.write(fd, self._disk.read(path, FILE_LIMIT_BYTES))
                self._disk.close(fd)

    def mark(self, folder: Path, *, beat: Beat) -> str:
        seen = hashlib.sha256()
        for path, is_folder in self._below(folder):
            seen.update(
                f"{path}\0".encode() + (b"" if is_folder else self._disk.read(path, FILE_LIMIT_BYTES))
            )
        return seen.hexdigest()

    def used_bytes(self, folder: Path, *, beat: Beat) -> int:
        return sum(1 for _ in self._below(folder))

    def shares(self, folder: Path) -> bool:
        return False

    def sync(self, folder: Path) -> None:
        kinds = (FileWrite, FileLength, Names, Moved)
        self._storage.flush("syncfs", lambda unit: isinstance(unit, kinds))

    def remove(self, folder: Path, *, beat: Beat) -> None:
        if not self._disk.exists(folder):
            return
        for path, _ in reversed(list(self._below(folder))):
            self._disk.remove(path)
        self._disk.remove(folder)

    def rename(self, source: Path, target: Path) -> None:
        if not self._disk.exists(source) or self._disk.exists(target):
            raise FileExistsError(f"{source} -> {target}")
        self._storage.issue(f"rename {source.name} to {target.name}", [Moved(str(source), str(target))])

    def _below(self, folder: Path) -> Iterator[tuple[Path, bool]]:
        for entry in self._disk.entries(folder):
            yield folder / entry.name, entry.is_directory
            if entry.is_directory:
                yield from self._below(folder / entry.name)
