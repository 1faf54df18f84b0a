"""The flag that a root path unit watches: creating it is the only way the updater restarts the machine."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from tidewaiter_core.errors import StateWriteError

logger = logging.getLogger(__name__)


class RebootFlag:
    """Port Reboot over a file in /run."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def request(self) -> None:
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
            os.close(fd)
        except OSError as err:
            raise StateWriteError(
                f"{self._path}: the reboot flag cannot be created ({err.strerror}); nothing restarts"
            ) from err
        logger.warning("reboot requested through %s", self._path)

    def withdraw(self) -> None:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as err:
            # The environment decides what a late reboot finds; that is cleared next.
            logger.error("%s: the reboot flag cannot be removed: %s", self._path, err.strerror)  # noqa: TRY400

    def is_requested(self) -> bool:
        return self._path.exists()
