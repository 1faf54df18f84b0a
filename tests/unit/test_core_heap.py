"""Large blocks return to the system when they are freed."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tidewaiter_core import heap

_HOLES = """
from tidewaiter_core import heap

def rss_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

assert heap.return_large_blocks()
before, kept = rss_kib(), []
for number in range(4, 9):  # each larger than all before, and a small block in the hole of each
    block = b"\\xa5" * (number << 20)
    del block
    kept.append(b"\\xa5" * (1 << 19))
print(rss_kib() - before)
"""


def test_blocks_of_growing_size_leave_no_holes_behind() -> None:
    if not heap.return_large_blocks():
        pytest.skip("the C library has no mallopt")
    done = subprocess.run([sys.executable, "-c", _HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 4 << 10
