"""The named checks that decide whether a trial boot may be committed. One small class per condition.

A check that cannot be judged is not green, with three stated exceptions that are skipped: no units are configured, the
hardware has no watchdog, the release does not ask for the server (or the network was not proven in the 24 h before).

Source: update-engine.md section 11.
"""

from __future__ import annotations

import logging
import os
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from tidewaiter_core.clock import Clock, parse_utc
from tidewaiter_core.durable import write_atomic
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release
from tidewaiter_core.varlink import Client, NotReachable, VarlinkError

from tidewaiter_updater.model import CheckResult, HealthCheck, RunningRelease
from tidewaiter_updater.ports import Control, SlotStore

logger = logging.getLogger(__name__)

HAL_LIMIT_S = 3.0
SYSTEMCTL_LIMIT_S = 10.0
DISK_FREE_RATIO = 0.10
NETWORK_PROOF_AGE = timedelta(hours=24)
KNOWN = ("root", "medium", "units", "hal", "injector", "data", "clock", "disk", "watchdog", "server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What a check is asked about."""

    slot: SlotName
    release: Release | None
    network_proven_utc: str


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
        self, slot: SlotName, release: Release | None, *, network_proven_utc: str
    ) -> tuple[HealthCheck, ...]:
        trial = Trial(slot=slot, release=release, network_proven_utc=network_proven_utc)
        results = [self._one(check, trial) for check in self._checks]
        names = {check.name for check in self._checks}
        for name in release.health.required if release else ():
            if name not in names:
                results.append(
                    _fail(name, "the release requires it, this updater has no such check", is_final=True)
                )
        return tuple(results)

    def _one(self, check: Check, trial: Trial) -> HealthCheck:
        try:
            return check.run(trial)
        except (TidewaiterError, OSError) as err:
            return _fail(check.name, str(err))


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
            return _fail(self.name, f"expected {wanted}, the root says it is {found}", is_final=True)
        path = self._slot_path(trial.slot)
        if not stat.S_ISBLK(path.stat().st_mode):
            return _ok(
                self.name, f"{identity.version}; slot {trial.slot} is a file, its mount is not checked"
            )
        options = self._root_options()
        if "ro" not in options:
            return _fail(self.name, "/ is not mounted read-only")
        return _ok(self.name, f"{identity.version} from slot {trial.slot}, read-only")

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
            return _skipped(
                self.name, "the release document is lost; the slot was proven before it was armed"
            )
        if self._slots.holds(trial.slot, trial.release, control=self._control):
            self._result = _ok(
                self.name, f"{trial.release.slot.image_bytes} bytes of slot {trial.slot} are right"
            )
        else:
            self._result = _fail(self.name, f"slot {trial.slot} differs from its release", is_final=True)
        return self._result


class UnitsCheck:
    """The product's units run."""

    name = "units"

    def __init__(self, units: Sequence[str], *, show: Callable[[Sequence[str]], str] | None = None) -> None:
        self._units = units
        self._show = show or _systemctl_show

    def run(self, trial: Trial) -> HealthCheck:
        if not self._units:
            return _skipped(self.name, "no units are configured")
        states = self._show(self._units).split()
        wrong = [
            f"{unit}: {state}" for unit, state in zip(self._units, states, strict=False) if state != "active"
        ]
        if len(states) != len(self._units):
            return _fail(self.name, f"systemd told the state of {len(states)} of {len(self._units)} units")
        return _fail(self.name, ", ".join(wrong)) if wrong else _ok(self.name, f"{len(states)} active")


class HalCheck:
    """The HAL answers."""

    name = "hal"

    def __init__(self, monitor_socket: Path) -> None:
        self._socket = monitor_socket

    def run(self, trial: Trial) -> HealthCheck:
        try:
            snapshot = _hal(self._socket, "GetSnapshot")["snapshot"]
        except (NotReachable, VarlinkError) as err:
            return _fail(self.name, str(err))
        return _ok(self.name, f"link {snapshot['link']}")


