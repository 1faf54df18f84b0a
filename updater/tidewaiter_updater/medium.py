"""The storage behind a slot, as a port: block devices, files that play one, or a test world.

`Medium` is what the operating system offers (a write may be short, a sync may fail), `Media` is where a path becomes one.
A slot that is a file (bench, demo) takes the same path; only there buffered access may stand in for O_DIRECT, followed by
POSIX_FADV_DONTNEED. A block device never falls back: reading back through the page cache proves nothing.

Source: update-engine.md section 7.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import Final, Protocol

from tidewaiter_updater.block_stack import Device, FileTree, Kernel, disk_of, stack_of
from tidewaiter_updater.errors import SlotError

BLOCK_BYTES: Final = 4096
_BLKROGET: Final = 0x125E
_BLKSSZGET: Final = 0x1268
_BLKZEROOUT: Final = 0x127F
_BLKGETSIZE64: Final = 0x80081272


def aligned_buffer(length: int) -> mmap.mmap:
    """Page-aligned memory; O_DIRECT gives EINVAL for the memory of a bytes object."""
    return mmap.mmap(-1, length)


class Medium(Protocol):
    """What a slot's storage does. Offsets and lengths are multiples of 4096, buffers page-aligned."""

    name: str
    size_bytes: int
    zeroes_ranges: bool
    """Whether `zero` costs less than writing zeros."""

    def read(self, buffer: memoryview, offset: int) -> int:
        """Bytes read into `buffer`; may be fewer than asked, OSError on a medium error."""

    def write(self, buffer: memoryview, offset: int) -> int:
        """Bytes written; may be fewer than asked."""

    def zero(self, offset: int, length: int) -> None: ...

    def sync(self) -> None:
        """Return when all that was written is on storage."""

    def reopen(self) -> Medium:
        """Close, and open again for reading only, so that nothing of this open survives in a cache."""

    def close(self) -> None: ...


class SystemMedium:
    """A block device, or a file that plays one."""

    def __init__(self, path: Path, fd: int, *, is_block: bool, size_bytes: int, direct: bool) -> None:
        self.name = str(path)
        self.size_bytes = size_bytes
        self.zeroes_ranges = is_block
        self.direct = direct
        self._path = path
        self._fd = fd
        self._is_block = is_block

    def read(self, buffer: memoryview, offset: int) -> int:
        count = os.preadv(self._fd, [buffer], offset)
        self._drop_cache(offset, count)
        return count

    def write(self, buffer: memoryview, offset: int) -> int:
        return os.pwrite(self._fd, buffer, offset)

    def zero(self, offset: int, length: int) -> None:
        # Unprivileged, unlike BLKFLSBUF; BLKDISCARD may read back as anything.
        fcntl.ioctl(self._fd, _BLKZEROOUT, struct.pack("=QQ", offset, length))

    def sync(self) -> None:
        os.fdatasync(self._fd)
        self._drop_cache(0, 0)

    def reopen(self) -> SystemMedium:
        self.sync()
        before = os.fstat(self._fd)
        self.close()
        again = open_medium(self._path, writable=False)
        if _device(os.fstat(again._fd)) != _device(before):
            again.close()
            raise _changed(self._path)
        return again

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _drop_cache(self, offset: int, length: int) -> None:
        if not self.direct:
            os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)


def identity(path: Path) -> Device:
    """Which storage `path` is: major and minor of a device, device and inode of a file.

    Raises:
        SlotError: It is neither, or cannot be looked at.
    """
    try:
        status = path.stat()
    except OSError as err:
        raise _refusal(path, err) from err
    device = _device(status)
    if device is None:
        raise SlotError(
            f"{path}: expected a block device or a file, found neither; not opened", code="slot.label"
        )
    return device


def _device(status: os.stat_result) -> Device | None:
    if stat.S_ISBLK(status.st_mode):
        return os.major(status.st_rdev), os.minor(status.st_rdev)
    return (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) else None


def _changed(path: Path) -> SlotError:
    return SlotError(
        f"{path}: leads to another device than a moment ago; not used", code="slot.io", retryable=True
    )


def open_medium(path: Path, *, writable: bool) -> SystemMedium:
    """Open a slot so that a mounted one is refused and nobody else writes it meanwhile.

    Raises:
        SlotError: slot.busy, slot.read-only, slot.label or slot.io.
    """
    is_block = path.is_block_device()
    expected = identity(path)
    flags = os.O_CLOEXEC | os.O_NOFOLLOW * (not is_block) | (os.O_RDWR if writable else os.O_RDONLY)
    if is_block and writable:
        # O_EXCL is what gives EBUSY for a mounted device; for reading, the booted slot must stay readable.
        flags |= os.O_EXCL
    direct = True
    try:
        try:
            fd = os.open(path, flags | os.O_DIRECT)
        except OSError as err:
            if is_block or err.errno != errno.EINVAL:
                raise
            direct = False  # a file on a file system without O_DIRECT (tmpfs before Linux 6.6, some overlays)
            fd = os.open(path, flags)
    except OSError as err:
        raise _refusal(path, err) from err
    try:
        if _device(os.fstat(fd)) != expected:
            raise _changed(path)
        size = _prepare(path, fd, is_block=is_block, writable=writable)
    except OSError as err:
        os.close(fd)
        raise _refusal(path, err) from err
    except SlotError:
        os.close(fd)
        raise
    return SystemMedium(path, fd, is_block=is_block, size_bytes=size, direct=direct)


