"""U-Boot's redundant environment on a block device: two copies, as U-Boot itself and `fw_setenv` read and write them.

Only a block device: in a file on FAT there is one copy, and a torn write leaves none; on raw NOR the flag byte means something
else. What is written when is `copies`' matter; here is the device, and the lock that `fw_setenv` takes too.

Source: update-engine.md section 8; libubootenv (its lock file and its rule for the newer copy).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

from tidewaiter_core.model import SlotName

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.copies import CopyStore, TwoCopies
from tidewaiter_updater.boot.envcopy import COPY_BYTES, COPY_OFFSETS, LAYOUT, from_variables, to_variables
from tidewaiter_updater.boot.medium import write_whole
from tidewaiter_updater.medium import aligned_buffer
from tidewaiter_updater.model import BootEnv

LOCK_FILE: Final = Path("/var/lock/fw_printenv.lock")
"""Of libubootenv and of U-Boot's own tools."""
_LOCK_PAUSE_S: Final = 0.02
_BLKGETSIZE64: Final = 0x80081272


class EnvPartition:
    """CopyStore over a block device, never through the page cache."""

    def __init__(self, path: Path, *, lock_file: Path = LOCK_FILE, lock_wait_s: float = 5.0) -> None:
        """Opens nothing yet; see `check_layout`.

        Args:
            lock_wait_s: How long another writer is waited for, in seconds; `fw_setenv` takes a part of one.
        """
        self.name = str(path)
        self._path = path
        self._lock_file = lock_file
        self._lock_wait_s = lock_wait_s

    def check_layout(self) -> None:
        """Refuse what cannot hold two copies, or is no block device.

        Raises:
            BootEnvError: boot.env-layout; the updater does not start.
        """
        needed = COPY_OFFSETS[1] + COPY_BYTES
        try:
            if not stat.S_ISBLK(self._path.stat().st_mode):
                self._refuse(
                    "expected a block device, found another kind of file (a single copy cannot be torn safely)"
                )
            with self._opened(os.O_RDONLY) as fd:
                size = int.from_bytes(fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)), "little")
        except OSError as err:
            self._refuse(f"expected a block device with the boot environment, found {err.strerror}", err)
        if size < needed:
            self._refuse(f"{size} bytes cannot hold two environment copies ({needed} bytes needed)")

    def read(self, index: int) -> bytes:
        offset = COPY_OFFSETS[index]
        try:
            with self._opened(os.O_RDONLY) as fd, aligned_buffer(COPY_BYTES) as buffer:
                done = os.preadv(fd, [buffer], offset)
                return buffer[:done]
        except OSError as err:
            raise BootEnvError(
                f"{self.name}: reading {COPY_BYTES} bytes at {offset} failed: {err.strerror}"
            ) from err

    def write(self, index: int, data: bytes) -> None:
        offset = COPY_OFFSETS[index]
        try:
            with self._opened(os.O_WRONLY) as fd, aligned_buffer(len(data)) as buffer:
                buffer[:] = data
                write_whole(fd, buffer, offset)
                os.fdatasync(fd)
        except OSError as err:
            raise BootEnvError(
                f"{self.name}: writing {len(data)} bytes at {offset} failed: {err.strerror or err}; "
                "the earlier record still decides"
            ) from err

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep `fw_setenv` out between reading and writing. A lock file that cannot be opened is nobody's lock.

        Raises:
            BootEnvError: Somebody holds the lock and does not end; nothing was read or written.
        """
        try:
            fd = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError:
            yield
            return
        try:
            self._take(fd)
            yield
        finally:
            os.close(fd)

    def _take(self, fd: int) -> None:
        """The lock, without waiting for ever: whoever may open the file could else keep a verdict from being written."""
        deadline_s = time.monotonic() + self._lock_wait_s
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as err:
                if time.monotonic() >= deadline_s:
                    raise BootEnvError(
                        f"{self.name}: {self._lock_file} is held by another process for {self._lock_wait_s:g} s; "
                        "nothing was written, the earlier record still decides"
                    ) from err
                time.sleep(_LOCK_PAUSE_S)

    @contextlib.contextmanager
    def _opened(self, mode: int) -> Iterator[int]:
        fd = os.open(self._path, mode | os.O_DIRECT | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)

    def _refuse(self, finding: str, err: OSError | None = None) -> NoReturn:
        raise BootEnvError(
            f"{self.name}: {finding}; the updater does not start", code="boot.env-layout"
        ) from err


class UbootBoot:
    """BootControl over U-Boot's environment."""

    def __init__(
        self,
        store: CopyStore,
        *,
        booted: Callable[[], SlotName],
        locked: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """
        Args:
            booted: Names the booted slot, or raises SlotMismatchError.
            locked: Keeps other writers of the environment out.
        """
        self._copies = TwoCopies(store, LAYOUT)
        self._booted = booted
        self._locked = locked

    def read(self) -> BootEnv | None:
        copy = self._copies.read()
        return from_variables(copy.variables) if copy else None

    def booted(self) -> SlotName:
        return self._booted()

    def write(self, env: BootEnv) -> None:
        with self._locked():
            self._copies.write(to_variables(env))