class InjectorCheck:
    """The injector identified itself and passed its own test. Unplugged is not green and not final."""

    name = "injector"

    def __init__(self, monitor_socket: Path) -> None:
        self._socket = monitor_socket

    def run(self, trial: Trial) -> HealthCheck:
        try:
            identity = _hal(self._socket, "GetIdentity")["identity"]
            result = str(_hal(self._socket, "GetSelfTest")["self_test"]["result"])
        except (NotReachable, VarlinkError) as err:
            return _fail(self.name, str(err))
        who = f"{identity['model']} {identity['serial']}"
        return (
            _ok(self.name, who)
            if result.lower() == "pass"
            else _fail(self.name, f"{who}: self-test {result}")
        )


class DataCheck:
    """Our own documents can be read by this release."""

    name = "data"

    def __init__(self, readable: Callable[[], str | None]) -> None:
        self._readable = readable

    def run(self, trial: Trial) -> HealthCheck:
        problem = self._readable()
        return _fail(self.name, problem) if problem else _ok(self.name, "state documents are readable")


class ClockCheck:
    """The clock is not below the floor."""

    name = "clock"

    def __init__(self, clock: Clock, *, floor_utc: Callable[[], str]) -> None:
        self._clock = clock
        self._floor_utc = floor_utc

    def run(self, trial: Trial) -> HealthCheck:
        floor = self._floor_utc()
        if not floor:
            return _ok(self.name, "no floor is known")
        if self._clock.now_utc() < parse_utc(floor):
            return _fail(self.name, f"the clock is below the floor of {floor}")
        return _ok(self.name, f"not below {floor}")


class DiskCheck:
    """The data partition is writable and has room."""

    name = "disk"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, trial: Trial) -> HealthCheck:
        write_atomic(self._folder / "health-probe", b"written by the health check\n")
        numbers = os.statvfs(self._folder)
        ratio = numbers.f_bavail / max(1, numbers.f_blocks)
        if ratio < DISK_FREE_RATIO:
            return _fail(
                self.name, f"{ratio:.0%} of the data partition are free, {DISK_FREE_RATIO:.0%} are needed"
            )
        return _ok(self.name, f"{ratio:.0%} free")


class WatchdogCheck:
    """The hardware watchdog runs, where there is one."""

    name = "watchdog"

    def __init__(self, state_file: Path) -> None:
        self._state_file = state_file

    def run(self, trial: Trial) -> HealthCheck:
        try:
            state = self._state_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return _skipped(self.name, "this hardware has none")
        return _ok(self.name, state) if state == "active" else _fail(self.name, f"state is {state}")


class ServerCheck:
    """The server can be reached; only where the release asks for it and the network was proven before (I7)."""

    name = "server"

    def __init__(self, clock: Clock, *, reach: Callable[[], None]) -> None:
        self._clock = clock
        self._reach = reach

    def run(self, trial: Trial) -> HealthCheck:
        if trial.release is None or self.name not in trial.release.health.required:
            return _skipped(self.name, "the release does not require it")
        if not self._proven_lately(trial.network_proven_utc):
            return _skipped(self.name, "the earlier release had no answer within 24 h either")
        self._reach()
        return _ok(self.name, "reached")

    def _proven_lately(self, stamp: str) -> bool:
        return bool(stamp) and self._clock.now_utc() - parse_utc(stamp) <= NETWORK_PROOF_AGE


def _hal(socket_path: Path, method: str) -> dict[str, Any]:
    with Client(socket_path, timeout_s=HAL_LIMIT_S) as client:
        return client.call(f"io.tidewaiter.Injector.{method}")


def _systemctl_show(units: Sequence[str]) -> str:
    command = ["systemctl", "show", "--property=ActiveState", "--value", "--", *units]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SYSTEMCTL_LIMIT_S, check=True)  # noqa: S603 - fixed program, units from the image
    except (subprocess.SubprocessError, OSError) as err:
        logger.warning("systemctl show failed: %s", err)
        return ""
    return done.stdout


def _ok(name: str, detail: str) -> HealthCheck:
    return HealthCheck(name=name, result=CheckResult.OK, detail=detail)


def _fail(name: str, detail: str, *, is_final: bool = False) -> HealthCheck:
    return HealthCheck(name=name, result=CheckResult.FAIL, detail=detail, is_final=is_final)


def _skipped(name: str, detail: str) -> HealthCheck:
    return HealthCheck(name=name, result=CheckResult.SKIPPED, detail=detail)
