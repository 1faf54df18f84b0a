"""An audit log in a directory with a false clock, and a medium that refuses on command."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

from tidewaiter_core.audit import Actor, AuditLog
from tidewaiter_core.durable import SystemDisk

from tests.sim.clock import FakeClock

BOOT_ID = "0f7c1c9e5b7a4d0c8e7c7f2d1a3b4c5d"
ORIGIN = "vendor.example/device/INJ-000123/updater"
ACTOR = Actor("component", "updater")


class Medium(SystemDisk):
    """Counts syncs; `refuse_write` and `refuse_sync` are errno values to fail with."""

    def __init__(self) -> None:
        self.syncs = 0
        self.refuse_write = 0
        self.refuse_sync = 0
        self.partial = False
        """Write half of the bytes before the refusal, as a disk that fills up does."""

    def write(self, fd: int, data: bytes) -> int:
        if not self.refuse_write:
            return super().write(fd, data)
        if self.partial and len(data) > 1:
            self.partial = False
            return super().write(fd, data[: len(data) // 2])
        raise OSError(self.refuse_write, os.strerror(self.refuse_write))

    def sync(self, fd: int) -> None:
        if self.refuse_sync:
            raise OSError(self.refuse_sync, os.strerror(self.refuse_sync))
        self.syncs += 1
        super().sync(fd)

    def is_full(self) -> None:
        """From now on there is no space, and the line that finds out is torn."""
        self.refuse_write, self.partial = errno.ENOSPC, True


def open_log(directory: Path, **changes: Any) -> AuditLog:
    """A log with small segments; `changes` are arguments of AuditLog.open."""
    settings: dict[str, Any] = {
        "component": "updater",
        "clock": FakeClock(),
        "origin": ORIGIN,
        "boot_id": BOOT_ID,
        "budget_bytes": 16 * 1024 * 1024,
        "segment_bytes": 8 * 1024,
        **changes,
    }
    return AuditLog.open(directory, **settings)


def fill(log: AuditLog, count: int) -> None:
    """Append `count` class A records that differ."""
    for number in range(count):
        log.append(
            "update.refused", actor=ACTOR, fields={"release": f"pump {number}", "code": "trust.expired"}
        )
