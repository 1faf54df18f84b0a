"""A device whose clock stands at the beginning of 1970, for the processes that are started with its Python.

The service starts its trust child with its own interpreter and an empty environment, so a preloaded library alone would not reach
the child. This is a virtual environment of its own whose `python` is a script that preloads libfaketime and becomes the real one.
"""

import shutil
import sys
from pathlib import Path

import pytest

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib/faketime/libfaketimeMT.so.1")


def python_of_1970(folder: Path, *, waits: bool) -> Path:
    """The interpreter of this test, ten seconds after the epoch at each start; skips where faketime is not installed.

    Args:
        waits: For a program that waits for events. libfaketime 0.9.10 breaks either those waits (they return at once) or
            time.sleep (it never returns); so each program gets the clock that leaves it working.
    """
    found = [path for pattern in LIBRARIES for path in Path("/").glob(pattern[1:])]
    if not found:
        pytest.skip("needs the Debian package faketime")
    (folder / "bin").mkdir(parents=True)
    shutil.copyfile(Path(sys.prefix) / "pyvenv.cfg", folder / "pyvenv.cfg")
    (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
    python = folder / "bin/python"
    real = Path(sys.executable).resolve()
    monotonic = "FAKETIME_DONT_FAKE_MONOTONIC=1" if waits else ""
    python.write_text(
        "#!/bin/bash\n"
        f"export LD_PRELOAD={found[0]} FAKETIME='@1970-01-01 00:00:10' TZ=UTC {monotonic}\n"
        f'exec -a "$0" {real} "$@"\n'
    )
    python.chmod(0o755)
    return python
