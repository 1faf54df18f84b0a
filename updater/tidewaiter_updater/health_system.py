"""The checks that look at the system around the root: units, HAL, injector, data, clock, disk, watchdog, server.

One small class per condition; each says what is green in one line of detail. Source: update-engine.md section 11.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tidewaiter_core.clock import Clock, parse_utc
from tidewaiter_core.durable import write_atomic
from tidewaiter_core.varlink import Client, NotReachable, VarlinkError

from tidewaiter_updater.data_sets import DISK_FREE_RATIO
from tidewaiter_updater.health import Trial, fail, ok, skipped
from tidewaiter_updater.model import DataState, HealthCheck, RunningRelease
from tidewaiter_updater.ports import DataSets

logger = logging.getLogger(__name__)

HAL_LIMIT_S = 3.0
SYSTEMCTL_LIMIT_S = 10.0
NETWORK_PROOF_AGE = timedelta(hours=24)


class UnitsCheck:
    """The product's units run."""

    name = "units"

    def __init__(self, units: Sequence[str], *, show: Callable[[Sequence[str]], str] | None = None) -> None:
        self._units = units
        self._show = show or _systemctl_show

    def run(self, trial: Trial) -> HealthCheck:
        if not self._units:
            return skipped(self.name, "no units are configured")
        states = self._show(self._units).split()
        wrong = [
            f"{unit}: {state}" for unit, state in zip(self._units, states, strict=False) if state != "active"
        ]
        if len(states) != len(self._units):
            return fail(self.name, f"systemd told the state of {len(states)} of {len(self._units)} units")
        return fail(self.name, ", ".join(wrong)) if wrong else ok(self.name, f"{len(states)} active")


class HalCheck:
    """The HAL answers."""

    name = "hal"

    def __init__(self, monitor_socket: Path) -> None:
        self._socket = monitor_socket

    def run(self, trial: Trial) -> HealthCheck:
        try:
            snapshot = _hal(self._socket, "GetSnapshot")["snapshot"]
        except (NotReachable, VarlinkError) as err:
            return fail(self.name, str(err))
        return ok(self.name, f"link {snapshot['link']}")


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
            return fail(self.name, str(err))
        who = f"{identity['model']} {identity['serial']}"
        return (
            ok(self.name, who) if result.lower() == "pass" else fail(self.name, f"{who}: self-test {result}")
        )


class DataCheck:
    """The product's data set is complete, and our own documents can be read by this release."""

    name = "data"

    def __init__(
        self, readable: Callable[[], str | None], *, sets: DataSets, identity: RunningRelease
    ) -> None:
        self._readable = readable
        self._sets = sets
        self._data = identity.data

    def run(self, trial: Trial) -> HealthCheck:
        if (misfit := self._misfit(trial)) is not None:
            return fail(self.name, misfit, is_final=True)
        found = self._sets.status()
        if found.state is not DataState.READY:
            detail = f"{found.code}: {found.detail}" if found.code else found.detail
            return fail(self.name, detail, is_final=found.state is DataState.FAILED)
        problem = self._readable()
        return fail(self.name, problem) if problem else ok(self.name, found.detail)

    def _misfit(self, trial: Trial) -> str | None:
        """The image alone tells, when everything else is lost, that there is no way back; so it has to agree with its release."""
        release = trial.release
        if release is None or release.data == self._data or (self._data is None and release.data.reversible):
            return None
        if self._data is None:
            return "the release cannot be undone, and its image does not say so"
        return f"the release says {release.data}, its image says {self._data}"


class ClockCheck:
    """The clock is not below the floor."""

    name = "clock"

    def __init__(self, clock: Clock, *, floor_utc: Callable[[], str]) -> None:
        self._clock = clock
        self._floor_utc = floor_utc

    def run(self, trial: Trial) -> HealthCheck:
        floor = self._floor_utc()
        if not floor:
            return ok(self.name, "no floor is known")
        if self._clock.now_utc() < parse_utc(floor):
            if trial.clock_was_low:
                # An empty battery is no fault of the release, and a stick is how such a device is serviced.
                return skipped(self.name, f"below the floor of {floor}, as under the earlier release")
            return fail(self.name, f"the clock is below the floor of {floor}")
        return ok(self.name, f"not below {floor}")


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
            return fail(
                self.name, f"{ratio:.0%} of the data partition are free, {DISK_FREE_RATIO:.0%} are needed"
            )
        return ok(self.name, f"{ratio:.0%} free")


class WatchdogCheck:
    """The hardware watchdog runs, where there is one."""

    name = "watchdog"

    def __init__(self, state_file: Path) -> None:
        self._state_file = state_file

    def run(self, trial: Trial) -> HealthCheck:
        try:
            state = self._state_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return skipped(self.name, "this hardware has none")
        return ok(self.name, state) if state == "active" else fail(self.name, f"state is {state}")


class ServerCheck:
    """The server can be reached; only where the release asks for it and the network was proven before (I7)."""

    name = "server"

    def __init__(self, clock: Clock, *, reach: Callable[[], None]) -> None:
        self._clock = clock
        self._reach = reach

    def run(self, trial: Trial) -> HealthCheck:
        if trial.release is None or self.name not in trial.release.health.required:
            return skipped(self.name, "the release does not require it")
        if not self._proven_lately(trial.network_proven_utc):
            return skipped(self.name, "the earlier release had no answer within 24 h either")
        self._reach()
        return ok(self.name, "reached")

    def _proven_lately(self, stamp: str) -> bool:
        # Either way: a stamp far in the future means that the clock was lost, and then nobody can tell.
        return bool(stamp) and abs(self._clock.now_utc() - parse_utc(stamp)) <= NETWORK_PROOF_AGE


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
