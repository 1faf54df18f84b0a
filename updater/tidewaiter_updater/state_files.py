"""The state directory on the real file system: port Documents over core.durable.

A damaged document is moved aside as evidence and counts as absent. One that a newer program wrote counts as absent too and is
left alone as long as nothing has to be written; then it is moved aside, never overwritten.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tidewaiter_core.durable import load_document, quarantine, save_document, write_atomic
from tidewaiter_core.errors import StateError

logger = logging.getLogger(__name__)

SCHEMA: Final = 1
BUDGET_BYTES: Final = 160 * 1024 * 1024
RELEASES_KEPT: Final = 8


class StateFiles:
    """Documents `<name>.json` and blobs below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._foreign: set[str] = set()

    def load(self, name: str) -> dict[str, Any] | None:
        path = self._path(name)
        try:
            document = load_document(path, schema=SCHEMA)
        except StateError as err:
            if name not in self._foreign:
                logger.error("%s; treated as absent", err)  # noqa: TRY400 - the message says all
            self._foreign.add(name)
            return None
        self._foreign.discard(name)
        return document

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        path = self._path(name)
        if name in self._foreign and path.exists():
            aside = quarantine(path)
            logger.warning("%s: kept as %s before a new document is written", path, aside.name)
        self._foreign.discard(name)
        save_document(path, document, schema=SCHEMA)

    def unusable(self) -> str | None:
        """Which documents cannot be read by this program, None when all can."""
        for name in sorted(path.stem for path in self._folder.glob("*.json")):
            if not name.startswith("."):
                self.load(name)
        return f"cannot be read: {', '.join(sorted(self._foreign))}" if self._foreign else None

    def read_blob(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as err:
            logger.error("%s: cannot be read (%s); treated as absent", self._folder / name, err.strerror)  # noqa: TRY400
            return None

    def write_blob(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        write_atomic(path, data)
        self._forget_old(path.parent)

    def free_bytes(self) -> int:
        used = sum(path.stat().st_size for path in self._folder.rglob("*") if path.is_file())
        return max(0, min(BUDGET_BYTES - used, self._free_on_disk()))

    def _free_on_disk(self) -> int:
        stat = os.statvfs(self._folder)
        return stat.f_bavail * stat.f_frsize

    def _forget_old(self, folder: Path) -> None:
        """Keep the newest release documents; older ones belong to no slot any more."""
        blobs = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in blobs[:-RELEASES_KEPT]:
            path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
