"""Makes the data set of the running release, and clears away what nobody needs any more. The order of writes is the point.

A step works on a copy. Only when the copy is on storage does COMPLETE say so, and only then does it get the name under which
the release looks for it. The old set is read and nothing else: a failure at any point leaves it as it was, and rollback finds it.

Source: update-engine.md section 12.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data

from tidewaiter_updater.dataset import (
    Action,
    Arming,
    Live,
    Present,
    Role,
    SetRecord,
    Step,
    expendable,
    may_mark_live,
    plan,
    role_of,
)
from tidewaiter_updater.errors import DataStepError
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.set_store import Beat, SetStore

logger = logging.getLogger(__name__)


class Programs(Protocol):
    """The product's migration programs."""

    def run(self, folder: Path, *, made_from: int | None, schema: int) -> None:
        """Run those for this step, in order, on the copy in `folder`; DataStepError unless every one of them succeeds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What this boot is, by the image and by the boot environment."""

    data: Data
    built_utc: datetime
    env: BootEnv | None
    booted: SlotName | None

    @property
    def role(self) -> Role:
        return role_of(self.env, self.booted)

    @property
    def arming(self) -> Arming:
        return Arming.of(self.env)


class Migration:
    """One run over the directory of the sets."""

    def __init__(
        self,
        store: SetStore,
        boot: Boot,
        *,
        programs: Programs,
        clock: Clock,
        keep: timedelta,
        reserve_bytes: int = 0,
        beat: Beat = lambda files, size: None,
        say: Callable[[str], None] = lambda what: None,
    ) -> None:
        """
        Args:
            keep: How long a replaced set, or one that was set aside, stays.
            reserve_bytes: What has to be free after a copy.
            beat: Told about progress; raises DataStepError when the time is over.
            say: Told what is done next, for people.
        """
        self._store = store
        self._boot = boot
        self._programs = programs
        self._clock = clock
        self._keep = keep
        self._reserve_bytes = reserve_bytes
        self._beat = beat
        self._say = say

    def prepare(self) -> Step:
        """Before the product starts: its set is there when this returns.

        Raises:
            DataStepError: It is not, and the old set is as it was.
        """
        try:
            step = self._plan(self._store.present())
            if step.action is Action.REFUSE:
                raise DataStepError(f"{step.detail}; the product's data are left alone", code=step.code)
            if step.action is not Action.USE:
                self._make(step)
            self._mark_live()
        except OSError as err:
            where = err.filename or self._store.folder
            raise DataStepError(
                f"{where}: {err.strerror or err}; the copy is given up, the present data are as they were",
                code="data.io",
            ) from err
        return step

    def settle(self) -> None:
        """After a decision: name the set of the committed release, measure it, and remove what no slot that may boot can read."""
        try:
            self._mark_live()
            present = self._store.present()
            for name in self._expendable(present):
                logger.info("%s: removed, no release that may boot reads it", self._store.folder / name)
                self._store.remove(name, beat=self._beat)
            if present.live is not None:
                self._store.note_usage(present.live, beat=self._beat)
        except OSError as err:
            raise DataStepError(f"{err.filename}: {err.strerror or err}", code="data.io") from err

    def _plan(self, present: Present) -> Step:
        return plan(present, self._boot.data, role=self._boot.role, arming=self._boot.arming)

    def _expendable(self, present: Present) -> tuple[str, ...]:
        boot = self._boot
        return expendable(present, boot.data, boot.env, role=boot.role, now=self._now(), keep=self._keep)

    def _now(self) -> datetime:
        """Not before the image was built: a clock without a battery must not make a set look decades old."""
        return max(self._clock.now_utc(), self._boot.built_utc)

    def _mark_live(self) -> None:
        boot = self._boot
        if may_mark_live(self._store.present(), boot.data, role=boot.role, arming=boot.arming):
            self._store.mark_live(Live(schema=boot.data.writes, since_utc=format_utc(self._now())))

    def _make(self, step: Step) -> None:
        if step.aside:
            name = self._store.set_aside(step.schema)
            logger.warning(
                "set %d is not the one of this trial; kept as %s and made again", step.schema, name
            )
        self._say("copy" if step.source is not None else "new set")
        folder = self._store.begin(step.schema, beat=self._beat)
        try:
            self._fill(folder, step)
            self._say("complete")
            self._store.complete(
                SetRecord(
                    schema=step.schema,
                    made_from=step.source,
                    arming=self._boot.arming,
                    made_utc=format_utc(self._now()),
                )
            )
        except (DataStepError, OSError):
            # Give the space back: a full disk may be the very reason.
            with contextlib.suppress(OSError):
                self._store.trees.remove(self._store.temporary(step.schema), beat=lambda files, size: None)
            raise

    def _fill(self, folder: Path, step: Step) -> None:
        trees = self._store.trees
        if step.source is None:
            trees.make(folder)
            self._say("programs")
            self._programs.run(folder, made_from=None, schema=step.schema)
            return
        source = self._store.data(step.source)
        self._make_room(self._store.copy_bytes(step.source, beat=self._beat))
        before = trees.mark(source, beat=self._beat)
        trees.copy(source, folder, beat=self._beat)
        self._say("programs")
        self._programs.run(folder, made_from=step.source, schema=step.schema)
        if trees.mark(source, beat=self._beat) != before:
            raise DataStepError(
                f"{source}: changed while its copy was migrated; a migration program may write nothing but its copy",
                code="data.old-set-changed",
            )

    def _make_room(self, copy_bytes: int) -> None:
        """Space for the copy and for the health check's reserve; sets that were set aside go first."""
        store = self._store
        needed = copy_bytes + self._reserve_bytes
        stale = sorted(store.present().stale.items(), key=lambda item: item[1])
        while (free := store.disk.free_bytes(store.folder)) < needed:
            if not stale:
                raise DataStepError(
                    f"{store.folder}: a copy of the data needs {needed} free bytes with the reserve, {free} are free",
                    code="data.no-space",
                )
            name = stale.pop(0)[0]
            logger.warning("%s: removed to make room for a copy of the data", store.folder / name)
            store.remove(name, beat=self._beat)
