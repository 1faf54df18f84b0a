"""The files in which a kernel tells of its block devices, made up: folders, links and `dev` files as sysfs has them.

The layout was taken from a running kernel: /sys/dev/block/M:m is a link to the device's folder below /sys/devices, and so is each
entry of `slaves`.
"""

from __future__ import annotations

import os
from pathlib import Path

Device = tuple[int, int]

_DEVICES = "devices/virtual/block"


class Sysfs:
    """A made-up kernel below `root`, for `FileTree(root)`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._names: dict[Device, str] = {}

    def partition(self, device: Device, name: str, *, disk: str = "mmcblk0") -> Device:
        """A partition of `disk`: it has no `slaves`, and its folder lies in that of the disk."""
        folder = self._add(device, f"{disk}/{name}")
        (folder / "partition").write_text("1\n")
        return device

    def mapped(self, device: Device, name: str, *below: Device) -> Device:
        """A device-mapper device over `below`."""
        folder = self._add(device, name)
        (folder / "dm").mkdir()
        (folder / "dm/uuid").write_text(f"CRYPT-VERITY-{name}\n")
        (folder / "slaves").mkdir()
        for one in below:
            self.map(device, one)
        return device

    def map(self, device: Device, below: Device) -> None:
        """One more device that `device` maps."""
        path = self._names[below]
        (self.folder(device) / "slaves" / Path(path).name).symlink_to(f"../../{path}")

    def vanish(self, device: Device) -> None:
        """The device is unplugged; whoever maps it still names it."""
        (self.root / "sys/dev/block" / _number(device)).unlink()
        (self.folder(device) / "dev").unlink()

    def mount(self, *lines: str) -> None:
        """What /proc/self/mountinfo says."""
        path = self.root / "proc/self/mountinfo"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))

    def mount_root(self, device: Device) -> None:
        """`/` is mounted from `device`."""
        self.mount(
            "22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw",
            f"28 1 {_number(device)} / / ro,relatime shared:1 - ext4 /dev/root ro",
            "30 28 179:4 / /data rw shared:3 - ext4 /dev/mmcblk0p4 rw",
        )

    def folder(self, device: Device) -> Path:
        """Where the device's own files are."""
        return self.root / "sys" / _DEVICES / self._names[device]

    def _add(self, device: Device, path: str) -> Path:
        self._names[device] = path
        folder = self.folder(device)
        folder.mkdir(parents=True)
        (folder / "dev").write_text(f"{_number(device)}\n")
        for place in ("dev/block", "class/block"):
            (self.root / "sys" / place).mkdir(parents=True, exist_ok=True)
        # readlink says ../../devices/..., as on a device: nothing here may lead out of the made-up tree.
        os.symlink(f"../../{_DEVICES}/{path}", self.root / "sys/dev/block" / _number(device))
        os.symlink(f"../../{_DEVICES}/{path}", self.root / "sys/class/block" / Path(path).name)
        return folder


def _number(device: Device) -> str:
    return f"{device[0]}:{device[1]}"