def _prepare(path: Path, fd: int, *, is_block: bool, writable: bool) -> int:
    """Size in bytes of an open slot, after the checks that need the descriptor."""
    if not is_block:
        fcntl.flock(fd, (fcntl.LOCK_EX if writable else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        return os.fstat(fd).st_size
    sector = _ioctl_number(fd, _BLKSSZGET, "=i")
    if sector not in (512, BLOCK_BYTES):
        raise SlotError(
            f"{path}: expected sectors of 512 or 4096 bytes, found {sector}; not written", code="slot.size"
        )
    if writable and _ioctl_number(fd, _BLKROGET, "=i"):
        raise SlotError(f"{path}: the device is read-only; the slot cannot be written", code="slot.read-only")
    return _ioctl_number(fd, _BLKGETSIZE64, "=Q")


def _ioctl_number(fd: int, request: int, layout: str) -> int:
    answer = fcntl.ioctl(fd, request, bytes(struct.calcsize(layout)))
    value: int = struct.unpack(layout, answer)[0]
    return value


def _refusal(path: Path, err: OSError) -> SlotError:
    reason = err.strerror or str(err)
    if err.errno in (errno.EBUSY, errno.EWOULDBLOCK):
        return SlotError(
            f"{path}: in use ({reason}): mounted, or held by another process; not written", code="slot.busy"
        )
    if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return SlotError(f"{path}: may not be written ({reason})", code="slot.read-only")
    return SlotError(f"{path}: cannot be opened as a slot ({reason})", code="slot.io", retryable=True)


def partition_label(path: Path) -> str | None:
    """The partition's name in the partition table; None if the storage has none."""
    if not path.is_block_device():
        return None
    major, minor = identity(path)
    with contextlib.suppress(OSError):
        for line in Path(f"/sys/dev/block/{major}:{minor}/uevent").read_text(encoding="utf-8").splitlines():
            if line.startswith("PARTNAME="):
                return line.removeprefix("PARTNAME=")
    return None


class Media(Protocol):
    """Where slots are found by path: the kernel's devices and files, or those of a test world. Methods raise SlotError."""

    def identity(self, path: Path) -> Device:
        """Which storage `path` is; equal numbers are the same storage."""

    def stack(self, path: Path) -> frozenset[Device]:
        """The same, and all storage that it maps."""

    def disks(self, path: Path) -> frozenset[str]:
        """The disks whose partitions `path` is or maps; none where nothing tells of partitions."""

    def label(self, path: Path) -> str | None:
        """The partition's name, None where there is no partition table."""

    def open(self, path: Path, *, writable: bool) -> Medium: ...


class SystemMedia:
    """Port Media over the kernel."""

    def __init__(self, kernel: Kernel | None = None) -> None:
        """
        Args:
            kernel: Where the kernel tells what lies below a device; default: in its own files.
        """
        self._kernel = kernel or FileTree()

    def identity(self, path: Path) -> Device:
        return identity(path)

    def is_block(self, path: Path) -> bool:
        """Whether it is a device; a file that plays one has nothing below it that the kernel would tell of."""
        return path.is_block_device()

    def stack(self, path: Path) -> frozenset[Device]:
        device = self.identity(path)
        if not self.is_block(path):
            return frozenset((device,))
        try:
            return stack_of(self._kernel, device)
        except (OSError, ValueError) as err:
            raise SlotError(
                f"{path}: what the device maps cannot be told ({err}), it may be the booted slot; not written",
                code="slot.booted",
            ) from err

    def disks(self, path: Path) -> frozenset[str]:
        if not self.is_block(path):
            return frozenset()
        try:
            found = [disk_of(self._kernel, device) for device in self.stack(path)]
        except OSError as err:
            raise SlotError(
                f"{path}: its disk cannot be told ({err}); not written", code="slot.label"
            ) from err
        return frozenset(disk for disk in found if disk is not None)

    def label(self, path: Path) -> str | None:
        return partition_label(path)

    def open(self, path: Path, *, writable: bool) -> Medium:
        return open_medium(path, writable=writable)


SYSTEM_MEDIA: Final[Media] = SystemMedia()
