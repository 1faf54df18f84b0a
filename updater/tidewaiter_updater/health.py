"""The named checks that decide whether a trial boot may be committed: what a check is, the list of them, root and medium.

A check that cannot be judged is not green, with four stated exceptions that are skipped: no units are configured, the
hardware has no watchdog, the release does not ask for the server (or the network was not proven in the 24 h before), the clock
was below the floor before the update, too.

Source: update-engine.md section 11.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.model import CheckResult, HealthCheck, RunningRelease
from tidewaiter_updater.ports import Control, SlotStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a check is asked about."""

    slot: SlotName
    release: Release | None
    network_proven_utc: str
    clock_was_low: bool = False
    """The clock was below the floor under the earlier release, too."""


class Check(Protocol):
    """One condition."""

    name: str

    def run(self, trial: Trial) -> HealthCheck: ...


class NeverControl:
    """A read that nobody pauses or cancels."""

    def paused(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False


class CheckList:
    """Port HealthChecks: all checks in the order of the table."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks

    def run(
        self,
        slot: SlotName,
        release: Release | None,
        *,
        network_proven_utc: str,
        clock_was_low: bool = False,
    ) -> tuple[HealthCheck, ...]:
        trial = Trial(
            slot=slot,
            release=release,
            network_proven_utc=network_proven_utc,
            clock_was_low=clock_was_low,
        )
        results = [self._one(check, trial) for check in self._checks]
        names = {check.name for check in self._checks}
        for name in release.health.required if release else ():
            if name not in names:
                results.append(
                    fail(name, "the release requires it, this updater has no such check", is_final=True)
                )
        return tuple(results)

    def _one(self, check: Check, trial: Trial) -> HealthCheck:
        try:
            return check.run(trial)
        except (TidewaiterError, OSError) as err:
            return fail(check.name, str(err))


class RootCheck:
    """The root that runs is the release that was installed, from the trial slot, read-only."""

    name = "root"

    def __init__(
        self, identity: RunningRelease, *, slot_path: Callable[[SlotName], Path], mountinfo: Path
    ) -> None:
        self._identity = identity
        self._slot_path = slot_path
        self._mountinfo = mountinfo

    def run(self, trial: Trial) -> HealthCheck:
        release, identity = trial.release, self._identity
        if release is not None and (release.product, release.version, release.sequence) != (
            identity.product,
            identity.version,
            identity.sequence,
        ):
            found = f"{identity.product} {identity.version} (sequence {identity.sequence})"
            wanted = f"{release.product} {release.version} (sequence {release.sequence})"
            return fail(self.name, f"expected {wanted}, the root says it is {found}", is_final=True)
        path = self._slot_path(trial.slot)
        if not stat.S_ISBLK(path.stat().st_mode):
            return ok(self.name, f"{identity.version}; slot {trial.slot} is a file, its mount is not checked")
        options = self._root_options()
        if "ro" not in options:
            return fail(self.name, "/ is not mounted read-only")
        return ok(self.name, f"{identity.version} from slot {trial.slot}, read-only")

    def _root_options(self) -> set[str]:
        for line in self._mountinfo.read_text(encoding="utf-8").splitlines():
            fields = line.split(" ")
            if len(fields) > 5 and fields[4] == "/":
                return set(fields[5].split(","))
        return set()


class MediumCheck:
    """The whole booted slot, read again from the medium. Once per boot: the root is read-only."""

    name = "medium"

    def __init__(self, slots: SlotStore, *, control: Control | None = None) -> None:
        self._slots = slots
        self._control = control or NeverControl()
        self._result: HealthCheck | None = None

    def run(self, trial: Trial) -> HealthCheck:
        if self._result is not None:
            return self._result
        if trial.release is None:
            return skipped(self.name, "the release document is lost; the slot was proven before it was armed")
        # Not the worker's thread: it must not vouch for the worker, which may hang meanwhile.
        if self._slots.holds(trial.slot, trial.release, control=self._control, beats=False):
            self._result = ok(
                self.name, f"{trial.release.slot.image_bytes} bytes of slot {trial.slot} are right"
            )
        else:
            self._result = fail(self.name, f"slot {trial.slot} differs from its release", is_final=True)
        return self._result


def ok(name: str, detail: str) -> HealthCheck:
    return HealthCheck(name=name, result=CheckResult.OK, detail=detail)


def fail(name: str, detail: str, *, is_final: bool = False) -> HealthCheck:
    return HealthCheck(name=name, result=CheckResult.FAIL, detail=detail, is_final=is_final)


def skipped(name: str, detail: str) -> HealthCheck:
    return HealthCheck(name=name, result=CheckResult.SKIPPED, detail=detail)
