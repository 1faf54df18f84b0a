"""The block devices below `/`, through dm-verity, dm-crypt, overlay and btrfs.

mountinfo names the device of each mount. A device-mapper device is followed to what it maps (/sys/dev/block/M:m/slaves), down to
partitions. Overlay and btrfs have no device of their own (major 0): an overlay is followed to the mount that its lowest directory
is on, anything else to the device that mountinfo names as its source.

Source: update-engine.md section 7; proc(5) on mountinfo.
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tidewaiter_updater.boot import SlotMismatchError

Device = tuple[int, int]
"""Major and minor number."""

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_BLOCK: Final = Path("/sys/dev/block")
_CLASS: Final = Path("/sys/class/block")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_DEPTH: Final = 8
"""Nobody stacks that many; a loop of mounts ends here."""


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
        for _ in range(_DEPTH):
            at = self._at(path)
            if not at.is_symlink():
                return path
            path = Path(os.path.normpath(path.parent / at.readlink()))
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))

    def _at(self, path: Path) -> Path:
        return self._root / path.relative_to("/")


@dataclass(frozen=True, slots=True)
class _Mount:
    device: Device
    point: str
    fs: str
    source: str
    options: str


def root_devices(kernel: Kernel) -> frozenset[Device]:
    """The device of `/` and all devices below it.

    Raises:
        SlotMismatchError: The kernel does not say.
    """
    try:
        mounts = _mounts(kernel.read(_MOUNTINFO))
        return frozenset(_below(kernel, _device_at(kernel, mounts, "/", _DEPTH), _DEPTH))
    except (OSError, ValueError) as err:
        raise SlotMismatchError(
            f"the device of / cannot be found: {err}; the booted slot is unknown, nothing is written"
        ) from err


def _mounts(text: str) -> list[_Mount]:
    mounts = []
    for line in text.splitlines():
        head, separator, tail = line.partition(" - ")
        fields, rest = head.split(" "), tail.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            raise ValueError(f"{_MOUNTINFO}: {line!r} is no mount")
        major, _, minor = fields[2].partition(":")
        point, source = _unescaped(fields[4]), _unescaped(rest[1])
        mounts.append(_Mount((int(major), int(minor)), point, rest[0], source, _unescaped(rest[2])))
    return mounts


def _device_at(kernel: Kernel, mounts: list[_Mount], path: str, depth: int) -> Device:
    """The device of the mount that `path` is on; the topmost if several are stacked there."""
    holders = [mount for mount in mounts if _is_on(path, mount.point)]
    if not holders or depth == 0:
        raise ValueError(f"{_MOUNTINFO}: no device for {path}")
    longest = max(len(mount.point) for mount in holders)
    mount = [mount for mount in holders if len(mount.point) == longest][-1]
    if mount.device[0] != 0:
        return mount.device
    if mount.fs == "overlay":
        # Without the overlay itself: a lower directory that is mounted nowhere must not lead back to it.
        others = [other for other in mounts if other is not mount]
        return _device_at(kernel, others, _lowest(mount), depth - 1)
    if not mount.source.startswith("/dev/"):
        raise ValueError(f"{mount.point} is a {mount.fs} from {mount.source!r}, which is no device")
    name = kernel.resolve(Path(mount.source)).name
    return _number(kernel.read(_CLASS / name / "dev"))


def _lowest(mount: _Mount) -> str:
    """The bottom directory of an overlay: the last of lowerdir."""
    for option in mount.options.split(","):
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+"):
            return value.rpartition(":")[2]
    raise ValueError(f"the overlay on {mount.point} names no lower directory")


def _below(kernel: Kernel, device: Device, depth: int) -> set[Device]:
    found = {device}
    folder = _BLOCK / f"{device[0]}:{device[1]}"
    if depth == 0:
        raise ValueError(f"{folder}: stacked too deep")
    try:
        slaves = kernel.names(folder / "slaves")
    except FileNotFoundError:
        # A partition has no such folder; a device that the kernel does not know must not pass for one.
        kernel.names(folder)
        slaves = []
    for name in slaves:
        found |= _below(kernel, _number(kernel.read(folder / "slaves" / name / "dev")), depth - 1)
    return found


def _number(text: str) -> Device:
    major, _, minor = text.strip().partition(":")
    return int(major), int(minor)


def _is_on(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found.group(1), 8)), text)
