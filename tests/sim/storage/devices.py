"""Block devices of the simulated storage: slots as `medium.Media`, and the partition of the boot environment as an EnvMedium.

A device writes sectors in any order until it is told to sync, and a write of several sectors is torn anywhere. It may also lie:
report a sync as done and lose what was written; reading past the cache shows the loss, reading through the cache does not.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.sim.storage.content import Content
from tests.sim.storage.log import Log
from tests.sim.storage.units import BLOCK_BYTES, SECTOR_BYTES, ZERO_BLOCK, BadSector, SectorWrite, Unit

STRETCH_BYTES = 512


@dataclass
class Lies:
    """Which of the coming syncs of a device (counted from 0) lose something, and what."""

    syncs: set[int] = field(default_factory=set)
    whole: bool = False
    """Everything that was written since the last sync is lost, not only its last sector."""
    count: int = 0


class BlockDevice:
    """Sectors, by default of 16 bytes, in blocks of 4096."""

    def __init__(self, storage: Log, name: str, *, sector_bytes: int = SECTOR_BYTES) -> None:
        self.name = name
        self._sector_bytes = sector_bytes
        self.lies = Lies()
        self.on_write: Callable[[int, bytes], None] = lambda offset, data: None
        self._storage = storage
        self._cache: dict[int, bytes] = {}
        """Sectors that the kernel still believes in although the medium lost them."""

    def read(self, offset: int, length: int, *, cached: bool = False) -> bytes:
        """What the medium holds; with `cached` what the kernel thinks it holds."""
        first, last = offset // BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES)
        with self._storage.lock:
            self._require_readable(offset, length)
            blocks = [
                self._storage.view.get(("block", self.name, number), ZERO_BLOCK)
                for number in range(first, last)
            ]
        data = bytearray(b"".join(blocks)[offset - first * BLOCK_BYTES :][:length])
        for sector, believed in self._cache.items() if cached else ():
            at = sector * self._sector_bytes - offset
            if 0 <= at < length:
                data[at : at + self._sector_bytes] = believed
        return bytes(data)

    def write(self, offset: int, data: bytes) -> None:
        """Issue the sectors of `data` that differ from what is there."""
        self.on_write(offset, data)
        with self._storage.lock:
            units = list(self._changed(offset, data))
            for unit in units:
                self._cache.pop(unit.sector, None)
            self._storage.issue(f"write {self.name}", units)

    def sync(self) -> None:
        """Make everything durable, or say so."""
        with self._storage.lock:
            number, self.lies.count = self.lies.count, self.lies.count + 1
            if number in self.lies.syncs:
                victims = [unit for unit in self._storage.pending if self._is_own(unit)]
                victims = victims if self.lies.whole else victims[-1:]
                lost = self._storage.lose(f"lie {self.name}", lambda unit: unit in victims)
                self._cache.update({unit.sector: unit.data for unit in lost if isinstance(unit, SectorWrite)})
            self._storage.flush(f"sync {self.name}", self._is_own)

    def _is_own(self, unit: Unit) -> bool:
        return isinstance(unit, SectorWrite | BadSector) and unit.device == self.name

    def _changed(self, offset: int, data: bytes) -> Iterator[SectorWrite]:
        for at in range(0, len(data), BLOCK_BYTES):
            number, inside = divmod(offset + at, BLOCK_BYTES)
            piece = data[at : at + BLOCK_BYTES - inside]
            before = self._storage.view.get(("block", self.name, number), ZERO_BLOCK)
            if inside == 0 and piece == before and not self._has_bad(number):
                continue
            for step in self._steps(piece, before, inside, has_bad=self._has_bad(number)):
                sector = (offset + at + step) // self._sector_bytes
                new = piece[step : step + self._sector_bytes]
                old = before[inside + step : inside + step + self._sector_bytes]
                if new != old or ("bad", self.name, sector) in self._storage.view:
                    yield SectorWrite(self.name, sector, new)

    def _steps(self, piece: bytes, before: bytes, inside: int, *, has_bad: bool) -> Iterator[int]:
        """Offsets in `piece` of the sectors worth looking at: long equal stretches are passed over."""
        for stretch in range(0, len(piece), STRETCH_BYTES):
            new = piece[stretch : stretch + STRETCH_BYTES]
            if has_bad or new != before[inside + stretch : inside + stretch + len(new)]:
                yield from range(stretch, stretch + len(new), self._sector_bytes)

    def _has_bad(self, block: int) -> bool:
        count = BLOCK_BYTES // self._sector_bytes
        return any(block * count <= sector < (block + 1) * count for sector in self._bad())

    def _require_readable(self, offset: int, length: int) -> None:
        if any(
            offset - self._sector_bytes < sector * self._sector_bytes < offset + length
            for sector in self._bad()
        ):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _bad(self) -> list[int]:
        if not self._storage.has_bad_sectors:
            return []
        return [key[2] for key in self._storage.view if key[0] == "bad" and key[1] == self.name]


class Storage(Log):
    """The log with its block devices: one object per device, so that what it lies about is remembered."""

    def __init__(
        self, content: Content, *, is_recorded: bool = True, facts: Callable[[], Any] = lambda: None
    ) -> None:
        super().__init__(content, is_recorded=is_recorded, facts=facts)
        self._devices: dict[str, BlockDevice] = {}

    def device(self, name: str, *, sector_bytes: int = SECTOR_BYTES) -> BlockDevice:
        """The block device of that name."""
        if name not in self._devices:
            self._devices[name] = BlockDevice(self, name, sector_bytes=sector_bytes)
        return self._devices[name]


class EnvDevice:
    """The partition that holds both copies of the boot environment; each write is synced before it returns."""

    def __init__(self, device: BlockDevice) -> None:
        self.name = device.name
        self.device = device

    def read(self, offset: int, length: int) -> bytes:
        return self.device.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        self.device.write(offset, data)
        self.device.sync()


Proof = Callable[[str, int, int], None]
"""Told the device, offset and length of each read through an open for reading only."""


class SlotMedium:
    """Port `medium.Medium`: one open of a slot."""

    zeroes_ranges = False

    def __init__(self, device: BlockDevice, size_bytes: int, *, writable: bool, on_proof: Proof) -> None:
        self.name = device.name
        self.size_bytes = size_bytes
        self._device = device
        self._writable = writable
        self._on_proof = on_proof

    def read(self, buffer: memoryview, offset: int) -> int:
        buffer[:] = self._fetched(offset, len(buffer))
        if not self._writable:
            self._on_proof(self.name, offset, len(buffer))
        return len(buffer)

    def write(self, buffer: memoryview, offset: int) -> int:
        self._device.write(offset, bytes(buffer))
        return len(buffer)

    def zero(self, offset: int, length: int) -> None:
        self._device.write(offset, bytes(length))

    def sync(self) -> None:
        self._device.sync()

    def reopen(self) -> SlotMedium:
        self.sync()
        return type(self)(self._device, self.size_bytes, writable=False, on_proof=self._on_proof)

    def close(self) -> None: ...

    def _fetched(self, offset: int, length: int) -> bytes:
        return self._device.read(offset, length)


class SlotMedia:
    """Port `medium.Media`: slots by path."""

    def __init__(
        self,
        devices: Mapping[Path, BlockDevice],
        size_bytes: int,
        *,
        on_proof: Proof,
        medium: type[SlotMedium] = SlotMedium,
    ) -> None:
        self._devices = devices
        self._size_bytes = size_bytes
        self._on_proof = on_proof
        self._medium = medium

    def identity(self, path: Path) -> tuple[int, int]:
        return 259, list(self._devices).index(path)

    def stack(self, path: Path) -> frozenset[tuple[int, int]]:
        return frozenset((self.identity(path),))

    def disks(self, path: Path) -> frozenset[str]:
        return frozenset()

    def label(self, path: Path) -> str | None:
        return None

    def open(self, path: Path, *, writable: bool) -> SlotMedium:
        return self._medium(self._devices[path], self._size_bytes, writable=writable, on_proof=self._on_proof)
