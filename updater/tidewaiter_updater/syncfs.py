"""syncfs(2), which the standard library does not have: everything on one file system, names and content, goes to storage."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Return when the file system of `fd` is on storage; OSError when it refused (from Linux 5.8 on also for earlier writes)."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"syncfs: {os.strerror(number)}")
