"""A real FAT in a file, through mtools: port Disk without root and without the kernel's vfat, and the outcomes of a cut rename.

mtools writes directory entries as FAT has them (long names, a deleted entry keeps its clusters). So the four images that a rename
may leave are made from the images before and after it, entry by entry: the new one may be there or not, the old one gone or not.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from pathlib import Path

from tidewaiter_core.disk import DiskEntry
from tidewaiter_updater.boot import grubenv
from tidewaiter_updater.boot.envcopy import to_variables
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE
from tidewaiter_updater.boot.grub import FILES

from tests.sim.boot.installed import FACTORY
from tests.sim.loop import tool

ROOT = Path("/esp")
IMAGE_BYTES = 16 * 1024 * 1024
_ENTRY_BYTES = 32
_FREE = (0x00, 0xE5)
"""First byte of a directory entry that is not in use."""
_LEFT = re.compile(r"([0-9 ]+) bytes free")


class FatDisk:
    """Port Disk over the partition. A file that is written is on the partition from its sync on."""

    def __init__(self, image: Path) -> None:
        """Make a new, empty partition."""
        tool("mtools", "mtools")
        with image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        command = [tool("mkfs.vfat", "dosfstools"), "-F", "16", str(image)]
        subprocess.run(command, check=True, capture_output=True)
        self.image = image
        self.watched = ""
        """A rename to a name that begins with this is recorded for `cut`."""
        self._open: dict[int, tuple[Path, bytearray]] = {}
        self._next = 3

    # --- port Disk ---

    def create(self, path: Path) -> int:
        return self._opened(path, self._content(path) if self.exists(path) else b"")

    def open(self, path: Path) -> int:
        return self._opened(path, self._content(path))

    def read_at(self, fd: int, length: int, offset: int) -> bytes:
        return bytes(self._open[fd][1][offset : offset + length])

    def length(self, fd: int) -> int:
        return len(self._open[fd][1])

    def write(self, fd: int, data: bytes) -> int:
        self._open[fd][1].extend(data)
        return len(data)

    def write_at(self, fd: int, data: bytes, offset: int) -> int:
        content = self._open[fd][1]
        content.extend(bytes(max(0, offset - len(content))))  # FAT has no holes
        content[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, fd: int, length: int) -> None:
        del self._open[fd][1][length:]

    def permit(self, fd: int, mode: int) -> None: ...

    def sync(self, fd: int) -> None:
        path, content = self._open[fd]
        aside = self.image.with_suffix(".tmp")
        aside.write_bytes(content)
        self._run("mcopy", "-o", str(aside), _inside(path))

    def close(self, fd: int) -> None:
        del self._open[fd]

    def replace(self, source: Path, target: Path) -> None:
        if self.exists(target):
            self.remove(target)
        is_watched = bool(self.watched) and target.name.startswith(self.watched)
        if is_watched:
            shutil.copyfile(self.image, self.image.with_suffix(".before"))
        if source.parent == target.parent:
            self._run("mren", _inside(source), _inside(target))
        else:
            self._run("mmove", _inside(source), _inside(target))
        if is_watched:
            shutil.copyfile(self.image, self.image.with_suffix(".after"))

    def remove(self, path: Path) -> None:
        if self.exists(path):
            self._run("mdel", _inside(path))

    def sync_directory(self, directory: Path) -> None: ...

    def read(self, path: Path, limit_bytes: int) -> bytes:
        return self._content(path)[:limit_bytes]

    def exists(self, path: Path) -> bool:
        return any(entry.name == path.name for entry in self.entries(path.parent))

    def make_directory(self, path: Path) -> None:
        self._run("mmd", _inside(path))

    def entries(self, directory: Path) -> list[DiskEntry]:
        found = []
        for line in self._run("mdir", "-b", f"{_inside(directory)}/").decode().splitlines():
            name = line.rstrip("/").rpartition("/")[2]
            size = 0 if line.endswith("/") else len(self._content(directory / name))
            found.append(DiskEntry(name, size, 0, line.endswith("/")))
        return sorted(found, key=lambda entry: entry.name)

    def free_bytes(self, directory: Path) -> int:
        found = _LEFT.search(self._run("mdir", "::/").decode())
        assert found is not None
        return int(found.group(1).replace(" ", ""))

    # --- the partition ---

    def put(self, path: Path, data: bytes) -> None:
        """Write a file whole."""
        fd = self.create(path)
        self.truncate(fd, 0)
        self.write(fd, data)
        self.sync(fd)
        self.close(fd)

    def cut(self, *, is_new: bool, is_old: bool) -> None:
        """Make the partition what a cut in the middle of the watched rename leaves.

        Args:
            is_new: The new name is there.
            is_old: The old name is still there.
        """
        before = self.image.with_suffix(".before").read_bytes()
        after = self.image.with_suffix(".after").read_bytes()
        made = bytearray(after)
        for at in range(0, len(before), _ENTRY_BYTES):
            was, then = before[at : at + _ENTRY_BYTES], after[at : at + _ENTRY_BYTES]
            appears = was[0] in _FREE and then[0] not in _FREE
            vanishes = was[0] not in _FREE and then[0] in _FREE
            rewritten = was != then and not appears and not vanishes
            # A rename in place of the old entry: both names are one entry then, and either is there.
            if (appears and not is_new) or (vanishes and is_old) or (rewritten and not is_new):
                made[at : at + _ENTRY_BYTES] = was
        self.image.write_bytes(made)
        self.watched = ""

    def is_clean(self) -> bool:
        """Whether fsck finds nothing to repair."""
        command = [tool("fsck.vfat", "dosfstools"), "-n", str(self.image)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def _opened(self, path: Path, content: bytes) -> int:
        self._next += 1
        self._open[self._next] = (path, bytearray(content))
        return self._next

    def _content(self, path: Path) -> bytes:
        return self._run("mtype", _inside(path))

    def _run(self, program: str, *arguments: str) -> bytes:
        done = subprocess.run(
            [tool(program, "mtools"), "-i", str(self.image), *arguments],
            capture_output=True,
            env={**os.environ, "MTOOLS_SKIP_CHECK": "1"},
        )
        if done.returncode:
            raise OSError(errno.ENOENT, f"{program} {' '.join(arguments)}: {done.stderr.decode().strip()}")
        return done.stdout


def format_esp(
    fat: FatDisk, *, kernel: bytes = b"kernel of the factory", spare: bytes = b"kernel of the factory"
) -> None:
    """What the factory writes: slot A committed, slot B the same image, both in sight of systemd-boot."""
    for folder in ("EFI", ENTRIES, PRIVATE):
        fat.make_directory(ROOT / folder)
    fat.put(ROOT / ENTRIES / "tidewaiter-1.0.A.efi", kernel)
    fat.put(ROOT / ENTRIES / "tidewaiter-1.0.B+0.efi", spare)
    for number, name in enumerate(FILES):
        raw = grubenv.encode(to_variables(FACTORY), number=number)
        fat.put(ROOT / PRIVATE / name, raw)


class Records:
    """CopyStore over two files of the partition."""

    name = "records"

    def __init__(self, disk: FatDisk) -> None:
        self._disk = disk

    def read(self, index: int) -> bytes:
        return self._disk.read(ROOT / PRIVATE / FILES[index], grubenv.BLOCK_BYTES + 1)

    def write(self, index: int, data: bytes) -> None:
        self._disk.put(ROOT / PRIVATE / FILES[index], data)


def _inside(path: Path) -> str:
    """Below the partition's root as mtools writes it."""
    return f"::/{path.relative_to(ROOT)}"
