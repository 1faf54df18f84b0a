"""What can be pending on storage: the smallest things a power cut keeps or drops.

A state is a plain dictionary; units are applied to a copy of it, in the order in which they were issued. Keys:

- `("block", device, number)` -> 4096 bytes of a block device (absent: zeros)
- `("bad", device, sector)` -> b"": the sector gives an I/O error until it is written
- `("inode", number)` -> content of a file (absent: empty)
- `("name", directory, name)` -> inode number, or DIRECTORY
- `("record", kind, digest)` -> b"": an audit record
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SECTOR_BYTES = 16
"""Of most devices; a loader whose format relies on real sectors gets those."""
BLOCK_BYTES = 4096
ZERO_BLOCK = bytes(BLOCK_BYTES)
DIRECTORY = -1

State = dict[tuple[Any, ...], Any]


@dataclass(frozen=True, slots=True)
class SectorWrite:
    """One sector of a block device; the length of `data` is that of the sector."""

    device: str
    sector: int
    data: bytes

    def apply(self, state: State) -> None:
        number, at = divmod(self.sector * len(self.data), BLOCK_BYTES)
        key = ("block", self.device, number)
        before = state.get(key, ZERO_BLOCK)
        after = before[:at] + self.data + before[at + len(self.data) :]
        if after == ZERO_BLOCK:
            state.pop(key, None)
        else:
            state[key] = after
        state.pop(("bad", self.device, self.sector), None)

    def spoiled(self) -> Iterator[Unit]:
        """The cut fell into this very sector: it holds garbage, or cannot be read."""
        noise = random.Random(f"{self.device}{self.sector}").randbytes(len(self.data))
        yield SectorWrite(self.device, self.sector, noise)
        yield BadSector(self.device, self.sector)


@dataclass(frozen=True, slots=True)
class BadSector:
    """A sector that was being written when the power went, and is an I/O error until it is written again."""

    device: str
    sector: int

    def apply(self, state: State) -> None:
        state[("bad", self.device, self.sector)] = b""

    def spoiled(self) -> Iterator[Unit]:
        return iter(())


@dataclass(frozen=True, slots=True)
class FileWrite:
    """Content of a file that was not synced."""

    inode: int
    offset: int
    data: bytes

    def apply(self, state: State) -> None:
        key = ("inode", self.inode)
        before = state.get(key, b"").ljust(self.offset, b"\0")
        state[key] = before[: self.offset] + self.data + before[self.offset + len(self.data) :]

    def spoiled(self) -> Iterator[Unit]:
        """Half of it, or blocks that were allocated and never written."""
        yield FileWrite(self.inode, self.offset, self.data[: len(self.data) // 2])
        yield FileWrite(self.inode, self.offset, bytes(len(self.data)))


@dataclass(frozen=True, slots=True)
class FileLength:
    """A truncation."""

    inode: int
    length: int

    def apply(self, state: State) -> None:
        key = ("inode", self.inode)
        state[key] = state.get(key, b"")[: self.length].ljust(self.length, b"\0")

    def spoiled(self) -> Iterator[Unit]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Names:
    """A change of directory entries that is atomic on this file system; None removes the name."""

    changes: tuple[tuple[str, str, int | None], ...]
    """(directory, name, inode)."""
    keeps: bool = False
    """The content stays although this change takes a name from it: half of a rename on FAT."""

    def apply(self, state: State) -> None:
        kept = {inode for _, _, inode in self.changes}
        for directory, name, inode in self.changes:
            key = ("name", directory, name)
            before = state.pop(key, None)
            if inode is not None:
                state[key] = inode
            if before is not None and before not in kept and not self.keeps:
                state.pop(("inode", before), None)  # no name leads to it any more

    def spoiled(self) -> Iterator[Unit]:
        return iter(())


@dataclass(frozen=True, slots=True)
class Moved:
    """A directory under another name, with all that is in it; atomic."""

    source: str
    target: str

    def apply(self, state: State) -> None:
        place = state.pop(("name", *_split(self.source)), None)
        if place is None:
            return  # it was never created
        state[("name", *_split(self.target))] = place
        inside = [
            key
            for key in state
            if key[0] == "name" and (key[1] == self.source or key[1].startswith(f"{self.source}/"))
        ]
        for key in inside:
            state[("name", self.target + key[1].removeprefix(self.source), key[2])] = state.pop(key)

    def spoiled(self) -> Iterator[Unit]:
        return iter(())

    @property
    def folder(self) -> str:
        """The directory whose entry changes."""
        return _split(self.source)[0]


def _split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder or "/", name


Unit = SectorWrite | BadSector | FileWrite | FileLength | Names | Moved
