"""A file that a command makes: beside its place under another name first, so that only a finished one is ever found there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from tidewaiter_release.errors import InputError


@contextlib.contextmanager
def replacing(out: Path, *, inputs: Sequence[Path], consequence: str) -> Iterator[Path]:
    """The name to write under; it becomes `out` at the end, and is removed after an error or Ctrl-C.

    Args:
        out: The file to make. An older one is replaced.
        inputs: What it is made of; never replaced.
        consequence: How a sentence about a failure ends.

    Raises:
        InputError: `out` is one of the inputs or a folder, or cannot be written.
    """
    for given in inputs:
        if _same(out, given):
            raise InputError(
                f"{out}: is {given}, from which it would be made; {consequence}, choose another name"
            )
    if out.is_dir():
        raise InputError(f"{out}: expected the name of a file, found a folder; {consequence}")
    temporary = out.with_name(f".{out.name}.tmp")
    try:
        yield temporary
        temporary.replace(out)
    except OSError as err:
        raise InputError(f"{out}: cannot be written: {err.strerror or err}; {consequence}") from err
    finally:
        with contextlib.suppress(OSError):  # a read-only folder refuses even the removal of what is not there
            temporary.unlink(missing_ok=True)


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
