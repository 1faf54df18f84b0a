"""A slot's storage that fails like real ones: short writes, EIO, ENOSPC, a medium that lies, a power cut.

It implements `tidewaiter_updater.device.Medium`. Written blocks are pending until `sync`; reading through the descriptor that
wrote them sees them (as a cache would), reading after `reopen` sees only what is on the medium.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

BLOCK_BYTES = 4096


@dataclass
class Faults:
    """What goes wrong, and how often; counts are used up."""

    write_errors: dict[int, int] = field(default_factory=dict)
    """Block number -> errno of the next write that touches it."""
    read_errors: dict[int, int] = field(default_factory=dict)
    sync_error: int | None = None
    full_after_bytes: int | None = None
    """ENOSPC once this many bytes were written."""
    short_writes: int = 0
    """How many of the next writes stop after one block."""
    stuck_blocks: set[int] = field(default_factory=set)
    """Blocks that keep their old content although write and sync succeed."""
    lies: int = 0
    """How many of the next syncs lose the first pending block for good and say nothing."""


class FaultyDisk:
    """A medium in memory."""

    zeroes_ranges = False

    def __init__(self, size_bytes: int, *, name: str = "slot-b", content: bytes = b"") -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.faults = Faults()
        self.writes: list[tuple[int, int]] = []
        """(offset, bytes) of every write that reached the disk."""
        self.reads: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int]] = []
        self.syncs = 0
        self.most_unsynced_bytes = 0
        self.is_open = True
        self._medium = bytearray(content.ljust(size_bytes, b"\xa5"))
        self._pending: dict[int, bytes] = {}
        self._lock = threading.Lock()
        """One thread writes while another syncs and others read."""

    @property
    def written_bytes(self) -> int:
        return sum(length for _, length in self.writes)

    @property
    def content(self) -> bytes:
        """What is on the medium now."""
        return bytes(self._medium)

    def read(self, buffer: memoryview, offset: int) -> int:
        with self._lock:
            self._aligned(len(buffer), offset)
            self.reads.append((offset, len(buffer)))
            for block in self._blocks(offset, len(buffer)):
                if block in self.faults.read_errors:
                    self._raise(self.faults.read_errors.pop(block))
                start = block * BLOCK_BYTES - offset
                data = self._pending.get(block, self._medium[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
                buffer[start : start + BLOCK_BYTES] = data
            return len(buffer)

    def write(self, buffer: memoryview, offset: int) -> int:
        with self._lock:
            self._aligned(len(buffer), offset)
            length = len(buffer)
            for block in self._blocks(offset, length):
                if block in self.faults.write_errors:
                    self._raise(self.faults.write_errors.pop(block))
            full = self.faults.full_after_bytes
            if full is not None and self.written_bytes + length > full:
                self._raise(errno.ENOSPC)
            if self.faults.short_writes > 0 and length > BLOCK_BYTES:
                self.faults.short_writes -= 1
                length = BLOCK_BYTES
            self.writes.append((offset, length))
            for block in self._blocks(offset, length):
                start = block * BLOCK_BYTES - offset
                self._pending[block] = bytes(buffer[start : start + BLOCK_BYTES])
            self.most_unsynced_bytes = max(self.most_unsynced_bytes, len(self._pending) * BLOCK_BYTES)
            return length

    def zero(self, offset: int, length: int) -> None:
        with self._lock:
            self.zeroed.append((offset, length))
            for block in self._blocks(offset, length):
                self._pending[block] = bytes(BLOCK_BYTES)

    def sync(self) -> None:
        with self._lock:
            self.syncs += 1
            if self.faults.sync_error is not None:
                code, self.faults.sync_error = self.faults.sync_error, None
                self._raise(code)
            if self.faults.lies > 0 and self._pending:
                self.faults.lies -= 1
                del self._pending[min(self._pending)]
            for block, data in self._pending.items():
                if block not in self.faults.stuck_blocks:
                    self._medium[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = data
            self._pending.clear()

    def reopen(self) -> FaultyDisk:
        self.sync()
        return self

    def close(self) -> None:
        self.is_open = False

    def power_cut(self, *, keep: Iterable[int] = ()) -> None:
        """Drop what was not synced, but for the pending blocks `keep` (a disk may write any subset)."""
        with self._lock:
            for block in keep:
                if block in self._pending:
                    self._medium[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = self._pending[block]
            self._pending.clear()

    def corrupt(self, offset: int) -> None:
        """Flip a bit of the medium behind everybody's back."""
        self._medium[offset] ^= 1

    def _blocks(self, offset: int, length: int) -> range:
        return range(offset // BLOCK_BYTES, (offset + length) // BLOCK_BYTES)

    def _aligned(self, length: int, offset: int) -> None:
        if length % BLOCK_BYTES or offset % BLOCK_BYTES:
            self._raise(errno.EINVAL)
        if offset + length > self.size_bytes:
            self._raise(errno.ENOSPC)

    def _raise(self, code: int) -> None:
        raise OSError(code, os.strerror(code))
