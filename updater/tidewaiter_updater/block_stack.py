"""What lies below a block device: dm-verity, dm-crypt and logical volumes are followed to what they map, down to partitions.

The kernel tells it in files: /sys/dev/block/M:m/slaves names the devices that a device maps, each with its own `dev` and its own
`slaves`. What the kernel does not tell, or tells in a circle, is an error: whoever asks is about to write a slot, and "no answer"
must not pass for "nothing of the booted slot".

Source: update-engine.md section 7; Documentation/ABI/stable/sysfs-block of Linux.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final, Protocol

Device = tuple[int, int]
"""Major and minor number."""

DEPTH: Final = 8
"""Nobody stacks that many devices, mounts or links."""

_BLOCK: Final = Path("/sys/dev/block")


class Kernel(Protocol):
    """What the kernel tells about itself in files. Methods raise OSError."""

    def read(self, path: Path) -> str: ...
    def names(self, path: Path) -> list[str]: ...
    def resolve(self, path: Path) -> Path:
        """Where the symbolic links of `path` lead."""


class FileTree:
    """Port Kernel over the files below `root`: those of the kernel, or a test's."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read(self, path: Path) -> str:
        return self._at(path).read_text(encoding="utf-8", errors="surrogateescape")

    def names(self, path: Path) -> list[str]:
        return sorted(entry.name for entry in self._at(path).iterdir())

    def resolve(self, path: Path) -> Path:
        for _ in range(DEPTH):
            at = self._at(path)
            if not at.is_symlink():
                return path
            path = Path(os.path.normpath(path.parent / at.readlink()))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))

    def _at(self, path: Path) -> Path:
        return self._root / path.relative_to("/")


def stack_of(kernel: Kernel, device: Device) -> frozenset[Device]:
    """`device` and every device below it.

    Raises:
        OSError: A device is gone, or its folder cannot be read.
        ValueError: The devices map each other, are stacked too deep, or one does not say what it maps.
    """
    found: set[Device] = set()
    _descend(kernel, device, (), found)
    return frozenset(found)


def disk_of(kernel: Kernel, device: Device) -> str | None:
    """The disk that a partition is on, None for what is no partition.

    Raises:
        OSError: The device is gone.
    """
    folder = _BLOCK / f"{device[0]}:{device[1]}"
    if "partition" not in kernel.names(folder):
        return None
    return str(kernel.resolve(folder).parent)


def device_number(text: str) -> Device:
    """What a `dev` file says; ValueError if it is not `MAJOR:MINOR`."""
    major, _, minor = text.strip().partition(":")
    return int(major), int(minor)


def _descend(kernel: Kernel, device: Device, above: tuple[Device, ...], found: set[Device]) -> None:
    folder = _BLOCK / f"{device[0]}:{device[1]}"
    if device in above:
        raise ValueError(f"{folder}: the device maps itself")
    if len(above) >= DEPTH:
        raise ValueError(f"{folder}: stacked too deep")
    if device in found:
        return
    names = kernel.names(
        folder
    )  # FileNotFoundError: a device that the kernel does not know must not pass for a partition
    slaves = kernel.names(folder / "slaves") if "slaves" in names else []  # a partition has no such folder
    if "dm" in names and not slaves:
        raise ValueError(f"{folder}: a mapped device that does not say what it maps")
    for name in slaves:
        slave = device_number(kernel.read(folder / "slaves" / name / "dev"))
        _descend(kernel, slave, (*above, device), found)
    found.add(device)
