"""The directory of the data sets: what is there, and the few changes that are made to it, each safe against a power cut.

Two programs use it: `tidewaiter-migrate`, which changes it as root, and the updater, which only reads. Files go through
`core.durable`; whole trees through the port `Trees`, because owners, links and clones are no business of a `Disk`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from tidewaiter_core.disk import SYSTEM_DISK, Disk
from tidewaiter_core.durable import load_document, save_document
from tidewaiter_core.errors import StateError

from tidewaiter_updater.dataset import GONE, STALE, TEMPORARY, Arming, Live, Present, SetRecord

logger = logging.getLogger(__name__)

SCHEMA: Final = 1
"""Of the documents here; what the product's data has is called a schema as well, but belongs to the product."""
COMPLETE: Final = "COMPLETE"
LIVE: Final = "LIVE"
USAGE: Final = "USAGE"
DATA: Final = "data"
READABLE: Final = 0o644
DOCUMENT_LIMIT_BYTES: Final = 4096
CLONE_SHARE: Final = 10
"""A copy that shares its blocks takes up to a tenth of the original: what the programs rewrite, and the file system's tables."""

Beat = Callable[[int, int], None]
"""Called with (files, bytes) since the last call, often; raises to end the work."""


class Trees(Protocol):
    """Whole directory trees. Every method raises OSError when the medium refuses."""

    def make(self, folder: Path) -> None:
        """Create a directory that others may enter but not change."""

    def copy(self, source: Path, target: Path, *, beat: Beat) -> None:
        """Copy a directory tree with everything that belongs to it; `target` does not exist yet. Not durable by itself."""

    def mark(self, folder: Path, *, beat: Beat) -> str:
        """A short text that differs whenever anything below `folder` was changed."""

    def used_bytes(self, folder: Path, *, beat: Beat) -> int:
        """What a copy of the tree would take on storage."""

    def shares(self, folder: Path) -> bool:
        """Whether a copy inside `folder` shares its blocks with the original until one of them is written."""

    def sync(self, folder: Path) -> None:
        """Return when the file system that holds `folder` has everything on storage."""

    def remove(self, folder: Path, *, beat: Beat) -> None:
        """Remove a tree; an absent one is fine."""

    def rename(self, source: Path, target: Path) -> None:
        """Give a directory another name in the same directory; `target` does not exist."""


class SetReader:
    """What is in the directory; never changes anything."""

    def __init__(self, folder: Path, *, disk: Disk = SYSTEM_DISK) -> None:
        self.folder = folder
        self.disk = disk

    def data(self, schema: int) -> Path:
        """What the product's mount unit binds."""
        return self.folder / str(schema) / DATA

    def present(self) -> Present:
        """Everything there; a document that cannot be read counts as absent. OSError when the directory cannot be listed."""
        try:
            names = tuple(entry.name for entry in self.disk.entries(self.folder) if entry.is_directory)
        except FileNotFoundError:
            return Present()
        records = {int(name): self.record(name) for name in names if _is_set(name)}
        stale = {name: self.record(name) for name in names if STALE in name and not name.endswith(GONE)}
        return Present(
            live=self._live(),
            sets={schema: record for schema, record in records.items() if record is not None},
            names=names,
            stale={name: record.made_utc if record else "" for name, record in stale.items()},
        )

    def record(self, name: str) -> SetRecord | None:
        """COMPLETE of the set with this name."""
        document = self._document(self.folder / name / COMPLETE)
        if document is None:
            return None
        try:
            made_from = document["from"]
            record = SetRecord(
                schema=int(document["data_schema"]),
                made_from=int(made_from) if made_from is not None else None,
                arming=Arming(txn=str(document["txn"]), armboot=str(document["armboot"])),
                made_utc=str(document["made_utc"]),
            )
        except (KeyError, TypeError, ValueError) as err:
            logger.error("%s: not understood (%s); the set counts as incomplete", self.folder / name, err)  # noqa: TRY400
            return None
        return record if not _is_set(name) or record.schema == int(name) else None

    def measured_bytes(self, live: Live | None) -> int | None:
        """What a copy of the live set was measured to take, None when nobody measured it yet."""
        document = self._document(self.folder / USAGE) or {}
        found = document.get("copy_bytes")
        is_of_live = live is not None and document.get("data_schema") == live.schema
        return found if is_of_live and type(found) is int and found >= 0 else None

    def _live(self) -> Live | None:
        document = self._document(self.folder / LIVE)
        try:
            return (
                Live(schema=int(document["data_schema"]), since_utc=str(document["since_utc"]))
                if document is not None
                else None
            )
        except (KeyError, TypeError, ValueError) as err:
            logger.error("%s: not understood (%s); counts as absent", self.folder / LIVE, err)  # noqa: TRY400
            return None

    def _document(self, path: Path) -> dict[str, Any] | None:
        try:
            return load_document(path, schema=SCHEMA, limit_bytes=DOCUMENT_LIMIT_BYTES, disk=self.disk)
        except StateError as err:
            logger.error("%s; counts as absent", err)  # noqa: TRY400 - the message says all
            return None


