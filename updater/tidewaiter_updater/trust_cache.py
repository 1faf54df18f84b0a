"""The folder python-tuf keeps its metadata in: what it neither tidies nor syncs by itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def tidy(metadata_dir: Path) -> None:
    """Remove what python-tuf would trip over: half-written temporary files, and whatever is in the way of its own files."""
    history = metadata_dir / "root_history"
    metadata_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in [*metadata_dir.iterdir(), *(history.iterdir() if history.is_dir() else ())]:
        if path == history:
            wanted = path.is_dir() and not path.is_symlink()
        elif path == metadata_dir / "root.json":
            wanted = path.is_symlink()
        else:
            wanted = path.is_file() and not path.is_symlink() and path.suffix == ".json"
        if not wanted and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not wanted:
            path.unlink()


def sync(metadata_dir: Path) -> None:
    """Make the cached metadata durable; python-tuf never does."""
    history = metadata_dir / "root_history"
    for path in [*metadata_dir.glob("*.json"), *history.glob("*.json"), history, metadata_dir]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
