"""Loop devices and what is mounted on them: block devices for tests that run as root. Without root, a skip that says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def loop_device(path: Path, *options: str, size_bytes: int | None = None) -> Iterator[Path]:
    """A block device over the file `path`, which is made (sparse) if a size is given."""
    if size_bytes is not None:
        with path.open("ab") as file:
            file.truncate(size_bytes)
    made = subprocess.run(
        ["losetup", "--find", "--show", *options, str(path)], capture_output=True, text=True
    )
    if made.returncode:
        pytest.skip(f"needs root and loop devices: {made.stderr.strip()}")
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=False)


@contextlib.contextmanager
def mounted(device: Path, point: Path, *options: str) -> Iterator[Path]:
    """`device` mounted on `point`, which is made."""
    point.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", *options, str(device), str(point)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(
            f"needs root, mount and the file system in the kernel: {done.stderr.strip().partition(chr(10))[0]}"
        )
    try:
        yield point
    finally:
        subprocess.run(["umount", str(point)], check=False)


def tool(name: str, package: str) -> str:
    """Path of a program; a skip that names its Debian package when it is not here."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not here (Debian: {package})")
    return found