class SetStore(SetReader):
    """The directory for the one program that may change it."""

    def __init__(self, folder: Path, *, trees: Trees, disk: Disk = SYSTEM_DISK) -> None:
        super().__init__(folder, disk=disk)
        self.trees = trees

    def temporary(self, schema: int) -> Path:
        """Where a set is put together."""
        return self.folder / f"{schema}{TEMPORARY}"

    def begin(self, schema: int, *, beat: Beat) -> Path:
        """A fresh place to put a set together, without what an interrupted attempt left; returns where its data go."""
        place = self.temporary(schema)
        self.trees.remove(place, beat=beat)
        self.trees.make(place)
        return place / DATA

    def complete(self, record: SetRecord) -> None:
        """The content is durable first, then COMPLETE says so, then the set gets its name; a cut anywhere leaves no half set."""
        place = self.temporary(record.schema)
        self.trees.sync(place)
        document = {
            "data_schema": record.schema,
            "from": record.made_from,
            "txn": record.arming.txn,
            "armboot": record.arming.armboot,
            "made_utc": record.made_utc,
        }
        save_document(place / COMPLETE, document, schema=SCHEMA, mode=READABLE, disk=self.disk)
        self.rename(place.name, str(record.schema))

    def rename(self, old: str, new: str) -> None:
        """Give something in the directory another name; on storage when this returns."""
        self.trees.rename(self.folder / old, self.folder / new)
        self.disk.sync_directory(self.folder)

    def set_aside(self, schema: int) -> str:
        """Give a set that is not to be used another name; returns it. What it holds stays until its time is over."""
        record = self.record(str(schema))
        base = f"{schema}{STALE}{record.arming.txn if record is not None else 'incomplete'}"
        taken, number, name = set(self.present().names), 1, base
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        self.rename(str(schema), name)
        return name

    def mark_live(self, live: Live) -> None:
        """Name the set of the committed release; durable when this returns."""
        document = {"data_schema": live.schema, "since_utc": live.since_utc}
        save_document(self.folder / LIVE, document, schema=SCHEMA, mode=READABLE, disk=self.disk)

    def copy_bytes(self, schema: int, *, beat: Beat) -> int:
        """What a copy of the set would take on storage."""
        used_bytes = self.trees.used_bytes(self.data(schema), beat=beat)
        return used_bytes // CLONE_SHARE if self.trees.shares(self.folder) else used_bytes

    def note_usage(self, live: Live, *, beat: Beat) -> None:
        """Measure the live set, so that an offer can be judged without entering it."""
        copy_bytes = self.copy_bytes(live.schema, beat=beat)
        if copy_bytes != self.measured_bytes(live):
            document = {"data_schema": live.schema, "copy_bytes": copy_bytes}
            save_document(self.folder / USAGE, document, schema=SCHEMA, mode=READABLE, disk=self.disk)

    def remove(self, name: str, *, beat: Beat) -> None:
        """Take the name first, durably: what is half removed must not look like a set."""
        place = self.folder / name
        if not name.endswith((GONE, TEMPORARY)):
            doomed = self.folder / f"{name}{GONE}"
            self.trees.remove(doomed, beat=beat)
            self.rename(name, doomed.name)
            place = doomed
        self.trees.remove(place, beat=beat)


def _is_set(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name
