"""The block devices below `/`, through dm-verity, dm-crypt, overlay and btrfs.

mountinfo names the device of each mount; what lies below a device, `block_stack` tells. Overlay and btrfs have no device of their
own (major 0): an overlay is followed to the mount that its lowest directory is on, anything else to the device that mountinfo
names as its source.

Source: update-engine.md section 7; proc(5) on mountinfo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidewaiter_updater.block_stack import DEPTH, Device, Kernel, device_number, stack_of
from tidewaiter_updater.boot import SlotMismatchError

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_CLASS: Final = Path("/sys/class/block")
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


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
        return stack_of(kernel, _device_at(kernel, mounts, "/", DEPTH))
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
    return device_number(kernel.read(_CLASS / name / "dev"))


def _lowest(mount: _Mount) -> str:
    """The bottom directory of an overlay: the last of lowerdir."""
    for option in mount.options.split(","):
        name, _, value = option.partition("=")
        if name in ("lowerdir", "lowerdir+"):
            return value.rpartition(":")[2]
    raise ValueError(f"the overlay on {mount.point} names no lower directory")


def _is_on(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(point + "/")


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found.group(1), 8)), text)
