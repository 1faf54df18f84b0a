"""The state directory on the real file system: port Documents over core.durable.

A damaged document is moved aside as evidence and counts as absent. One that a newer program wrote counts as absent too and is
left alone as long as nothing has to be written; then it is moved aside, never overwritten.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from tidewaiter_core.disk import SYSTEM_DISK, Disk
from tidewaiter_core.durable import (
    DOCUMENT_LIMIT_BYTES,
    load_document,
    make_directory,
    quarantine,
    save_document,
    write_atomic,
)
from tidewaiter_core.errors import StateError

logger = logging.getLogger(__name__)

SCHEMA: Final = 1
BUDGET_BYTES: Final = 160 * 1024 * 1024
RELEASES_KEPT: Final = 8


class StateFiles:
    """Documents `<name>.json` and blobs below one folder."""

    def __init__(self, folder: Path, *, disk: Disk = SYSTEM_DISK) -> None:
        self._folder = folder
        self._disk = disk
        make_directory(folder, disk=disk)
        self._foreign: set[str] = set()

    def load(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        try:
            document = load_document(path, schema=SCHEMA, disk=self._disk)
        except StateError as err:
            if name not in self._foreign:
                logger.error("%s; treated as absent", err)  # noqa: TRY400 - the message says all
            self._foreign.add(name)
            return None
        self._foreign.discard(name)
        return document

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        path = self._path(name)
        if name in self._foreign and self._disk.exists(path):
            aside = quarantine(path, disk=self._disk)
            logger.warning("%s: kept as %s before a new document is written", path, aside.name)
        self._foreign.discard(name)
        save_document(path, document, schema=SCHEMA, disk=self._disk)

    def unusable(self) -> str | None:
        """Which documents cannot be read by this program, None when all can."""
        for entry in self._disk.entries(self._folder):
            name = entry.name.removesuffix(".json")
            if name != entry.name and not name.startswith("."):
                self.load(name)
        return f"cannot be read: {', '.join(sorted(self._foreign))}" if self._foreign else None

    def read_blob(self, name: str) -> bytes | None:
        try:
            return self._disk.read(self._folder / name, DOCUMENT_LIMIT_BYTES)
        except FileNotFoundError:
            return None
        except OSError as err:
            logger.error("%s: cannot be read (%s); treated as absent", self._folder / name, err.strerror)  # noqa: TRY400
            return None

    def write_blob(self, name: str, data: bytes, *, keep: Collection[str] = ()) -> None:
        path = self._folder / name
        make_directory(path.parent, disk=self._disk)
        write_atomic(path, data, disk=self._disk)
        self._forget_old(path.parent, keep={path, *(self._folder / kept for kept in keep)})

    def free_bytes(self) -> int:
        try:
            free = self._disk.free_bytes(self._folder)
            return max(0, min(BUDGET_BYTES - self._used(self._folder), free))
        except OSError as err:
            raise StateError(
                f"{self._folder}: its free space cannot be found ({err.strerror or err}); nothing was changed"
            ) from err

    def _used(self, folder: Path) -> int:
        return sum(
            self._used(folder / entry.name) if entry.is_directory else entry.size_bytes
            for entry in self._disk.entries(folder)
        )

    def _forget_old(self, folder: Path, *, keep: set[Path]) -> None:
        """Of the blobs that nobody needs keep the newest; which those are is a guess where the clock was set in between."""
        try:
            blobs = [entry for entry in self._disk.entries(folder) if entry.name.endswith(".json")]
            blobs = [entry for entry in blobs if folder / entry.name not in keep]
            blobs.sort(key=lambda entry: entry.changed_ns)
            for entry in blobs[: 1 - RELEASES_KEPT]:  # the one just written is kept beside them
                self._disk.remove(folder / entry.name)
        except OSError as err:
            # What had to be written is written; the next write tidies again.
            logger.warning("%s: old documents stay: %s", folder, err)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
