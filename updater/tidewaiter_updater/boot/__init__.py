"""Boot control: the port, and the family of boot loaders behind it."""

from __future__ import annotations

from typing import ClassVar, Protocol

from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import SlotName

from tidewaiter_updater.model import BootEnv


class BootEnvError(TidewaiterError):
    """The boot environment cannot be read or changed as needed; codes boot.env-layout, boot.env-write."""

    code: ClassVar[str] = "boot.env-write"


class SlotMismatchError(TidewaiterError):
    """Kernel command line, root device and environment do not name the same slot; nothing is written."""

    code: ClassVar[str] = "boot.slot-mismatch"


class BootControl(Protocol):
    """What the updater needs from a boot loader. One method, one atomic change."""

    def read(self) -> BootEnv | None:
        """The record in force, None when no copy is valid."""

    def booted(self) -> SlotName:
        """The slot this system was booted from; raises SlotMismatchError when that is not certain."""

    def write(self, env: BootEnv) -> None:
        """Make `env` the record in force: on storage, read back and compared; else BootEnvError."""
