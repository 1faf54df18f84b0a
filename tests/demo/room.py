"""Whether the disk has room for the demo: its devices share it, and their health check `disk` is the product's own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tidewaiter_updater.data_sets import DISK_FREE_RATIO

WORLD_BYTES = 768 * 1024**2
"""What images, repository, slots and states take at most: 691 MiB when it was measured."""


@dataclass(frozen=True, slots=True)
class Room:
    """The file system of a folder."""

    place: Path
    free_bytes: int
    total_bytes: int

    @classmethod
    def of(cls, place: Path) -> Room:
        numbers = os.statvfs(place)
        return cls(place, numbers.f_bavail * numbers.f_frsize, numbers.f_blocks * numbers.f_frsize)

    def shortage(self) -> str | None:
        """Why the demo would end badly here, in one line; None if it has what it needs."""
        kept_bytes = int(self.total_bytes * DISK_FREE_RATIO)
        needed_bytes = WORLD_BYTES + kept_bytes
        if self.free_bytes >= needed_bytes:
            return None
        return (
            f"{self.place}: {_gib(self.free_bytes)} of {_gib(self.total_bytes)} GiB are free, {_gib(needed_bytes)} are needed: "
            f"{_gib(WORLD_BYTES)} for the demo, and {_gib(kept_bytes)} ({DISK_FREE_RATIO:.0%}) must stay free or the check "
            "`disk` of its devices turns every update back; nothing was started, free some room or set TMPDIR to another disk"
        )


def _gib(count: int) -> str:
    return f"{count / 1024**3:.1f}"
