"""Mistakes around the product's data sets, each as a store or a way to copy that replaces the product's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tidewaiter_updater.dataset import Arming, SetRecord
from tidewaiter_updater.set_store import DATA, Beat, SetStore

from tests.faults.crash_explorer.data import Sets
from tests.faults.crash_explorer.world import Parts
from tests.sim.storage import SimTrees


def _sets(kind: type[SetStore]) -> Sets:
    return lambda folder, trees, disk: kind(folder, trees=trees, disk=disk)


class AnyArming(Arming):
    """Taken for the one that is asked for."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arming)

    def __hash__(self) -> int:
        return 0


class ArmingOfRelease(Arming):
    """Told apart by the release alone."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Arming) and other.txn == self.txn

    def __hash__(self) -> int:
        return hash(self.txn)


class HalfSets(SetStore):
    """A set is put together where it is used, and whatever has its name is taken for it: COMPLETE is written, and not read."""

    def temporary(self, schema: int) -> Path:
        return self.folder / str(schema)

    def rename(self, old: str, new: str) -> None:
        if old != new:
            super().rename(old, new)

    def record(self, name: str) -> SetRecord | None:
        if not name.isdecimal() or not self.disk.exists(self.folder / name / DATA):
            return super().record(name)
        return SetRecord(schema=int(name), made_from=None, arming=AnyArming(), made_utc="")


class UnsyncedSets(SetStore):
    """A set counts as renamed when the rename returns."""

    def rename(self, old: str, new: str) -> None:
        self.trees.rename(self.folder / old, self.folder / new)


class ReusedSets(SetStore):
    """A set belongs to a release, whichever of its trials made it."""

    def record(self, name: str) -> SetRecord | None:
        made = super().record(name)
        if made is None:
            return None
        return replace(made, arming=ArmingOfRelease(txn=made.arming.txn, armboot=made.arming.armboot))


class UnsyncedTrees(SimTrees):
    """A copy counts as written when the last file is closed."""

    def sync(self, folder: Path) -> None: ...


class MovingTrees(SimTrees):
    """Saves the space for a second copy: the set that is there is taken."""

    def copy(self, source: Path, target: Path, *, beat: Beat) -> None:
        self.rename(source, target)

    def mark(self, folder: Path, *, beat: Beat) -> str:
        return ""


DATA_MUTATIONS: tuple[tuple[str, Parts, tuple[str, ...]], ...] = (
    ("set used without COMPLETE", Parts(sets=_sets(HalfSets)), ("data step",)),
    ("set renamed without directory fsync", Parts(sets=_sets(UnsyncedSets)), ("data step",)),
    ("set COMPLETE before its content is synced", Parts(trees=UnsyncedTrees), ("data step",)),
    ("set of the same release used again", Parts(sets=_sets(ReusedSets)), ("data step, second attempt",)),
    ("earlier set moved instead of copied", Parts(trees=MovingTrees), ("data step", "data step that fails")),
)
