"""Which blocks of the new image the old one holds anywhere: the map of a patch, and the literals that are left.

Blocks are looked up by the first eight bytes of their SHA-256 (16 bytes of memory per old block) and compared before they are
used, so that no collision, found or made, can end in a patch. A run of the old image is continued while it fits, because a run
costs three bytes and a block nothing; then the same position, where a device reads ahead; then any.

Source: update-engine.md section 4.4, encoder.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tidewaiter_core.payload.patchmap import Kind, MapEncoder

from tidewaiter_release.image import ImageFile, ImageHashes

_KEY_BYTES = 8
Keys = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class BlockKeys:
    """An image by its blocks."""

    hashes: ImageHashes
    keys: Keys
    """One per block, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """How the new image is made."""

    map: bytes
    """The raw map."""
    literals: array[int]
    """New blocks that the old image does not have, ascending."""
    after: array[int]
    """For each literal the old block as far behind the last copied one as the literal is behind its copy."""
    before: array[int]
    """For each literal the old block as far in front of the next copied one; block 0 where that leaves the image."""
    zero_blocks: int
    old_blocks: int
    new_blocks: int
    """Repeated from earlier in the new image."""


def block_keys(image: ImageFile, *, progress: Callable[[int], None] = lambda done: None) -> BlockKeys:
    """Hash an image as a whole, by chunks and by blocks, in one pass.

    Args:
        progress: Called with the bytes done.
    """
    block = image.limits.block_bytes
    out = bytearray()

    def collect(window: bytes) -> None:
        view = memoryview(window)
        for at in range(0, len(window), block):
            out.extend(hashlib.sha256(view[at : at + block]).digest()[:_KEY_BYTES])
        progress(len(out) // _KEY_BYTES * block)

    hashes = image.hashes(each_window=collect)
    return BlockKeys(hashes, np.frombuffer(bytes(out), dtype="<u8"))


def plan_blocks(old: ImageFile, new: ImageFile, old_keys: Keys, new_keys: Keys) -> BlockPlan:
    """Find a source for every block of the new image."""
    return _Planner(old, new, old_keys, new_keys).plan()


class _Planner:
    def __init__(self, old: ImageFile, new: ImageFile, old_keys: Keys, new_keys: Keys) -> None:
        self._old = old
        self._block = new.limits.block_bytes
        self._new = new
        self._old_keys = old_keys
        self._new_keys = new_keys
        self._order = np.argsort(old_keys, kind="stable").astype(np.uint32)
        self._map = MapEncoder()
        self._literals: array[int] = array("I")
        self._after: array[int] = array("I")
        self._before: array[int] = array("I")
        self._first: dict[int, int] = {}
        self._counts = dict.fromkeys(Kind, 0)

    def plan(self) -> BlockPlan:
        zeros = bytes(self._block)
        target = old_next = old_place = new_next = 0
        for window in self._new.windows():
            count = len(window) // self._block
            keys = self._new_keys[target : target + count]
            anywhere = self._anywhere(keys)
            for number, key in enumerate(keys.tolist()):
                data = window[number * self._block : (number + 1) * self._block]
                place = target + number
                if data == zeros:
                    self._add(Kind.ZERO)
                elif (source := self._in_old(key, data, old_next, place, anywhere[number])) is not None:
                    self._look_back(source - place)
                    old_next, old_place = source + 1, place + 1
                    self._add(Kind.OLD, source)
                elif (source := self._in_new(key, data, new_next, place)) is not None:
                    new_next = source + 1
                    self._add(Kind.NEW, source)
                else:
                    self._first.setdefault(key, place)
                    self._literals.append(place)
                    self._after.append(old_next + place - old_place)
                    self._add(Kind.LITERAL)
            target += count
        self._look_back(0)
        return BlockPlan(
            map=self._map.finish(),
            literals=self._literals,
            after=self._after,
            before=self._before,
            zero_blocks=self._counts[Kind.ZERO],
            old_blocks=self._counts[Kind.OLD],
            new_blocks=self._counts[Kind.NEW],
        )

    def _look_back(self, shift: int) -> None:
        """Guess for the literals in front of a copied block, which moved by `shift` blocks."""
        for literal in self._literals[len(self._before) :]:
            self._before.append(max(0, literal + shift))

    def _add(self, kind: Kind, source: int = 0) -> None:
        self._counts[kind] += 1
        self._map.add(kind, source)

    def _anywhere(self, keys: Keys) -> list[int]:
        """For each key the first old block that has it, or one that does not."""
        places = np.searchsorted(self._old_keys, keys, side="left", sorter=self._order)
        found: list[int] = self._order[np.minimum(places, len(self._order) - 1)].tolist()
        return found

    def _in_old(self, key: int, data: bytes, following: int, same: int, anywhere: int) -> int | None:
        for candidate in (following, same, anywhere):
            if candidate < len(self._old_keys) and int(self._old_keys[candidate]) == key:
                found = candidate
                break
        else:
            return None
        return found if self._old.read(found * self._block, self._block) == data else None

    def _in_new(self, key: int, data: bytes, following: int, place: int) -> int | None:
        first = self._first.get(key)
        if first is None:
            return None
        continues = following < place and int(self._new_keys[following]) == key
        source = following if continues else first
        return source if self._new.read(source * self._block, self._block) == data else None
