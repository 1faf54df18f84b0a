"""How the boot before this one ended, by what the kernel tells: the watchdog's bootstatus, and records of a panic in pstore.

A zero in bootstatus means something only where the driver reports resets at all: the image says so for its board
(updater.watchdog_tells), and a kernel that lists the driver's options must agree. Panics leave a record only where pstore has a
backend. Anything else is unknown.

Records stay until somebody removes them, and clocks of devices jump, so no date is compared: a record that no earlier start has
seen is of the boot before. That errs to the safe side, a fault too many.

Source: Linux Documentation/ABI/testing/sysfs-class-watchdog and watchdog-api.rst (WDIOF_CARDRESET), pstore; systemd-pstore(8).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from tidewaiter_core.errors import StateError

from tidewaiter_updater.journal import Documents
from tidewaiter_updater.model import BootEnd

logger = logging.getLogger(__name__)

WATCHDOG: Final = Path("sys/class/watchdog/watchdog0")
PSTORE_BACKEND: Final = Path("sys/module/pstore/parameters/backend")
RECORDS: Final = (Path("sys/fs/pstore"), Path("var/lib/systemd/pstore"))
"""Where the kernel keeps records, and where systemd-pstore moves them early in a boot."""
_CARDRESET: Final = 0x20
_LIMIT: Final = 256
_DOCUMENT: Final = "evidence"


class SystemEvidence:
    """Port BootEvidence over the kernel's files."""

    def __init__(self, documents: Documents, *, boot_id: str, root: Path = Path("/")) -> None:
        """Looks at the records at once: what is there now is no news for the next boot.

        Args:
            root: Above sys and var.
        """
        self._documents = documents
        self._boot_id = boot_id
        self._root = root
        self._panicked = self._note_records()

    def boot_before(self) -> BootEnd:
        if self._panicked is None:
            return BootEnd.UNKNOWN
        status = self._bootstatus()
        if self._panicked or status not in (0, None):
            return BootEnd.FAULT
        return BootEnd.SWITCHED_OFF if status == 0 else BootEnd.UNKNOWN

    def _bootstatus(self) -> int | None:
        """None where a zero would say nothing."""
        folder = self._root / WATCHDOG
        try:
            status = int((folder / "bootstatus").read_text(encoding="ascii"), 0)
            if (folder / "options").exists():
                options = int((folder / "options").read_text(encoding="ascii"), 0)
                return status if options & _CARDRESET else None
        except (OSError, ValueError) as err:
            logger.warning("watchdog: cannot be asked about the boot before: %s", err)
            return None
        return status

    def _note_records(self) -> bool | None:
        """Whether this boot found a new record of a panic; None where panics leave none."""
        try:
            backend = (self._root / PSTORE_BACKEND).read_text(encoding="utf-8").strip()
            found = self._records()
        except OSError as err:
            logger.info("pstore: cannot be read: %s", err)
            return None
        if backend in ("", "(null)") or found is None:
            return None
        known = self._documents.load(_DOCUMENT) or {}
        if not set(found) <= set(map(str, known.get("seen", ()))):
            known = {"seen": found, "panic_boot": self._boot_id}
            try:
                self._documents.save(_DOCUMENT, known)
            except StateError as err:
                logger.warning("a record of a panic could not be noted: %s", err)
        return bool(known.get("panic_boot") == self._boot_id)

    def _records(self) -> list[str] | None:
        """What is there, by name, size and date; None when no place can be looked at."""
        places = [self._root / place for place in RECORDS]
        readable = [place for place in places if _is_readable(place)]
        if not readable:
            return None
        found = [
            f"{path.relative_to(self._root)} {path.stat().st_size} {path.stat().st_mtime_ns}"
            for place in readable
            for path in sorted(place.rglob("*"))
            if path.is_file()
        ]
        return found[-_LIMIT:]


def _is_readable(folder: Path) -> bool:
    try:
        next(folder.iterdir(), None)
    except OSError:
        return False
    return True
