"""Store and forward: what the server must hear of, one file per item, until the server has it.

Invariants:
1. An item that `put` returned for survives a power cut; a final item (a closed action) is never dropped for room.
2. A torn or foreign file never blocks the queue: it is moved to `quarantine/` and kept as evidence.
3. An item whose id is waiting or was delivered is not queued again, so a caller may repeat `put` after a restart.
4. Delivery is at least once: a cut between the server's answer and `done` sends the item again with the same id.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tidewaiter_core.durable import Disk, SystemDisk, load_document, save_document, write_atomic
from tidewaiter_core.errors import StateError
from tidewaiter_core.model import Sha256

from tidewaiter_agent.errors import OutboxFullError
from tidewaiter_agent.outbox_item import BUDGETS, SCHEMA, Item, ItemClass, decode, encode

logger = logging.getLogger(__name__)

DEAD_LIMIT_ITEMS = 64
DELIVERED_LIMIT_IDS = 256


class OutboxDisk(Disk, Protocol):
    """What the outbox does to the medium besides writing; a test replaces it to kill at every operation."""

    def unlink(self, path: Path) -> None: ...


class SystemOutboxDisk(SystemDisk):
    """The real medium."""

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    id: str
    size_bytes: int
    group: str
    final: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassStats:
    """Fill of one class."""

    items: int
    bytes: int
    dropped: int


class Outbox:
    """All queues of the agent. Thread-safe; bodies stay on the medium until they are sent."""

    def __init__(
        self, directory: Path, *, on_finding: Callable[[str, str], None], disk: OutboxDisk | None = None
    ) -> None:
        """Read what is waiting in `directory`.

        Args:
            on_finding: Told (code, text) of quarantined, dead and dropped items, for the audit chain.

        Raises:
            StateError: A folder cannot be made, or the ledger of delivered ids is unreadable; nothing is touched.
        """
        self._directory = directory
        self._on_finding = on_finding
        self._disk = disk or SystemOutboxDisk()
        self._lock = threading.RLock()
        self._wake: Callable[[], None] = lambda: None
        _make_folders(directory)
        ledger = load_document(directory / "ledger.json", schema=SCHEMA) or {}
        self._delivered: list[str] = [str(entry) for entry in ledger.get("delivered", [])]
        self._dropped: dict[str, int] = {str(k): int(v) for k, v in ledger.get("dropped", {}).items()}
        # Beyond every file that is there, also one that a newer program wrote and this one does not understand.
        self._last_seq = {kind: _highest(directory / kind) for kind in ItemClass}
        self._queues: dict[ItemClass, dict[int, _Entry]] = {kind: self._scan(kind) for kind in ItemClass}

    def on_put(self, wake: Callable[[], None]) -> None:
        """Who to wake when something new is waiting."""
        self._wake = wake

    def put(self, item: Item) -> bool:
        """Make `item` durable; False if this id is waiting or was delivered already.

        Raises:
            OutboxFullError: At the budget, and the item is neither final nor is there one to drop.
            StateWriteError: The medium refused; nothing changed.
        """
        data = encode(item)
        with self._lock:
            queue = self._queues[item.kind]
            if item.id in self._delivered or any(entry.id == item.id for entry in queue.values()):
                return False
            self._make_room(item, len(data))
            seq = self._last_seq[item.kind] + 1
            path = self._directory / item.kind / f"{seq:016d}.json"
            write_atomic(path, data, disk=self._disk)
            self._last_seq[item.kind] = seq
            queue[seq] = _Entry(path, item.id, len(data), item.group, item.final)
            if item.group:
                for older in [
                    n
                    for n, entry in queue.items()
                    if entry.group == item.group and n != seq and not entry.final
                ]:
                    self._remove(item.kind, older)
        self._wake()
        return True

    def head(self, kind: ItemClass, limit: int = 1) -> list[tuple[int, Item]]:
        """The oldest items of a class; unreadable ones are quarantined on the way."""
        found: list[tuple[int, Item]] = []
        with self._lock:
            for seq in sorted(self._queues[kind]):
                if len(found) == limit:
                    break
                entry = self._queues[kind][seq]
                item = self._read(entry.path, kind)
                if item is None:
                    del self._queues[kind][seq]
                else:
                    found.append((seq, item))
        return found

    def done(self, kind: ItemClass, seq: int) -> None:
        """The server has it. The ledger first: a cut in between must not send a final item a second time."""
        with self._lock:
            entry = self._queues[kind].get(seq)
            if entry is None:
                return
            if entry.final:
                self._delivered = [*self._delivered, entry.id][-DELIVERED_LIMIT_IDS:]
                self._save_ledger()
            self._remove(kind, seq)

    def bury(self, kind: ItemClass, seq: int, reason: str) -> None:
        """The server will never take it: keep it as a dead letter and go on with the next."""
        with self._lock:
            entry = self._queues[kind].pop(seq, None)
            if entry is None:
                return
            dead = self._directory / "dead"
            with contextlib.suppress(FileNotFoundError):
                # The id in the name, because sequence numbers start again when a queue was empty.
                name = f"{kind}-{entry.path.stem}-{Sha256.of(entry.id.encode())[:8]}.json"
                self._disk.replace(entry.path, dead / name)
            for old in sorted(dead.iterdir(), key=lambda path: path.stat().st_mtime)[:-DEAD_LIMIT_ITEMS]:
                self._disk.unlink(old)
        self._on_finding(
            "outbox.dead-letter", f"{kind} {entry.id}: {reason}; kept in dead/, the next item goes on"
        )

    def dropped(self, kind: ItemClass) -> int:
        """Items dropped for room since the server last heard of it."""
        return self._dropped.get(kind, 0)

    def reported_dropped(self, kind: ItemClass, count: int) -> None:
        """The server has heard of `count` dropped items."""
        with self._lock:
            if count:
                self._dropped[kind] = max(0, self._dropped.get(kind, 0) - count)
                self._save_ledger()

    def stats(self) -> dict[ItemClass, ClassStats]:
        """Fill of every class."""
        with self._lock:
            return {
                kind: ClassStats(
                    items=len(queue),
                    bytes=sum(entry.size_bytes for entry in queue.values()),
                    dropped=self._dropped.get(kind, 0),
                )
                for kind, queue in self._queues.items()
            }

    def kept(self, folder: str) -> int:
        """Files in `dead` or `quarantine`."""
        return sum(1 for _ in (self._directory / folder).iterdir())

    def _make_room(self, item: Item, size_bytes: int) -> None:
        queue, budget = self._queues[item.kind], BUDGETS[item.kind]
        while (
            len(queue) >= budget.items
            or sum(e.size_bytes for e in queue.values()) + size_bytes > budget.bytes
        ):
            victim = next((seq for seq in sorted(queue) if not queue[seq].final), None)
            if victim is None:
                if item.final:
                    return
                raise OutboxFullError(
                    f"outbox {item.kind}: {len(queue)} items wait, the budget is {budget.items}, and all of them are final; "
                    f"{item.id} is not queued"
                )
            self._dropped[item.kind] = self._dropped.get(item.kind, 0) + 1
            self._save_ledger()
            self._remove(item.kind, victim)

    def _remove(self, kind: ItemClass, seq: int) -> None:
        entry = self._queues[kind].pop(seq, None)
        if entry is not None:
            self._disk.unlink(entry.path)

    def _save_ledger(self) -> None:
        document = {"delivered": self._delivered, "dropped": self._dropped}
        save_document(self._directory / "ledger.json", document, schema=SCHEMA, disk=self._disk)

    def _scan(self, kind: ItemClass) -> dict[int, _Entry]:
        queue: dict[int, _Entry] = {}
        for path in sorted((self._directory / kind).iterdir()):
            if path.name.startswith("."):
                # A temporary file of a write that was cut; its item was never promised to anybody.
                path.unlink(missing_ok=True)
                continue
            item = self._read(path, kind)
            if item is not None and item.final and item.id in self._delivered:
                # Delivered, then the power was cut before the file was gone.
                self._disk.unlink(path)
            elif item is not None:
                queue[int(path.stem)] = _Entry(path, item.id, path.stat().st_size, item.group, item.final)
        return queue

    def _read(self, path: Path, kind: ItemClass) -> Item | None:
        try:
            return decode(_checked_name(path).read_bytes(), kind)
        except StateError as err:
            logger.warning("outbox item left alone path=%s: %s", path, err)
        except (OSError, ValueError) as err:
            target = self._directory / "quarantine" / f"{kind}-{path.name}"
            with contextlib.suppress(OSError):
                self._disk.replace(path, target)
            self._on_finding(
                "outbox.torn-item", f"{kind}/{path.name}: unreadable ({err}); moved to quarantine/"
            )
        return None


def _checked_name(path: Path) -> Path:
    if path.stem.isascii() and path.stem.isdigit() and path.suffix == ".json":
        return path
    raise ValueError("not a name of the outbox")


def _make_folders(directory: Path) -> None:
    try:
        for name in (*ItemClass, "dead", "quarantine"):
            (directory / name).mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise StateError(
            f"{directory}: expected a folder for what is still to be sent ({err.strerror or err}); "
            "the agent does not start, nothing that waits there was touched"
        ) from err


def _highest(directory: Path) -> int:
    return max((int(path.stem) for path in directory.glob("[0-9]*.json") if path.stem.isdecimal()), default=0)
