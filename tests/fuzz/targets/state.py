"""The state directory after a torn write, a failing medium, a newer program or a person with an editor.

Through the real files: damaged documents are moved aside or count as absent (invariant I3), so nothing at all may be raised.
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tidewaiter_core.disk import SystemDisk
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.journal import Journal, JournalEntry
from tidewaiter_updater.model import FloorValues, SlotRecord
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.state_files import StateFiles

from tests.fuzz.target import Target, require
from tests.sim.clock import FakeClock

_DIGEST = Sha256.of(b"release")
_NAMES = ("journal", "slots", "quarantine", "refusals", "offers")


class _Hasty(SystemDisk):
    """Does not wait for the medium: what is lost in a power cut is the crash explorer's part."""

    def sync(self, fd: int) -> None: ...

    def sync_directory(self, path: Path) -> None: ...


_DISK = _Hasty()


@cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tw-fuzz-state-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _fresh(name: str) -> Path:
    folder = _folder() / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _entry() -> JournalEntry:
    return JournalEntry(
        phase=Phase.TRANSFER,
        digest=_DIGEST,
        target=SlotName.B,
        source="relay",
        since_utc="2026-11-01T08:00:00.000Z",
    )


def _journal(data: bytes) -> bool:
    """Every document of the journal holds the input; all are read, then written."""
    folder = _fresh("journal")
    for name in _NAMES:
        (folder / f"{name}.json").write_bytes(data)
    journal = Journal(StateFiles(folder, disk=_DISK))
    entry = journal.entry()
    if entry is not None:
        entry.hint(quarantined=False)
    found = bool(journal.slots()) + bool(journal.quarantined()) + bool(journal.refusals())
    journal.offered_by(_DIGEST)
    journal.save_entry(_entry())
    journal.save_slot(SlotName.A, _record())
    journal.quarantine("0123456789abcdef", "health.units")
    journal.note_refusal("x", "release.hw")
    require(journal.entry() == _entry(), "the journal cannot be written after this")
    require(journal.slots()[SlotName.A] == _record(), "the slot records cannot be written after this")
    require("0123456789abcdef" in journal.quarantined(), "a release cannot be quarantined after this")
    return entry is not None or found > 0


def _record() -> SlotRecord:
    return SlotRecord(digest=_DIGEST, root=_DIGEST, sequence=3, epoch=1, version="1.0")


def _journal_seeds() -> Iterator[bytes]:
    folder = _fresh("seeds")
    journal = Journal(StateFiles(folder, disk=_DISK))
    journal.save_entry(_entry())
    journal.save_slot(SlotName.A, _record())
    journal.quarantine("0123456789abcdef", "health.units")
    for name in ("journal", "slots", "quarantine"):
        yield (folder / f"{name}.json").read_bytes()
    yield json.dumps({"schema": 2}).encode()


def _floors(data: bytes) -> bool:
    folder = _fresh("floors")
    path = folder / "floor.json"
    path.write_bytes(data)
    store = FloorStore(path, disk=_DISK)
    before = store.effective()
    store.raise_committed(FloorValues(sequence=5, security_epoch=1, time_utc="2026-01-01T00:00:00.000Z"))
    after = store.effective()
    require(after.sequence >= max(5, before.sequence), "the sequence floor sank")
    require(after.security_epoch >= max(1, before.security_epoch), "the epoch floor sank")
    require(after.time_utc >= before.time_utc, "the time floor sank")
    require(FloorStore(path, disk=_DISK).effective() == after, "floors that do not survive a restart")
    require(store.trusted_now(FakeClock()) is not None, "no time to compare with")
    return store.lost is None


def _floor_seeds() -> Iterator[bytes]:
    path = _fresh("floor-seeds") / "floor.json"
    store = FloorStore(path, disk=_DISK)
    store.raise_committed(FloorValues(sequence=9, security_epoch=2, time_utc="2026-11-01T08:00:00.000Z"))
    document = json.loads(path.read_bytes())
    role = {"version": 3, "keys": "ab" * 32}
    document["repositories"] = {"online": dict.fromkeys(("root", "timestamp", "snapshot", "targets"), role)}
    yield path.read_bytes()
    yield json.dumps(document).encode()


TARGETS = (
    Target(
        name="journal",
        what="state documents",
        run=_journal,
        refusals=(),
        seeds=_journal_seeds,
        max_bytes=2048,
        modules=("tidewaiter_updater.journal", "tidewaiter_updater.state_files", "tidewaiter_core.durable"),
    ),
    Target(
        name="floors",
        what="floor.json",
        run=_floors,
        refusals=(),
        seeds=_floor_seeds,
        max_bytes=2048,
        modules=("tidewaiter_updater.floor", "tidewaiter_updater.trust_versions", "tidewaiter_core.durable"),
    ),
)
