"""Which images were explored already, shared between processes without a lock.

An open-addressing table of 64-bit marks in shared memory. Two processes that meet the same new image at the same moment may both
explore it; that costs time and changes no result, and the count is taken from the table.
"""

from __future__ import annotations

import hashlib
from ctypes import Array
from multiprocessing.sharedctypes import RawArray
from typing import Any, Final

from tests.faults.crash_explorer.outcome import CODES, Outcome

SLOTS: Final = 1 << 20
_MASK: Final = (1 << 64) - 1
_CODE_SHIFT: Final = 4


class Seen:
    """Pairs of circumstances and image, in three tables: booted, recovery cut again, and come to a good end from here.

    The third is what makes many images cheap: two recoveries that meet at a power-on live the same life from there.
    """

    def __init__(self) -> None:
        self._booted = RawArray("Q", SLOTS)
        self._cut = RawArray("Q", SLOTS)
        self._proven = RawArray("Q", SLOTS)
        self._notes = RawArray("B", SLOTS)
        """Of each proven one: boots in the lower half, outcome in the upper half."""

    def boots(self, world: str, image: int) -> bool:
        """Whether the pair was never booted; then it has been."""
        return _add(self._booted, world, image)

    def cuts(self, world: str, image: int) -> bool:
        """Whether the recovery of the pair was never cut; then it has been."""
        return _add(self._cut, world, image)

    def prove(self, world: str, image: int, *, boots: int, outcome: Outcome | None = None) -> None:
        """A device that was powered on with this content came to its good end within so many boots."""
        at, is_new = _place(self._proven, world, image)
        code = CODES.index(outcome) + 1 if outcome is not None else 0
        if is_new or (code and not self._notes[at] >> _CODE_SHIFT):
            self._notes[at] = boots | code << _CODE_SHIFT

    def boots_from(self, world: str, image: int) -> int | None:
        """How many boots it takes from this content to a good end, None if that is not known."""
        return self._note(world, image) % (1 << _CODE_SHIFT) or None

    def outcome_of(self, world: str, image: int) -> Outcome | None:
        """What a device did that was powered on with this content, None if that is not known."""
        code = self._note(world, image) >> _CODE_SHIFT
        return CODES[code - 1] if code else None

    def _note(self, world: str, image: int) -> int:
        at, is_new = _place(self._proven, world, image, keep=False)
        return 0 if is_new else self._notes[at]

    def __len__(self) -> int:
        """How many distinct pairs were booted."""
        return sum(1 for mark in self._booted if mark)


def _add(table: Array[Any], world: str, image: int) -> bool:
    return _place(table, world, image)[1]


def _place(table: Array[Any], world: str, image: int, *, keep: bool = True) -> tuple[int, bool]:
    """Where the mark of the pair is, and whether it was not there; with `keep` it is there afterwards."""
    mark = (_salt(world) ^ image ^ (image >> 64)) & _MASK or 1
    at = mark % SLOTS
    while table[at]:
        if table[at] == mark:
            return at, False
        at = (at + 1) % SLOTS
    if keep:
        table[at] = mark
    return at, True


_salts: dict[str, int] = {}


def _salt(world: str) -> int:
    if world not in _salts:
        digest = hashlib.blake2b(world.encode(), digest_size=8).digest()
        _salts[world] = int.from_bytes(digest, "big")
    return _salts[world]
