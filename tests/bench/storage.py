"""The slots that benchmarks write: loop devices over a file on the disk or in memory; plain files where this is not root."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.sim.image import tool

MEMORY: Final = Path("/dev/shm")
SLOW_BYTES_PER_S: Final = 150_000_000
"""What a good eMMC writes."""
SLOW_READ_BYTES_PER_S: Final = 300_000_000
"""And reads."""
_LIMITS: Final = {
    Path("/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device"): SLOW_BYTES_PER_S,
    Path("/sys/fs/cgroup/blkio/blkio.throttle.read_bps_device"): SLOW_READ_BYTES_PER_S,
}
_PIECE_BYTES: Final = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Somewhere an image of `size_bytes` goes."""

    path: Path
    size_bytes: int
    what: str
    """For people: loop device over a file on the disk, and so on."""
    soils: bool = True
    """False: allocating is nothing beside writing, and filling it would take longest."""

    def soil(self) -> None:
        """Fill it with other bytes, all on storage: every run finds the same slot, whoever was there before.

        Without it a run that punched holes (zeros by BLKZEROOUT) would make the next one allocate.
        """
        if not self.soils:
            os.sync()
            return
        buffer = mmap.mmap(-1, _PIECE_BYTES)
        buffer[:] = os.urandom(4096) * (_PIECE_BYTES // 4096)
        fd = os.open(self.path, os.O_WRONLY | (os.O_DIRECT if self.path.is_block_device() else 0))
        try:
            for offset in range(0, self.size_bytes, _PIECE_BYTES):
                with memoryview(buffer) as view, view[: self.size_bytes - offset] as piece:
                    os.pwrite(fd, piece, offset)
            os.fsync(fd)
        finally:
            os.close(fd)
            buffer.close()
        os.sync()


def is_root() -> bool:
    """Whether loop devices can be made."""
    return os.geteuid() == 0


@contextlib.contextmanager
def disk_slot(folder: Path, size_bytes: int) -> Iterator[Slot]:
    """A slot on the disk that `folder` is on."""
    with _backed(folder, size_bytes) as file:
        if not is_root():
            yield Slot(path=file, size_bytes=size_bytes, what="a file (not root: no loop device)")
            return
        with _looped(file, direct=True) as device:
            what = "a loop device with direct I/O over a file on the disk"
            yield Slot(path=device, size_bytes=size_bytes, what=what)


@contextlib.contextmanager
def slow_disk_slot(folder: Path, size_bytes: int) -> Iterator[Slot]:
    """A slot on the disk that takes and gives no more bytes a second than an eMMC: the kernel's limit on this loop device alone.

    Raises:
        OSError: The kernel cannot limit it here (control group blkio, version 1).
    """
    for limit in _LIMITS:
        if not limit.is_file():
            raise OSError(f"{limit}: not there; the kernel cannot make a disk slower here")
    with disk_slot(folder, size_bytes) as slot:
        status = slot.path.stat()
        device = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        slot.soil()
        try:
            for limit, bytes_per_s in _LIMITS.items():
                limit.write_text(f"{device} {bytes_per_s}")
            what = (
                f"{slot.what}, limited to {SLOW_BYTES_PER_S / 1e6:.0f} MB/s of writing and "
                f"{SLOW_READ_BYTES_PER_S / 1e6:.0f} MB/s of reading"
            )
            yield Slot(path=slot.path, size_bytes=size_bytes, what=what, soils=False)
        finally:
            for limit in _LIMITS:
                limit.write_text(f"{device} 0")


@contextlib.contextmanager
def memory_slot(size_bytes: int) -> Iterator[Slot]:
    """A slot in memory, where the processor is the limit and not the disk.

    Raises:
        OSError: There is not enough memory.
    """
    if shutil.disk_usage(MEMORY).free < size_bytes + (1 << 30):
        raise OSError(f"{MEMORY}: less than {(size_bytes >> 20) + 1024} MiB are free")
    with _backed(MEMORY, size_bytes) as file, _looped(file, direct=False) as device:
        yield Slot(path=device, size_bytes=size_bytes, what="a loop device over a file in memory")


@contextlib.contextmanager
def _backed(folder: Path, size_bytes: int) -> Iterator[Path]:
    with tempfile.NamedTemporaryFile(prefix="tw-bench-slot-", dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        yield Path(file.name)


@contextlib.contextmanager
def _looped(file: Path, *, direct: bool) -> Iterator[Path]:
    losetup = tool("losetup")
    command = [losetup, "--find", "--show", f"--direct-io={'on' if direct else 'off'}", str(file)]
    device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run([losetup, "--detach", device], check=True)
