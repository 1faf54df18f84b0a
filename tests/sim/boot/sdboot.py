"""systemd-boot on a simulated EFI system partition: what the factory writes, the loader, and the updater's adapter on top.

Files are on a FAT (`SimDisk(fat=...)`: a rename may be cut in four ways); the two record blocks never move, so one write is a
write of two sectors. Kernel images are toys that say what they are. What systemd-boot does was read off its behaviour: it sorts
entries, takes the first one, renames it if it has a counter, ignores a failure of that, and starts it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tidewaiter_core.clock import Clock
from tidewaiter_core.disk import Disk
from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot.booted import slot_of_cmdline
from tidewaiter_updater.boot.envcopy import to_variables
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, Esp
from tidewaiter_updater.boot.grubenv import BLOCK_BYTES as RECORD_BYTES
from tidewaiter_updater.boot.grubenv import LAYOUT, SECTOR_BYTES
from tidewaiter_updater.boot.sdboot import SdBoot
from tidewaiter_updater.boot.ukiname import UkiName, is_before
from tidewaiter_updater.kernel_slots import KernelSlots
from tidewaiter_updater.kernels import KernelImages
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.ports import Control, Kernels, SlotStore
from tidewaiter_updater.sources import Source

from tests.sim.boot.placed import PlacedBlocks, ReadOnlyBlocks
from tests.sim.storage import BlockDevice, Content, SimDisk, Storage
from tests.sim.storage.units import BLOCK_BYTES

ESP = Path("/esp")
OFFSETS = (0, BLOCK_BYTES)
VERSION = "1.0"

Probe = Callable[[SlotName], bool]


def toy_uki(entry: UkiName) -> bytes:
    """A kernel image that says what it is."""
    return f"kernel image {entry.stem}".encode()


def is_toy_uki(entry: UkiName, data: bytes) -> bool:
    """Whether the firmware finds the image that the name promises."""
    return data == toy_uki(entry)


class SdBootScript:
    """One power-on, on any partition."""

    def __init__(
        self,
        disk: Disk,
        root: Path = ESP,
        *,
        starts: Callable[[UkiName, bytes], bool] = is_toy_uki,
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            starts: Whether the firmware takes the content of an entry.
            flush: Called after a rename: the firmware writes through.
        """
        self._disk = disk
        self._entries = root / ENTRIES
        self._starts = starts
        self._flush = flush

    def run(self, probe: Probe) -> SlotName | None:
        """The slot that gets control; None is a reset."""
        chosen = self.first()
        if chosen is None:
            return None
        at = self._entries / str(chosen)
        if chosen.left is not None:
            counted = chosen.counted(max(0, chosen.left - 1), done=chosen.done + 1)
            target = self._entries / str(counted)
            if not self._disk.exists(target):
                self._disk.replace(at, target)
                self._flush()
                at = target
        if not self._starts(chosen, self._disk.read(at, 4096)):
            return None  # the firmware refuses the image
        return chosen.slot if probe(chosen.slot) else None

    def first(self) -> UkiName | None:
        """The entry that is taken next."""
        names = [UkiName.parse(entry.name) for entry in self._disk.entries(self._entries)]
        entries = [name for name in names if name is not None]
        order = functools.cmp_to_key(
            lambda a, b: -1 if is_before(a, b) else 1 if is_before(b, a) else 0  # type: ignore[arg-type]
        )
        return min(entries, key=order, default=None)


class SdBootBackend:
    """Port Backend of the crash explorer."""

    name = "systemd-boot"

    def factory(self, env: BootEnv) -> Content:
        content: Content = {("directory", str(ESP)): b"", ("directory", f"{ESP}/EFI"): b""}
        content["directory", f"{ESP}/{ENTRIES}"] = b""
        content["directory", f"{ESP}/{PRIVATE}"] = b""
        good = UkiName(version=VERSION, slot=env.committed)
        # Of two equal versions systemd-boot would take B; at +0 an entry sorts last and still boots when it is the only one.
        spare = UkiName(version=VERSION, slot=env.committed.other, left=0)
        for entry in (good, spare):
            if entry.slot is env.committed or env.is_ok(entry.slot):
                content["file", f"{ESP}/{ENTRIES}/{entry}"] = toy_uki(entry)
        for number, offset in enumerate(OFFSETS):
            raw = LAYOUT.encode(to_variables(env), number)
            content["block", "env", offset // BLOCK_BYTES] = raw.ljust(BLOCK_BYTES, b"\0")
        return content

    def device(self, storage: Storage) -> BlockDevice:
        return storage.device("env", sector_bytes=SECTOR_BYTES)

    def control(self, storage: Storage, *, cmdline: Callable[[], str]) -> BootControl:
        esp = Esp(ESP, disk=SimDisk(storage, fat=ESP))
        blocks = PlacedBlocks(self.device(storage), offsets=OFFSETS, length=RECORD_BYTES)
        boot = SdBoot(esp, blocks, booted=lambda: slot_of_cmdline(cmdline()))
        boot.settle()
        return boot

    def kernels(
        self,
        storage: Storage,
        slots: SlotStore,
        source_for: Callable[[str, Control], Source],
        *,
        clock: Clock,
    ) -> tuple[SlotStore, Kernels]:
        """The slots together with the kernel images on the partition."""
        esp = Esp(ESP, disk=SimDisk(storage, fat=ESP))
        images = KernelImages(esp, source_for=source_for, clock=clock)
        return KernelSlots(slots, images), images

    def script(self, storage: Storage) -> SdBootScript:
        return SdBootScript(SimDisk(storage, fat=ESP), flush=lambda: storage.flush("firmware writes through"))

    def in_force(self, content: Mapping[tuple[Any, ...], Any]) -> BootEnv | None:
        """What the updater would read: the record of a content or state, put together with the names in it."""
        blocks = ReadOnlyBlocks(
            content, "env", offsets=OFFSETS, length=RECORD_BYTES, sector_bytes=SECTOR_BYTES
        )
        return SdBoot(_NamesOnly(content), blocks, booted=lambda: SlotName.A).read()


class _NamesOnly(Esp):
    """The names of a content or state."""

    def __init__(self, content: Mapping[tuple[Any, ...], Any]) -> None:
        super().__init__(ESP)
        folder = f"{ESP}/{ENTRIES}"
        self._names = {key[2] for key in content if key[0] == "name" and key[1] == folder}
        self._names |= {
            key[1].rpartition("/")[2]
            for key in content
            if key[0] in ("file", "link") and key[1].rpartition("/")[0] == folder
        }

    def files(self, folder: str) -> dict[str, int]:
        return dict.fromkeys(self._names, 0) if folder == ENTRIES else {}
