"""Two copies at fixed places of a simulated device: as the updater and a loader write them, and as a content holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidewaiter_updater.boot import BootEnvError

from tests.sim.storage import BlockDevice
from tests.sim.storage.units import BLOCK_BYTES, ZERO_BLOCK


class PlacedBlocks:
    """Port CopyStore over a device."""

    def __init__(self, device: BlockDevice, *, offsets: tuple[int, int], length: int) -> None:
        self.name = device.name
        self._device = device
        self._offsets = offsets
        self._length = length

    def read(self, index: int) -> bytes:
        try:
            return self._device.read(self._offsets[index], self._length)
        except OSError as err:
            raise BootEnvError(f"{self.name}: copy {index}: {err.strerror}") from err

    def write(self, index: int, data: bytes) -> None:
        self._device.write(self._offsets[index], data)
        self._device.sync()


class LoaderBlocks(PlacedBlocks):
    """The same as a boot loader sees it: what cannot be read is not valid."""

    def read(self, index: int) -> bytes:
        try:
            return super().read(index)
        except BootEnvError:
            return b""


class ReadOnlyBlocks:
    """Port CopyStore over a content or state that nobody runs on."""

    def __init__(
        self,
        content: Mapping[tuple[Any, ...], Any],
        device: str,
        *,
        offsets: tuple[int, int],
        length: int,
        sector_bytes: int,
    ) -> None:
        self.name = device
        self._content = content
        self._offsets = offsets
        self._length = length
        self._bad = [key[2] * sector_bytes for key in content if key[0] == "bad" and key[1] == device]

    def read(self, index: int) -> bytes:
        offset = self._offsets[index]
        if any(offset <= at < offset + self._length for at in self._bad):
            return b""
        first, count = offset // BLOCK_BYTES, -(-self._length // BLOCK_BYTES)
        blocks = (
            self._content.get(("block", self.name, first + number), ZERO_BLOCK) for number in range(count)
        )
        return b"".join(blocks)[: self._length]

    def write(self, index: int, data: bytes) -> None:
        raise BootEnvError(f"{self.name}: nobody runs on this content")
