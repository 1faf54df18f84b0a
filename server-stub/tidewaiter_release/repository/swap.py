"""A directory takes the place of another in one step of the kernel: whoever looks sees the old one or the new one.

`renameat2(RENAME_EXCHANGE)`, which Python does not wrap. ext4, xfs, btrfs and tmpfs have it; where a file system has not, the
caller falls back to writing file by file in an order that a reader survives.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_UNSUPPORTED = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})


def exchange(first: Path, second: Path) -> bool:
    """Swap two directories of one file system, atomically; False where the kernel or the file system cannot.

    Raises:
        OSError: It can, and it failed; nothing was swapped.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    status = renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)
    )
    if status == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(first))
