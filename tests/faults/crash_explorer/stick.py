"""A memory stick with the releases of a story: a real directory, read by the product's own source of directories."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from tidewaiter_updater.directory_source import DirectorySource

from tests.faults.crash_explorer.releases import Made


def stick(releases: tuple[Made, ...]) -> DirectorySource:
    """The medium, just put in."""
    return DirectorySource(os.open(stick_folder(releases), os.O_RDONLY | os.O_DIRECTORY), name="stick")


def stick_folder(releases: tuple[Made, ...]) -> Path:
    """Where it is mounted. Nothing is ever written to it, so equal sticks are one."""
    return _written(tuple(sorted((name, data) for made in releases for name, data in made.targets.items())))


@cache
def _written(files: tuple[tuple[str, bytes], ...]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tidewaiter-stick-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, data in files:
        path = folder / "targets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "metadata").mkdir(exist_ok=True)
    return folder
