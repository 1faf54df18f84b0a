"""A directory of data sets on the real file system, and what a whole tree looks like to somebody who compares bits."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data
from tidewaiter_updater.migrate import Boot, Migration
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.set_store import SetStore
from tidewaiter_updater.trees import SystemTrees

from tests.sim.clock import START_UTC, FakeClock

FIRST = Data(writes=1, reads_min=1, reads_max=1, reversible=True)
SECOND = Data(writes=2, reads_min=1, reads_max=2, reversible=True)
BOTH_OK = BootEnv(committed=SlotName.A, ok_a=True, ok_b=True)


def trial_env(*, txn: str = "a" * 16, armboot: str = "1" * 8, left: int = 2) -> BootEnv:
    """Slot B is tried, slot A is committed."""
    return BootEnv(
        committed=SlotName.A,
        ok_a=True,
        ok_b=True,
        trial=SlotName.B,
        left=left,
        txn=txn,
        armboot=armboot,
    )


def snapshot(folder: Path, *, with_numbers: bool = False) -> dict[str, Any]:
    """Everything that belongs to a tree, by name; links by what they lead to.

    Args:
        with_numbers: Inode numbers and change times as well, which a copy cannot keep: for a tree nobody may have touched.
    """
    found: dict[str, Any] = {}
    names: dict[tuple[int, int], list[str]] = {}
    for path in (folder, *sorted(folder.rglob("*"))):
        status = path.lstat()
        name = str(path.relative_to(folder))
        facts: list[Any] = [stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns]
        if stat.S_ISREG(status.st_mode):
            facts += [status.st_size, path.read_bytes()]
        if stat.S_ISLNK(status.st_mode):
            facts.append(os.readlink(path))
        attributes = os.listxattr(path, follow_symlinks=False)
        facts.append({one: os.getxattr(path, one, follow_symlinks=False) for one in sorted(attributes)})
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            names.setdefault((status.st_dev, status.st_ino), []).append(name)
        if with_numbers:
            facts += [status.st_ino, status.st_ctime_ns, status.st_nlink]
        found[name] = facts
    found[""] = sorted(names.values())
    return found


class UnsyncedTrees(SystemTrees):
    """No power is cut here, and a sync of a whole file system waits for everybody who writes to it."""

    def sync(self, folder: Path) -> None: ...


class ToyPrograms:
    """Port Programs: what a test says happens to the copy."""

    def __init__(self, change: Callable[[Path], None] = lambda folder: None) -> None:
        self.change = change
        self.ran: list[tuple[int | None, int]] = []

    def run(self, folder: Path, *, made_from: int | None, schema: int) -> None:
        self.ran.append((made_from, schema))
        self.change(folder)


@dataclass
class SetsWorld:
    """The data partition of one device."""

    folder: Path
    clock: FakeClock = field(default_factory=FakeClock)
    programs: ToyPrograms = field(default_factory=ToyPrograms)
    reserve_bytes: int = 0

    @property
    def store(self) -> SetStore:
        return SetStore(self.folder, trees=UnsyncedTrees())

    def data(self, schema: int) -> Path:
        return self.folder / str(schema) / "data"

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir() if path.is_dir()}

    def run(self, data: Data, env: BootEnv | None, booted: SlotName | None) -> Migration:
        """One run of the root program."""
        return Migration(
            self.store,
            Boot(data=data, built_utc=START_UTC - timedelta(days=1), env=env, booted=booted),
            programs=self.programs,
            clock=self.clock,
            keep=timedelta(days=30),
            reserve_bytes=self.reserve_bytes,
        )

    def born(self) -> SetsWorld:
        """The first boot of a device: an empty set 1, which the product then fills."""
        self.folder.mkdir(exist_ok=True)
        self.run(FIRST, BOTH_OK, SlotName.A).prepare()
        (self.data(1) / "protocols").mkdir()
        (self.data(1) / "protocols/liver.json").write_text('{"flow": 3}')
        (self.data(1) / "settings").write_text("volume=1\n")
        return self

    def try_second(self, env: BootEnv | None = None) -> None:
        """A trial boot of the release with schema 2."""
        self.run(SECOND, env or trial_env(), SlotName.B).prepare()
