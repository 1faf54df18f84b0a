"""tidewaiter-migrate: the root one-shot that makes and removes data sets. No network, no socket; it is asked by a flag.

`boot` runs before the product's units at every start: it uses the set that is there, or makes it. `settle` runs when the updater
raised its flag after a decision: it names the set of the committed release and removes what no slot that may boot can read.

What to do is derived from the image, the boot environment and the directory of the sets; nothing that the updater wrote is
believed. The exit code is for systemd; why it failed stands in the journal and in a file below /run that the health check reads.

Exit codes: 0 done, or nothing to do; 1 the set could not be made; 2 usage; 70 a defect of this program; 75 another one runs;
78 wrong configuration, or a boot environment that cannot be read.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final

from tidewaiter_core import config, log
from tidewaiter_core.clock import Clock, Deadline, SystemClock, boot_id, parse_utc
from tidewaiter_core.durable import InstanceLock, make_directory
from tidewaiter_core.errors import ConfigError, SecondInstanceError, StateError
from tidewaiter_core.settings import Settings

from tidewaiter_updater.boot import BootControl, BootEnvError, SlotMismatchError
from tidewaiter_updater.boot.select import boot_loader
from tidewaiter_updater.data_sets import PROGRESS, Progress, reserve_bytes, write_progress
from tidewaiter_updater.errors import DataStepError
from tidewaiter_updater.image_identity import read_identity
from tidewaiter_updater.migrate import Boot, Migration
from tidewaiter_updater.migrate_programs import SystemPrograms
from tidewaiter_updater.model import DataState, RunningRelease
from tidewaiter_updater.set_store import SetStore
from tidewaiter_updater.trees import SystemTrees

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_DEFECT: Final = 70
EXIT_SECOND_INSTANCE: Final = 75
EXIT_CONFIG: Final = 78
REPORT_EVERY_S: Final = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tidewaiter-migrate",
        description="Makes and removes the product's data sets; for root, started by systemd.",
    )
    parser.add_argument("action", choices=("boot", "settle"), help="what it is started for")
    parser.add_argument("--config", type=Path, default=config.DEFAULT_IMAGE_FILE, help="image configuration")
    parser.add_argument("--conf-dir", type=Path, default=config.DEFAULT_CONF_DIR, help="site configuration")
    arguments = parser.parse_args(argv)
    log.configure("migrate")
    try:
        settings = config.load(arguments.config, arguments.conf_dir)
        identity = read_identity(settings.updater.image_identity)
        return run(settings, identity, arguments.action)
    except (ConfigError, BootEnvError) as err:
        sys.stderr.write(f"tidewaiter-migrate: {err}\n")
        return EXIT_CONFIG
    except (SecondInstanceError, StateError) as err:
        sys.stderr.write(f"tidewaiter-migrate: {err}\n")
        return EXIT_SECOND_INSTANCE if isinstance(err, SecondInstanceError) else EXIT_FAILED


def run(settings: Settings, identity: RunningRelease, action: str) -> int:
    """One run, reported where the updater can see it."""
    if action == "settle":
        # First: what is asked for while this runs is asked for again.
        settings.paths.settle_flag.unlink(missing_ok=True)
    if identity.data is None:
        logger.info("%s %s keeps no data sets", identity.product, identity.version)
        return 0
    folder = settings.paths.migrate_dir
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with InstanceLock(folder / "lock"):
        report = Report(folder / PROGRESS, SystemClock(), boot_id(), is_told=action == "boot")
        try:
            _act(settings, identity, action, report)
        except DataStepError as err:
            logger.error("%s: %s", err.code, err)  # noqa: TRY400 - the message says all
            report.failed(err.code, str(err))
            return EXIT_FAILED
        except BootEnvError as err:
            report.failed(err.code, str(err))
            raise
        except Exception as err:
            report.failed("data.defect", f"tidewaiter-migrate died: {type(err).__name__}: {err}")
            raise
        report.ready()
    return 0


def _act(settings: Settings, identity: RunningRelease, action: str, report: Report) -> None:
    clock = SystemClock()
    deadline = Deadline(clock, settings.data.deadline_s)

    def beat(files: int, size: int) -> None:
        if deadline.expired:
            text = f"the data step is not done after {settings.data.deadline_s} s; the copy is given up"
            raise DataStepError(text, code="data.deadline")
        report.beat(files, size)

    sets_dir = settings.data.sets_dir
    if not sets_dir.is_dir():
        make_directory(sets_dir)
        sets_dir.chmod(0o755)
    migration = Migration(
        SetStore(sets_dir, trees=SystemTrees()),
        _boot(identity, boot_loader(settings.updater).control),
        programs=SystemPrograms(
            settings.data.programs_dir, deadline=deadline, beat=lambda: report.beat(0, 0), owner=os.getuid()
        ),
        clock=clock,
        keep=timedelta(days=settings.data.keep_days),
        reserve_bytes=reserve_bytes(sets_dir),
        beat=beat,
        say=report.say,
    )
    if action == "settle":
        migration.settle()
        return
    step = migration.prepare()
    logger.info("data set %d: %s", step.schema, step.action)


def _boot(identity: RunningRelease, control: BootControl) -> Boot:
    if identity.data is None:
        raise RuntimeError("an image without data sets has no data step")
    try:
        booted = control.booted()
    except SlotMismatchError as err:
        logger.error("%s", err)  # noqa: TRY400 - the message says all
        booted = None
    return Boot(
        data=identity.data, built_utc=parse_utc(identity.built_utc), env=control.read(), booted=booted
    )


class Report:
    """What the updater is shown while this works. It is a courtesy: a file that cannot be written stops nothing."""

    def __init__(self, path: Path, clock: Clock, boot: str, *, is_told: bool) -> None:
        """
        Args:
            is_told: False for work that no trial waits for.
        """
        self._path = path
        self._clock = clock
        self._boot_id = boot
        self._is_told = is_told
        self._step = "start"
        self._files = 0
        self._bytes = 0
        self._told_s = float("-inf")

    def say(self, step: str) -> None:
        self._step = step
        logger.info("data step: %s", step)
        self._write(DataState.WORKING)

    def beat(self, files: int, size: int) -> None:
        self._files += files
        self._bytes += size
        if self._clock.boottime_s() - self._told_s >= REPORT_EVERY_S:
            self._write(DataState.WORKING)

    def ready(self) -> None:
        self._write(DataState.READY)

    def failed(self, code: str, detail: str) -> None:
        self._write(DataState.FAILED, code=code, detail=detail[:1000])

    def _write(self, state: DataState, *, code: str = "", detail: str = "") -> None:
        self._told_s = self._clock.boottime_s()
        if not self._is_told:
            return
        progress = Progress(
            boot_id=self._boot_id,
            state=state,
            step=self._step,
            code=code,
            detail=detail,
            files=self._files,
            bytes=self._bytes,
        )
        try:
            write_progress(self._path, progress)
        except StateError as err:
            logger.warning("%s", err)


if __name__ == "__main__":
    sys.exit(main())
