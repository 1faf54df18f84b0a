"""A directory with releases, as the person who runs the command sees it: opened here, handed to the updater as an open file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidewaiter_core.redaction import escape

from tidewaiter_agent.errors import MediumError

FOLDER = "TIDEWAITER"
_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SOURCE_CHARS = 240


def source_of(directory: Path) -> str:
    """What the updater calls this medium in its status, its journal and its audit records."""
    return f"directory:{escape(str(directory.absolute()))}"[:_SOURCE_CHARS]


@contextmanager
def opened(directory: Path) -> Iterator[int]:
    """The folder with metadata and targets: TIDEWAITER in `directory`, or `directory` itself.

    Raises:
        MediumError: It is not there (any more), or it is no update medium.
    """
    descriptor = _open(directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(directory: Path) -> int:
    try:
        top = os.open(directory, _FLAGS)
    except OSError as err:
        raise MediumError(f"{directory}: cannot be opened ({err.strerror}); is the medium mounted?") from err
    for name in (FOLDER, "."):
        try:
            folder = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=top)
        except OSError:
            continue
        if all(_has(folder, part) for part in ("metadata", "targets")):
            os.close(top)
            return folder
        os.close(folder)
    os.close(top)
    raise MediumError(
        f"{directory}: expected a folder {FOLDER} with metadata and targets in it, as `tidewaiter-release export` makes it; "
        "found none, so this is no update medium"
    )


def _has(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except OSError:
        return False
    return True
