"""The durable floors: what was once verified or committed is the least that is accepted ever after.

Invariants:
1. A floor never sinks. The effective one is the maximum of `floor.json`, the floor file in the image and the boot environment.
2. Version floors belong to one repository each; sequence, epoch and time are shared.
3. A lost or damaged `floor.json` costs nothing but the history since the image was built, and is reported once.

Source: update-engine.md section 5.4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from tidewaiter_core.clock import Clock, format_utc, parse_utc
from tidewaiter_core.disk import SYSTEM_DISK, Disk
from tidewaiter_core.durable import load_document, quarantine, save_document
from tidewaiter_core.errors import StateError

from tidewaiter_updater.model import FloorValues
from tidewaiter_updater.trust_versions import (
    Versions,
    newest_of,
    raised,
    require_not_below,
    versions_from_json,
    versions_to_json,
)

SCHEMA: Final = 1
_LONG_AGO: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Floors:
    sequence: int = 0
    security_epoch: int = 0
    time_utc: datetime = _LONG_AGO
    repositories: dict[str, Versions] = field(default_factory=dict)


class FloorStore:
    """`floor.json` and the other copies of the floors. Threads may share it."""

    def __init__(
        self,
        path: Path,
        *,
        image_file: Path | None = None,
        image_utc: datetime = _LONG_AGO,
        boot_epoch: Callable[[], int] = lambda: 0,
        disk: Disk = SYSTEM_DISK,
    ) -> None:
        """
        Args:
            image_file: The floors that were built into the image; may be absent.
            image_utc: When the image was built: it cannot be earlier now.
            boot_epoch: The security epoch in the boot environment, 0 where there is none.

        Raises:
            StateError: The image's own file is damaged, or `floor.json` can neither be read nor moved aside.
        """
        self._path = path
        self._disk = disk
        self._boot_epoch = boot_epoch
        self._lock = threading.Lock()
        self.lost: str | None = None
        """Why the recorded floors could not be used; to be audited as trust.floor-lost."""
        image = _read(image_file, disk=disk) if image_file is not None else None
        self._image = replace(
            image or _Floors(), time_utc=max(image_utc, image.time_utc if image else _LONG_AGO)
        )
        try:
            self._own = _read(path, disk=disk) or _Floors()
        except StateError as err:
            aside = quarantine(path, disk=disk)
            self.lost = f"{err}; kept as {aside.name}, floors of image and boot environment are used"
            self._own = _Floors()

    def effective(self) -> FloorValues:
        """The floors that hold now: the maximum of all copies."""
        with self._lock:
            return FloorValues(
                sequence=max(self._own.sequence, self._image.sequence),
                security_epoch=max(self._own.security_epoch, self._image.security_epoch, self._boot_epoch()),
                time_utc=format_utc(max(self._own.time_utc, self._image.time_utc)),
            )

    def trusted_now(self, clock: Clock) -> datetime:
        """What to hold expiry dates against: the system time, but never before the floor."""
        return max(clock.now_utc(), self._own.time_utc, self._image.time_utc)

    def versions(self, repository: str) -> Versions:
        """The version floors of one repository."""
        own, image = self._own.repositories.get(repository, {}), self._image.repositories.get(repository, {})
        return newest_of(own, image)

    def record_session(self, repository: str, versions: Versions, *, proven_utc: datetime | None) -> None:
        """Raise the version floors after a verified session, and the time floor to a moment that has passed.

        Raises:
            TrustError: The session is below the floors, which therefore stay.
            StateWriteError: They could not be made durable.
        """
        with self._lock:
            before = self.versions(repository)
            require_not_below(before, versions)
            merged = raised(before, versions)
            self._save(
                replace(
                    self._own,
                    time_utc=max(self._own.time_utc, proven_utc or _LONG_AGO),
                    repositories={**self._own.repositories, repository: merged},
                )
            )

    def raise_committed(self, release: FloorValues) -> None:
        """Raise to a committed release; durable when this returns, never lowered."""
        with self._lock:
            moment = parse_utc(release.time_utc) if release.time_utc else _LONG_AGO
            self._save(
                replace(
                    self._own,
                    sequence=max(self._own.sequence, release.sequence),
                    security_epoch=max(self._own.security_epoch, release.security_epoch),
                    time_utc=max(self._own.time_utc, moment),
                )
            )

    def _save(self, floors: _Floors) -> None:
        if floors == self._own:
            return
        save_document(
            self._path,
            {
                "sequence": floors.sequence,
                "security_epoch": floors.security_epoch,
                "time_utc": format_utc(floors.time_utc),
                "repositories": {
                    name: versions_to_json(versions) for name, versions in floors.repositories.items()
                },
            },
            schema=SCHEMA,
            disk=self._disk,
        )
        self._own = floors


def _read(path: Path, *, disk: Disk) -> _Floors | None:
    """The floors in a file; None if there is no file, StateError if it holds none."""
    document = load_document(path, schema=SCHEMA, disk=disk)
    if document is None:
        return None
    try:
        repositories = document.get("repositories", {})
        if not isinstance(repositories, dict):
            raise ValueError("repositories: expected an object")  # noqa: TRY004, TRY301
        return _Floors(
            sequence=_number(document, "sequence"),
            security_epoch=_number(document, "security_epoch"),
            time_utc=parse_utc(str(document.get("time_utc", "1970-01-01T00:00:00Z"))),
            repositories={str(name): versions_from_json(value) for name, value in repositories.items()},
        )
    except ValueError as err:
        raise StateError(f"{path}: expected floors: {err}") from err


def _number(document: dict[str, Any], name: str) -> int:
    value = document.get(name, 0)
    if type(value) is not int or not 0 <= value < 2**32:
        raise ValueError(f"{name}: expected a number from 0 to 2**32 - 1")
    return value
