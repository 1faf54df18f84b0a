"""The updater's view of the data sets: it reads what `tidewaiter-migrate` made, and asks it for more by a flag.

The updater has no right to change anything there. Whether the set of this boot is there is read from the directory itself; what
the root program says of its progress only tells why it is not there yet.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from tidewaiter_core.clock import Clock, boot_id
from tidewaiter_core.disk import SYSTEM_DISK, Disk
from tidewaiter_core.durable import load_document, save_document
from tidewaiter_core.errors import StateError
from tidewaiter_core.payload.policy import Data
from tidewaiter_core.settings import Settings

from tidewaiter_updater.boot import BootControl, SlotMismatchError
from tidewaiter_updater.dataset import Action, Arming, Present, Role, expendable, is_settled, plan, role_of
from tidewaiter_updater.model import BootEnv, DataState, DataStatus, RunningRelease
from tidewaiter_updater.ports import DataSets, NoDataSets
from tidewaiter_updater.set_store import SetReader

logger = logging.getLogger(__name__)

STATUS_SCHEMA: Final = 1
PROGRESS: Final = "progress.json"
ASK_AGAIN_S: Final = 60.0
DISK_FREE_RATIO: Final = 0.10
"""Of the data partition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What tidewaiter-migrate says of itself, in a file below /run."""

    boot_id: str
    state: DataState
    step: str = ""
    code: str = ""
    detail: str = ""
    files: int = 0
    bytes: int = 0


def write_progress(path: Path, progress: Progress, *, disk: Disk = SYSTEM_DISK) -> None:
    """Tell everybody who may look; StateWriteError."""
    save_document(path, asdict(progress), schema=STATUS_SCHEMA, mode=0o644, disk=disk)


def read_progress(path: Path, *, disk: Disk = SYSTEM_DISK) -> Progress | None:
    """What it said last, None when it did not, or cannot be understood."""
    try:
        document = load_document(path, schema=STATUS_SCHEMA, disk=disk)
        return _progress(document) if document is not None else None
    except (StateError, KeyError, TypeError, ValueError) as err:
        logger.warning("%s: not understood: %s", path, err)
        return None


def _progress(document: Mapping[str, Any]) -> Progress:
    return Progress(
        boot_id=str(document["boot_id"]),
        state=DataState(document["state"]),
        step=str(document["step"]),
        code=str(document["code"]),
        detail=str(document["detail"]),
        files=int(document["files"]),
        bytes=int(document["bytes"]),
    )


class DeviceDataSets:
    """Port DataSets over the directory of the sets."""

    def __init__(
        self,
        reader: SetReader,
        data: Data,
        *,
        boot: BootControl,
        boot_id: str,
        progress: Callable[[], Progress | None],
        ask: Callable[[], None],
        clock: Clock,
        keep: timedelta,
        reserve_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """
        Args:
            data: What the running image writes and reads.
            ask: Raises the flag that starts `tidewaiter-migrate settle`.
            keep: How long a replaced set stays.
        """
        self._reader = reader
        self._data = data
        self._boot = boot
        self._boot_id = boot_id
        self._progress = progress
        self._ask = ask
        self._clock = clock
        self._keep = keep
        self._reserve_bytes = reserve_bytes
        self._asked_s = float("-inf")

    def status(self) -> DataStatus:
        role, env = self._where()
        try:
            present = self._reader.present()
        except OSError as err:
            detail = f"{self._reader.folder}: cannot be read ({err.strerror or err})"
            return DataStatus(state=DataState.FAILED, code="data.io", detail=detail)
        step = plan(present, self._data, role=role, arming=Arming.of(env))
        if step.action is Action.USE:
            return DataStatus(state=DataState.READY, detail=f"set {step.schema} is complete")
        progress = self._progress()
        if progress is None or progress.boot_id != self._boot_id:
            return DataStatus(
                state=DataState.WORKING, detail=f"set {step.schema} is not made yet, and nobody says why"
            )
        if progress.state is DataState.FAILED:
            return DataStatus(state=DataState.FAILED, code=progress.code, detail=progress.detail)
        what = f"{progress.step}, {progress.files} files, {progress.bytes} bytes"
        return DataStatus(state=DataState.WORKING, detail=f"set {step.schema} is being made: {what}")

    def is_settled(self) -> bool:
        return is_settled(self._present(), self._data)

    def upkeep(self) -> None:
        now_s = self._clock.boottime_s()
        if now_s - self._asked_s >= ASK_AGAIN_S and self._wants_settling():
            self._asked_s = now_s
            self._ask()

    def shortage(self, release: Data) -> str | None:
        if release.writes == self._data.writes:
            return None
        # Not measured yet: the root program judges again before it copies.
        copy_bytes = self._reader.measured_bytes(self._present().live) or 0
        needed = copy_bytes + self._reserve_bytes()
        try:
            free = self._reader.disk.free_bytes(self._reader.folder)
        except OSError as err:
            return f"the data step cannot be prepared: {self._reader.folder}: {err.strerror or err}"
        if free >= needed:
            return None
        return f"the data step from schema {self._data.writes} to {release.writes} needs {needed} free bytes, {free} are free"

    def _wants_settling(self) -> bool:
        role, env = self._where()
        if role is not Role.COMMITTED:
            return False
        present, now = self._present(), self._clock.now_utc()
        over = expendable(present, self._data, env, role=role, now=now, keep=self._keep)
        is_measured = self._reader.measured_bytes(present.live) is not None
        return not is_settled(present, self._data) or not is_measured or bool(over)

    def _present(self) -> Present:
        """What is there; nothing, when it cannot be read: then nothing is settled, nothing is armed, and the trial says why."""
        try:
            return self._reader.present()
        except OSError as err:
            logger.warning("%s: cannot be read: %s", self._reader.folder, err.strerror or err)
            return Present()

    def _where(self) -> tuple[Role, BootEnv | None]:
        env = self._boot.read()
        try:
            return role_of(env, self._boot.booted()), env
        except SlotMismatchError:
            return Role.FALLBACK, env


def device_data_sets(
    settings: Settings, identity: RunningRelease, *, boot: BootControl, clock: Clock
) -> DataSets:
    """The port for this device: an image without data sets has none."""
    if identity.data is None:
        return NoDataSets()
    paths, folder = settings.paths, settings.data.sets_dir
    return DeviceDataSets(
        SetReader(folder),
        identity.data,
        boot=boot,
        boot_id=boot_id(),
        progress=lambda: read_progress(paths.migrate_dir / PROGRESS),
        ask=lambda: raise_flag(paths.settle_flag),
        clock=clock,
        keep=timedelta(days=settings.data.keep_days),
        reserve_bytes=lambda: reserve_bytes(folder),
    )


def reserve_bytes(folder: Path) -> int:
    """What a copy has to leave free: the health check `disk` asks for it right after."""
    try:
        numbers = os.statvfs(folder)
    except OSError:
        return 0
    return int(numbers.f_blocks * numbers.f_frsize * DISK_FREE_RATIO)


def raise_flag(path: Path) -> None:
    """Create the file that a path unit of the system watches. A flag that cannot be raised is asked for again later."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640))
    except OSError as err:
        logger.warning("%s: the flag cannot be created: %s", path, err.strerror)
