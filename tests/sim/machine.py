"""A whole device as processes on this computer: power button, boot loader, two slots, the product's daemons, no root needed.

Real: the slots hold file-system images, the boot environment is the redundant one on storage, the daemons are the installed
programs with the configuration that lies *in the booted slot*, a power cut is SIGKILL for all of them.
Standing in for hardware and PID 1: `tests.sim.boot` is the boot script; this module restarts dead daemons, runs
tidewaiter-health and tidewaiter-commit after boot and reacts to the reboot flag as the path unit does; instead of a mount
namespace, paths of the image's configuration are mapped into the machine's directory.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.sim import boot
from tests.sim.image import dump_toml, read_directory

SLOT_PREFIX = "/dev/disk/by-partlabel"
_MAPPED_ROOTS = (
    "/usr/lib/tidewaiter",
    "/var/lib/tidewaiter",
    "/run/tidewaiter",
    "/dev/tidewaiter",
    SLOT_PREFIX,
    "/proc/cmdline",
)
DAEMONS = ("hal", "updater", "agent")
RESTART_S = 1.0
Watcher = Callable[[str, str], None]


class BootLoopError(RuntimeError):
    """The boot loader found nothing bootable, or the machine reset more often than a test may allow."""


@dataclass(slots=True)
class _Daemon:
    name: str
    process: subprocess.Popen[bytes]
    started_s: float
    restarts: int = 0


@dataclass(slots=True, kw_only=True)
class Machine:
    """One device. `home` holds its disk, its data partition and its tmpfs; everything dies with `power_cut()` but the disk."""

    home: Path
    serial: str
    watcher: Watcher = lambda event, detail: None
    """Called with (event, detail) for boots, cuts, restarts: the demo's story and the tests' timeline."""
    environment: dict[str, str] = field(default_factory=dict)
    health: bool = True
    """False leaves tidewaiter-health and tidewaiter-commit to the caller."""
    booted: str = ""
    boots: int = 0
    _daemons: dict[str, _Daemon] = field(default_factory=dict)
    _supervisor: threading.Thread | None = None
    _off: threading.Event = field(default_factory=threading.Event)
    _held: set[str] = field(default_factory=set)
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _unit: subprocess.Popen[bytes] | None = None

    @classmethod
    def manufacture(
        cls,
        home: Path,
        *,
        serial: str,
        image: Path,
        identity: Path,
        slot_bytes: int | None = None,
        **options: Any,
    ) -> "Machine":
        """A factory-new device: `image` in both slots (the field's lesson: an empty slot B strands a device), A committed.

        Args:
            home: Directory of the new machine; must not exist.
            serial: Serial number, also the device id.
            image: Root file-system image.
            identity: Directory that `tidewaiter-factory device` wrote (cert.pem, key.pem, provisioned.json).
            slot_bytes: Slot size; the image's size when None.
            options: Fields of `Machine`.
        """
        machine = cls(home=home, serial=serial, **options)
        for directory in ("disk", "data", "run", "root", "etc/conf.d", "log", "dev"):
            (home / directory).mkdir(parents=True)
        for slot in ("a", "b"):
            target = machine.slot_path(slot.upper())
            shutil.copyfile(image, target)
            if slot_bytes is not None:
                os.truncate(target, slot_bytes)
        boot.format_environment(machine.env_path)
        keys = home / "data/agent/keys/ldevid"
        keys.mkdir(parents=True, mode=0o700)
        for name in ("cert.pem", "key.pem"):
            shutil.copyfile(identity / name, keys / name)
            (keys / name).chmod(0o600)
        shutil.copyfile(identity / "provisioned.json", home / "data/provisioned.json")
        return machine

    # -- places ---

    def slot_path(self, slot: str) -> Path:
        return self.home / f"disk/slot-{slot.lower()}"

    @property
    def env_path(self) -> Path:
        return self.home / "disk/env"

    @property
    def config(self) -> Path:
        return self.home / "root/tidewaiter/tidewaiter.toml"

    @property
    def conf_dir(self) -> Path:
        return self.home / "etc/conf.d"

    @property
    def run_dir(self) -> Path:
        return self.home / "run"

    @property
    def injector_link(self) -> Path:
        """Where the injector's serial line appears; plug a simulator in by `--pty` on this path."""
        return self.home / "dev/injector"

    def site(self, name: str, tables: dict[str, dict[str, Any]]) -> None:
        """Install a site configuration file, as a hospital's IT would; daemons read it at their next start."""
        (self.conf_dir / f"{name}.toml").write_text(dump_toml(tables))

    def version(self) -> str:
        """Version of the running release, as the booted root file system says."""
        return str(json.loads((self.home / "root/tidewaiter/image.json").read_text())["version"])

    def log(self, daemon: str) -> str:
        path = self.home / f"log/{daemon}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # -- power ---

    def power_on(self) -> None:
        """Boot: boot script, root file system, daemons, health. Returns when the daemons were started."""
        with self._lock:
            if self._supervisor is not None:
                raise RuntimeError(f"{self.serial} is on already")
            self._off = threading.Event()
            self._boot()
            self._supervisor = threading.Thread(
                target=self._supervise, args=(self._off,), name=f"pid1-{self.serial}", daemon=True
            )
            self._supervisor.start()

    def power_cut(self) -> None:
        """Pull the plug: every process of the device is killed at once, nothing is flushed by us."""
        self._off.set()
        with self._lock:
            self._kill_all(signal.SIGKILL)
            supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None and supervisor is not threading.current_thread():
            supervisor.join(timeout=10)
        self.watcher("power-cut", self.serial)

    def shut_down(self) -> None:
        """Orderly end (SIGTERM), for the end of a test."""
        self._off.set()
        with self._lock:
            self._kill_all(signal.SIGTERM)
            supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.join(timeout=10)

    def kill(self, *names: str, hold: bool = False) -> None:
        """SIGKILL daemons; the supervisor starts them again unless `hold`."""
        with self._lock:
            if hold:
                self._held.update(names)
            for name in names:
                self._daemons[name].process.kill()
                self._daemons[name].process.wait()
            self.watcher("killed", " and ".join(names))

    def release(self, *names: str) -> None:
        """Let held daemons start again."""
        with self._lock:
            self._held.difference_update(names)

    def pids(self) -> dict[str, int]:
        """Process ids of the daemons and of everything they started."""
        with self._lock:
            found = {
                name: daemon.process.pid
                for name, daemon in self._daemons.items()
                if daemon.process.poll() is None
            }
            if self._unit is not None and self._unit.poll() is None:
                found["health-or-commit"] = self._unit.pid
        return found

    def run(
        self, *command: str, timeout_s: float = 30, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a product command (`tidewaiter status`) on the device."""
        program, *arguments = command
        argv = [_program(program), *self._options(), *arguments]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, check=check, env=self._environ()
        )

    # -- PID 1 and the boot loader ---

    def _boot(self) -> None:
        shutil.rmtree(self.run_dir, ignore_errors=True)
        for directory in ("hal", "agent", "reboot"):
            (self.run_dir / directory).mkdir(parents=True)
        for _attempt in range(12):
            self.boots += 1
            slot = boot.choose(self.env_path, probe=self._loads)
            if slot is None:
                continue  # a load failure of the trial slot is a reset
            self.booted = str(slot)
            break
        else:
            raise BootLoopError(f"{self.serial}: 12 resets without a slot that loads")
        (self.home / "cmdline").write_text(f"root=/dev/slot ro panic=5 tidewaiter.slot={self.booted}\n")
        self.environment["TIDEWAITER_BOOT_ID"] = secrets.token_hex(16)
        self._map_configuration()
        self._held.clear()
        self.watcher("boot", f"slot {self.booted}, release {self.version()}")
        for name in DAEMONS:
            self._start(name)
        if self.health:
            threading.Thread(
                target=self._confirm, args=(self._off,), name=f"confirm-{self.serial}", daemon=True
            ).start()

    def _loads(self, slot: str) -> bool:
        """What the boot loader finds out by loading: is there a root file system with our files in that slot?"""
        root = self.home / "root"
        shutil.rmtree(root, ignore_errors=True)
        try:
            read_directory(self.slot_path(slot), "/usr/lib/tidewaiter", root)
        except OSError:
            return False
        return (root / "tidewaiter/image.json").exists()

    def _map_configuration(self) -> None:
        """Stand-in for the mount table: absolute paths in the image's configuration point into this machine's directory."""
        tables = tomllib.loads(self.config.read_text())
        tables.setdefault("paths", {}).update(
            state_dir="/var/lib/tidewaiter",
            run_dir="/run/tidewaiter",
            audit_dir="/var/lib/tidewaiter/audit",
            trust_dir="/var/lib/tidewaiter/trust",
        )
        tables["device"].setdefault("provisioned_file", "/var/lib/tidewaiter/provisioned.json")
        defaults = {"cmdline_file": "/proc/cmdline", "image_identity": "/usr/lib/tidewaiter/image.json"}
        defaults |= {
            "tuf_root": "/usr/lib/tidewaiter/root.json",
            "floor_file": "/usr/lib/tidewaiter/floor.json",
        }
        for key, value in defaults.items():
            tables["updater"].setdefault(key, value)
        user, group = str(os.getuid()), str(os.getgid())
        tables["peers"] = {"agent_user": user, "updater_user": user} | {
            f"{name}_group": group for name in ("operator", "monitor", "local")
        }
        self.config.write_text(dump_toml({table: self._map(keys) for table, keys in tables.items()}))

    def _map(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._map(item) for key, item in value.items()}
        if not isinstance(value, str) or not value.startswith(_MAPPED_ROOTS):
            return value
        places = {
            "/usr/lib/tidewaiter": self.home / "root/tidewaiter",
            "/var/lib/tidewaiter": self.home / "data",
            "/run/tidewaiter": self.run_dir,
            "/dev/tidewaiter": self.home / "dev",
            SLOT_PREFIX: self.home / "disk",
            "/proc/cmdline": self.home / "cmdline",
        }
        prefix = next(root for root in _MAPPED_ROOTS if value.startswith(root))
        return str(places[prefix]) + value.removeprefix(prefix)

    def _start(self, name: str, restarts: int = 0) -> None:
        with (self.home / f"log/{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [_program(f"tidewaiter-{name}"), *self._options()],
                stdout=log,
                stderr=log,
                env=self._environ(),
                start_new_session=True,
            )
        self._daemons[name] = _Daemon(name, process, time.monotonic(), restarts)

    def _options(self) -> list[str]:
        return ["--config", str(self.config), "--conf-dir", str(self.conf_dir)]

    def _environ(self) -> dict[str, str]:
        return {**os.environ, **self.environment}

    def _confirm(self, off: threading.Event) -> None:
        """tidewaiter-health.service, then tidewaiter-commit.service, as boot-complete.target orders them."""
        for unit in ("tidewaiter-health", "tidewaiter-commit"):
            with self._lock:
                if off.is_set():
                    return
                with (self.home / f"log/{unit}.log").open("ab") as log:
                    self._unit = subprocess.Popen(
                        [_program(unit), *self._options()],
                        stdout=log,
                        stderr=log,
                        env=self._environ(),
                        start_new_session=True,
                    )
                unit_process = self._unit
            code = unit_process.wait()
            if off.is_set():
                return
            self.watcher(unit, "ok" if code == 0 else f"exit {code}")
            if code != 0:
                return

    def _supervise(self, off: threading.Event) -> None:
        flag = self.run_dir / "reboot/now"
        while not off.wait(0.1):
            if flag.exists():
                self._reboot()
                return
            with self._lock:
                if off.is_set():
                    return
                for name, daemon in list(self._daemons.items()):
                    code = daemon.process.poll()
                    if code is None or name in self._held or time.monotonic() - daemon.started_s < RESTART_S:
                        continue
                    self.watcher("restart", f"{name} (exit {code})")
                    self._start(name, daemon.restarts + 1)

    def _reboot(self) -> None:
        """The reboot path unit fired: stop everything in order, then boot again."""
        self.watcher("reboot", self.serial)
        with self._lock:
            self._off.set()
            self._kill_all(signal.SIGTERM)
            self._off = threading.Event()
            self._boot()
            self._supervisor = threading.Thread(
                target=self._supervise, args=(self._off,), name=f"pid1-{self.serial}", daemon=True
            )
            self._supervisor.start()

    def _kill_all(self, how: signal.Signals) -> None:
        processes = [daemon.process for daemon in self._daemons.values()]
        if self._unit is not None:
            processes.append(self._unit)
        for process in processes:
            if process.poll() is None:
                # A daemon's own children (the trust child) die with it: they share its session.
                os.killpg(process.pid, how)
        deadline = time.monotonic() + 5
        for process in processes:
            try:
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._daemons.clear()
        self._unit = None


def _program(name: str) -> str:
    """An installed program of this environment."""
    return str(Path(sys.executable).parent / name)
