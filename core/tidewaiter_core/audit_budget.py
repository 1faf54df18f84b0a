"""The space an audit log may use, and the reserve that a full disk's last records are written to.

The reserve is really allocated blocks. It is given up when the log becomes full; the log is healed when space was made and the
reserve is back. Source: security-and-audit.md section 6, table of states.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

from tidewaiter_core.audit_files import FILE_MODE, RESERVE_BYTES, RESERVE_NAME, usage_bytes
from tidewaiter_core.audit_limits import Space, space_of
from tidewaiter_core.durable import Disk

logger = logging.getLogger(__name__)

HEAL_EVERY_S = 60.0
_NEXT_RECORD_BYTES = 1024
_HEALED_BYTES = 4096


class Budget:
    """Counts bytes and knows whether the log is full, and why."""

    def __init__(self, directory: Path, budget_bytes: int, *, disk: Disk, now_s: float) -> None:
        self._directory = directory
        self._budget_bytes = budget_bytes
        self._disk = disk
        self._heal_at_s = 0.0
        self.used_bytes = usage_bytes(directory)
        self.space = Space.NORMAL
        self.full_reason = ""
        """Why beginnings are refused; empty while there is space."""
        self._set_up_reserve(now_s)

    def follow(self, now_s: float) -> bool:
        """Update `space`; True when it has just left NORMAL without being full."""
        before = self.space
        space = space_of(self.used_bytes, self._budget_bytes, next_bytes=_NEXT_RECORD_BYTES)
        if space is Space.FULL:
            self.become_full("the budget is used up", now_s)
        self.space = Space.FULL if self.full_reason else space
        return before is Space.NORMAL and self.space in (Space.LOW, Space.SHORT)

    def become_full(self, reason: str, now_s: float) -> None:
        """From now on only last words are taken; the reserve makes room for them."""
        if self.full_reason:
            return
        logger.error("audit log in %s is full: %s; actions are refused", self._directory, reason)
        self.full_reason, self.space = reason, Space.FULL
        self._heal_at_s = now_s + HEAL_EVERY_S
        with contextlib.suppress(OSError):
            (self._directory / RESERVE_NAME).unlink(missing_ok=True)

    def has_room_for_last_words(self, data_bytes: int) -> bool:
        """Within the budget and the reserve together."""
        return self.used_bytes + data_bytes <= self._budget_bytes + RESERVE_BYTES

    def heal(self, now_s: float) -> None:
        """Look once a minute whether the log is still full."""
        if not self.full_reason or now_s < self._heal_at_s:
            return
        self._heal_at_s = now_s + HEAL_EVERY_S
        self.used_bytes = usage_bytes(self._directory)
        if space_of(self.used_bytes, self._budget_bytes, next_bytes=_HEALED_BYTES) is Space.FULL:
            return
        if self._set_up_reserve(now_s):
            logger.warning("audit log in %s has space again", self._directory)
            self.full_reason, self.space = "", Space.NORMAL

    def as_fields(self) -> dict[str, Any]:
        """For audit.disk_low and audit.full."""
        return {
            "bytes": self.used_bytes,
            "budget_bytes": self._budget_bytes,
            "reason": self.full_reason or None,
        }

    def _set_up_reserve(self, now_s: float) -> bool:
        path = self._directory / RESERVE_NAME
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
            try:
                os.fchmod(descriptor, FILE_MODE)
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
                self._disk.sync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as err:
            self.become_full(f"no room for the reserve: {err.strerror}", now_s)
            return False
        return True
