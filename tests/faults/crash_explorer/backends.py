"""Boot loaders as the explorer sees them: what the factory writes, the updater's adapter, the script, and what is in force.

One entry per `BootControl` of the product; the storage below each is the simulated one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

from tidewaiter_core.clock import Clock
from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootControl, BootEnvError
from tidewaiter_updater.boot import envcopy as uboot_env
from tidewaiter_updater.boot import grubenv as grub_env
from tidewaiter_updater.boot.booted import slot_of_cmdline
from tidewaiter_updater.boot.envcopy import from_variables, to_variables
from tidewaiter_updater.boot.grub import GrubBoot
from tidewaiter_updater.boot.layout import EnvCopy, Layout
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.boot.uboot import UbootBoot
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.ports import Control, Kernels, KernelsInSlots, SlotStore
from tidewaiter_updater.sources import Source

from tests.sim.boot import BootScript, TwoCopyScript
from tests.sim.boot.sdboot import SdBootBackend
from tests.sim.storage import SECTOR_BYTES, BlockDevice, Content, EnvDevice, Storage
from tests.sim.storage.units import BLOCK_BYTES, ZERO_BLOCK

Probe = Callable[[SlotName], bool]
Cmdline = Callable[[], str]


class Script(Protocol):
    """One power-on; None is a reset."""

    def run(self, probe: Probe) -> SlotName | None: ...


class Backend(Protocol):
    """A boot loader on simulated storage."""

    @property
    def name(self) -> str: ...

    def factory(self, env: BootEnv) -> Content:
        """What a device is born with."""

    def device(self, storage: Storage) -> BlockDevice:
        """Where the environment is."""

    def control(self, storage: Storage, *, cmdline: Cmdline) -> BootControl: ...
    def script(self, storage: Storage) -> Script: ...
    def kernels(
        self,
        storage: Storage,
        slots: SlotStore,
        source_for: Callable[[str, Control], Source],
        *,
        clock: Clock,
    ) -> tuple[SlotStore, Kernels]:
        """The slots, and what the loader needs beside them."""

    def in_force(self, content: Mapping[tuple[Any, ...], Any]) -> BootEnv | None:
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


class Copies:
    """Port CopyStore: two copies at their places of a medium."""

    def __init__(self, medium: EnvMedium, *, offsets: tuple[int, int], length: int) -> None:
        self.name = medium.name
        self._medium = medium
        self._offsets = offsets
        self._length = length

    def read(self, index: int) -> bytes:
        return self._medium.read(self._offsets[index], self._length)

    def write(self, index: int, data: bytes) -> None:
        self._medium.write(self._offsets[index], data)


@dataclass(frozen=True, kw_only=True)
class TwoCopies:
    """Backend of a loader with two copies of an environment."""

    name: str
    layout: Layout
    offsets: tuple[int, int]
    length: int
    make: Callable[[TwoCopies, BlockDevice, Cmdline], BootControl]
    make_script: Callable[[TwoCopies, BlockDevice], Script]
    sector_bytes: int = SECTOR_BYTES

    def factory(self, env: BootEnv) -> Content:
        content: Content = {}
        for number, offset in enumerate(self.offsets):
            raw = self.layout.encode(to_variables(env), number)
            for at in range(0, self.length, BLOCK_BYTES):
                block = raw[at : at + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
                if block != ZERO_BLOCK:
                    content["block", "env", (offset + at) // BLOCK_BYTES] = block
        return content

    def device(self, storage: Storage) -> BlockDevice:
        return storage.device("env", sector_bytes=self.sector_bytes)

    def control(self, storage: Storage, *, cmdline: Cmdline) -> BootControl:
        return self.make(self, self.device(storage), cmdline)

    def kernels(
        self,
        storage: Storage,
        slots: SlotStore,
        source_for: Callable[[str, Control], Source],
        *,
        clock: Clock,
    ) -> tuple[SlotStore, Kernels]:
        return slots, KernelsInSlots()

    def script(self, storage: Storage) -> Script:
        return self.make_script(self, self.device(storage))

    def copies(self, medium: EnvMedium) -> Copies:
        """Both copies on a medium."""
        return Copies(medium, offsets=self.offsets, length=self.length)

    def in_force(self, content: Mapping[tuple[Any, ...], Any]) -> BootEnv | None:
        copies = (self._copy(content, 0), self._copy(content, 1))
        index = self.layout.newest(copies)
        copy = copies[index] if index is not None else None
        return from_variables(copy.variables) if copy is not None else None

    def _copy(self, content: Mapping[tuple[Any, ...], Any], index: int) -> EnvCopy | None:
        offset = self.offsets[index]
        bad = (key[2] * self.sector_bytes for key in content if key[0] == "bad" and key[1] == "env")
        if any(offset <= at < offset + self.length for at in bad):
            return None
        first, count = offset // BLOCK_BYTES, -(-self.length // BLOCK_BYTES)
        blocks = (content.get(("block", "env", first + number), ZERO_BLOCK) for number in range(count))
        return _decoded(self.layout, self.length, *blocks)


@lru_cache(maxsize=4096)
def _decoded(layout: Layout, length: int, *blocks: bytes) -> EnvCopy | None:
    return layout.decode(b"".join(blocks)[:length])


def _layout_script(backend: TwoCopies, device: BlockDevice) -> Script:
    return TwoCopyScript(backend.copies(ScriptMedium(device)), backend.layout)


SIMULATED = TwoCopies(
    name="simulated",
    layout=uboot_env.LAYOUT,
    offsets=uboot_env.COPY_OFFSETS,
    length=uboot_env.COPY_BYTES,
    make=lambda backend, device, cmdline: SimulatedBoot(EnvMedium(device), cmdline=cmdline),
    make_script=lambda backend, device: BootScript(ScriptMedium(device)),
)
UBOOT = TwoCopies(
    name="U-Boot",
    layout=uboot_env.LAYOUT,
    offsets=uboot_env.COPY_OFFSETS,
    length=uboot_env.COPY_BYTES,
    make=lambda backend, device, cmdline: UbootBoot(
        backend.copies(EnvMedium(device)), booted=lambda: slot_of_cmdline(cmdline())
    ),
    make_script=_layout_script,
)
GRUB = TwoCopies(
    name="GRUB",
    layout=grub_env.LAYOUT,
    offsets=(0, BLOCK_BYTES),
    length=grub_env.BLOCK_BYTES,
    sector_bytes=grub_env.SECTOR_BYTES,
    make=lambda backend, device, cmdline: GrubBoot(
        backend.copies(EnvMedium(device)), booted=lambda: slot_of_cmdline(cmdline())
    ),
    make_script=_layout_script,
)
"""Its files never move, so a write of one is a write of two sectors."""

SYSTEMD_BOOT: Backend = SdBootBackend()
BACKENDS: tuple[Backend, ...] = (SIMULATED, UBOOT, GRUB, SYSTEMD_BOOT)
"""The first one goes through every story, the others through those in which the loader has a part."""
