"""Which images were explored already, shared between processes without a lock.

An open-addressing table of 64-bit marks in shared memory. Two processes that meet the same new image at the same moment may both
explore it; that costs time and changes no result, and the count is taken from the table.
"""

from __future__ import annotations

import hashlib
from ctypes import Array
from multiprocessing.sharedctypes import RawArray
from typing import Any, Final

SLOTS: Final = 1 << 20
_MASK: Final = (1 << 64) - 1


class Seen:
    """Pairs of circumstances and image, in two tables: those that were booted, and those whose recovery was cut again."""

    def __init__(self) -> None:
        self._booted = RawArray("Q", SLOTS)
        self._cut = RawArray("Q", SLOTS)

    def boots(self, world: str, image: int) -> bool:
        """Whether the pair was never booted; then it has been."""
        return _add(self._booted, world, image)

    def cuts(self, world: str, image: int) -> bool:
        """Whether the recovery of the pair was never cut; then it has been."""
        return _add(self._cut, world, image)

    def __len__(self) -> int:
        """How many distinct pairs were booted."""
        return sum(1 for mark in self._booted if mark)


def _add(table: Array[Any], world: str, image: int) -> bool:
    mark = (_salt(world) ^ image ^ (image >> 64)) & _MASK or 1
    at = mark % SLOTS
    while table[at]:
        if table[at] == mark:
            return False
        at = (at + 1) % SLOTS
    table[at] = mark
    return True


_salts: dict[str, int] = {}


def _salt(world: str) -> int:
    if world not in _salts:
        digest = hashlib.blake2b(world.encode(), digest_size=8).digest()
        _salts[world] = int.from_bytes(digest, "big")
    return _salts[world]
