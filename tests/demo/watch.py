"""Eyes of the demo: the updater's phase over its local socket, and every INET socket that a device process might listen on."""

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.varlink import Client

from tests.demo.timeline import Timeline
from tests.sim.machine import Machine


class PhaseWatch:
    """Follows `io.tidewaiter.Updater.GetStatus` of a machine as the panel's HMI would; survives its reboots."""

    def __init__(self, machine: Machine, timeline: Timeline) -> None:
        self.status: dict[str, Any] = {}
        self.phases: list[str] = []
        """Every phase entered so far, in order."""
        self._machine = machine
        self._timeline = timeline
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch-{machine.serial}", daemon=True)
        self._thread.start()

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    def forget(self) -> None:
        """Start of a new step: phases seen before do not count."""
        self.phases.clear()

    def line(self) -> str:
        """One line for the progress display."""
        amount = self.status.get("bytes") or {}
        waiting = ", ".join(self.status.get("waiting_for") or [])
        text = self.phase
        if amount.get("total") and self.phase in {"TRANSFER", "VERIFY"}:
            ratio = (amount["written"] + amount["skipped"]) / amount["total"]
            text += f" [{'#' * int(ratio * 24):24}] {ratio:4.0%}, {amount['fetched'] / 1e6:.1f} MB fetched"
        return text + (f" waiting for {waiting}" if waiting else "")

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        socket = self._machine.run_dir / "updater-local.sock"
        while not self._stop.wait(0.1):
            try:
                with Client(socket, timeout_s=2) as client:
                    while not self._stop.wait(0.1):
                        self._take(client.call("io.tidewaiter.Updater.GetStatus")["status"])
            except TidewaiterError:
                time.sleep(0.1)

    def _take(self, status: dict[str, Any]) -> None:
        self.status = status
        if not self.phases or self.phases[-1] != status["phase"]:
            self.phases.append(status["phase"])
        self._timeline.phase(self._machine.serial, status["phase"])


class ListenWatch:
    """Samples the sockets of all device processes; one listening INET socket, or a bound UDP one, fails the demo.

    Two witnesses: psutil, always, and `ss -Hlntup` (iproute2), where it is installed.
    """

    def __init__(self, pids: Callable[[], dict[str, int]]) -> None:
        self.samples = 0
        self.ss_samples = 0
        self.found: set[str] = set()
        self.processes: set[str] = set()
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch-sockets", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        ss = shutil.which("ss", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin:/usr/bin:/bin")
        while not self._stop.wait(0.25):
            pids = self._pids()
            for name, pid in pids.items():
                self._look(name, pid)
            self.samples += 1
            if ss is not None and self.samples % 4 == 0:
                self._ask_ss(ss, pids)

    def _ask_ss(self, program: str, pids: dict[str, int]) -> None:
        shown = subprocess.run([program, "-Hlntup"], capture_output=True, text=True, check=True).stdout
        self.ss_samples += 1
        names = {pid: name for name, pid in pids.items()}
        for line in shown.splitlines():
            for pid in map(int, re.findall(r"pid=(\d+)", line)):
                if pid in names:
                    self.found.add(f"{names[pid]} (pid {pid}) in ss: {' '.join(line.split())}")

    def _look(self, name: str, pid: int) -> None:
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in family:
            self.processes.add(name)
            try:
                connections = process.net_connections("inet")
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            for one in connections:
                if one.status == psutil.CONN_LISTEN or (one.type.name == "SOCK_DGRAM" and not one.raddr):
                    self.found.add(f"{name} (pid {process.pid}) listens on {one.laddr}")
