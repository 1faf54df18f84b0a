"""What the HAL must remember: its lease token and where it stands in the device's logs.

One small document, `state.json`. A document of a newer schema, or one that cannot be read, is left alone: the
service then runs without moving cursors and without leases (hal-and-hil.md 14.1).
"""

import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tidewaiter_core import durable
from tidewaiter_core.errors import StateError

from tidewaiter_hal.errors import HalError
from tidewaiter_hal.interlock import Purpose
from tidewaiter_hal.model import Cursor, Log

logger = logging.getLogger(__name__)

SCHEMA: Final = 1


class StateReadOnlyError(HalError):
    """state.json could not be understood, so nothing may be written over it."""

    code = "hal.state-newer"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredLease:
    """A lease that may exist on the injector. Written before the acquire is sent."""

    token: bytes
    purpose: str
    host_boot: str
    sealed: bool
    sealed_s: float
    """CLOCK_BOOTTIME of the seal; meaningful within `host_boot` only."""


class StateFile:
    """Reads once, writes through. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.is_writable = True
        self._document: dict[str, Any] = {}
        try:
            self._document = durable.load_document(path, schema=SCHEMA) or {}
            self.lease  # noqa: B018 - a lease that cannot be parsed makes the whole file unusable
            for log in Log:
                self.cursor(log)
        except (StateError, ValueError, KeyError, TypeError) as err:
            logger.error(  # noqa: TRY400 - the message says all
                "%s: %s; the service runs without leases and reads no device logs", path, err
            )
            self._document = {}
            self.is_writable = False

    @property
    def lease(self) -> StoredLease | None:
        """The lease that was stored last."""
        stored = self._document.get("lease")
        if stored is None:
            return None
        return StoredLease(
            token=bytes.fromhex(stored["token"]),
            purpose=Purpose(stored["purpose"]).value,
            host_boot=str(stored["host_boot"]),
            sealed=bool(stored["sealed"]),
            sealed_s=float(stored["sealed_s"]),
        )

    def store_lease(self, lease: StoredLease | None) -> None:
        """Durable when it returns. Raises StateReadOnlyError, StateError."""
        if lease is None:
            self._change("lease", None)
            return
        self._change(
            "lease",
            {
                "token": lease.token.hex(),
                "purpose": lease.purpose,
                "host_boot": lease.host_boot,
                "sealed": lease.sealed,
                "sealed_s": lease.sealed_s,
            },
        )

    def cursor(self, log: Log) -> Cursor | None:
        """How far `log` is in the audit chain."""
        stored = self._document.get("cursors", {}).get(log)
        if stored is None:
            return None
        return Cursor(serial=str(stored["serial"]), log_id=int(stored["log_id"]), seq=int(stored["seq"]))

    def move_cursor(self, log: Log, cursor: Cursor) -> None:
        """Durable when it returns. Raises StateReadOnlyError, StateError."""
        position = {"serial": cursor.serial, "log_id": cursor.log_id, "seq": cursor.seq}
        self._change("cursors", {**self._document.get("cursors", {}), log.value: position})

    def _change(self, key: str, value: object) -> None:
        if not self.is_writable:
            raise StateReadOnlyError(
                f"{self._path}: could not be understood at start; {key} was not written over it"
            )
        with self._lock:
            document = {**self._document, key: value}
            durable.save_document(self._path, document, schema=SCHEMA)
            self._document = document
