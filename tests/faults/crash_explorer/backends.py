"""Boot loaders as the explorer sees them: what the factory writes, the updater's adapter, the script, and what is in force.

One entry per `BootControl` of the product; the storage below each is the simulated one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol

from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootControl, BootEnvError
from tidewaiter_updater.boot.envcopy import (
    COPY_BYTES,
    COPY_OFFSETS,
    EnvCopy,
    decode,
    encode,
    from_variables,
    newest,
    to_variables,
)
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.model import BootEnv

from tests.sim.boot import BootScript
from tests.sim.storage import SECTOR_BYTES, BlockDevice, Content, EnvDevice, Storage
from tests.sim.storage.units import BLOCK_BYTES, ZERO_BLOCK

Probe = Callable[[SlotName], bool]
Cmdline = Callable[[], str]


class Script(Protocol):
    """One power-on; None is a reset."""

    def run(self, probe: Probe) -> SlotName | None: ...


class Backend(Protocol):
    """A boot loader on simulated storage."""

    name: str

    def factory(self, env: BootEnv) -> Content:
        """What a device is born with."""

    def control(self, storage: Storage, *, cmdline: Cmdline) -> BootControl: ...
    def script(self, storage: Storage) -> Script: ...
    def in_force(self, content: Content) -> BootEnv | None:
        """The record that the script would go by, None when there is none."""


class EnvMedium:
    """Port EnvMedium: the environment partition as the updater sees it."""

    def __init__(self, device: BlockDevice) -> None:
        self.name = device.name
        self._device = EnvDevice(device)

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._device.read(offset, length)
        except OSError as err:
            raise BootEnvError(f"{self.name}: {length} bytes at {offset}: {err.strerror}") from err

    def write(self, offset: int, data: bytes) -> None:
        self._device.write(offset, data)


class ScriptMedium(EnvMedium):
    """The same partition as a boot loader sees it: what cannot be read is not valid."""

    def read(self, offset: int, length: int) -> bytes:
        try:
            return self._device.read(offset, length)
        except OSError:
            return b""


class Simulated:
    """The simulated loader: two copies in U-Boot's layout."""

    name = "simulated"
    device = "env"

    def factory(self, env: BootEnv) -> Content:
        content: Content = {}
        for flag, offset in enumerate(COPY_OFFSETS):
            raw = encode(to_variables(env), flag=flag)
            for at in range(0, COPY_BYTES, BLOCK_BYTES):
                block = raw[at : at + BLOCK_BYTES]
                if block != ZERO_BLOCK:
                    content[("block", self.device, (offset + at) // BLOCK_BYTES)] = block
        return content

    def control(self, storage: Storage, *, cmdline: Cmdline) -> BootControl:
        return SimulatedBoot(EnvMedium(storage.device(self.device)), cmdline=cmdline)

    def script(self, storage: Storage) -> Script:
        return BootScript(ScriptMedium(storage.device(self.device)))

    def in_force(self, content: Content) -> BootEnv | None:
        copies = (self._copy(content, COPY_OFFSETS[0]), self._copy(content, COPY_OFFSETS[1]))
        index = newest(copies)
        copy = copies[index] if index is not None else None
        return from_variables(copy.variables) if copy is not None else None

    def _copy(self, content: Content, offset: int) -> EnvCopy | None:
        for key in content:
            if key[0] == "bad" and key[1] == self.device:
                at = key[2] * SECTOR_BYTES
                if offset <= at < offset + COPY_BYTES:
                    return None
        first = offset // BLOCK_BYTES
        return _decoded(
            *(
                content.get(("block", self.device, first + number), ZERO_BLOCK)
                for number in range(COPY_BYTES // BLOCK_BYTES)
            )
        )


@lru_cache(maxsize=4096)
def _decoded(*blocks: bytes) -> EnvCopy | None:
    return decode(b"".join(blocks))


SIMULATED = Simulated()
BACKENDS: tuple[Backend, ...] = (SIMULATED,)
