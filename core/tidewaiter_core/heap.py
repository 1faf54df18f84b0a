"""Makes large blocks of memory return to the system when they are freed, for processes with a bound on memory.

glibc serves what is as large as anything that was freed before from its heap, where a small block that lands in the hole of a
large one makes the next large one grow the heap: with prefixes of up to 8 MiB one after the other the peak of the same
installation was 55 MiB in one run and 63 in another. Set explicitly, the threshold stays where it is.
"""

from __future__ import annotations

import ctypes
from typing import Final

LARGE_BYTES: Final = 2 * 1024 * 1024
"""Prefixes and windows of a patch are larger; what a transfer allocates again and again is smaller, and cheaper in the heap."""
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_TRIM_BYTES: Final = 16 * 1024 * 1024
"""Setting either threshold fixes both; the standard one (128 KiB) would give the heap's end back with every chunk."""


def return_large_blocks() -> bool:
    """Set it for this process. False: the C library has no such setting (musl maps every large block by itself anyway)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES))
