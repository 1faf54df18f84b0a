"""A whole tidewaiter-updater that installs a release from a signed repository: the real service, its trust child, its relay.

`install` runs it to STAGED and watches the peak memory of every process it has, what it keeps in its state directory, and, by
strace, every file that any of them opens for writing or makes.
"""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import tidewaiter_core
import tidewaiter_updater
from tidewaiter_core.model import SlotName
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.journal import Journal
from tidewaiter_updater.state_files import StateFiles

from tests.bench.image import BenchImage
from tests.bench.pair_releases import HARDWARE, PRODUCT
from tests.bench.patch_worker import recorded
from tests.bench.storage import Slot
from tests.sim.relay import Answer, Ask, Relay, relaying
from tests.sim.repository import MadeRelease, TestRepository
from tests.sim.updater_process import UpdaterProcess

STATE: Final = "state/updater"
_WATCH_S: Final = 0.02
_CALLS: Final = "openat,open,creat,rename,renameat,renameat2,mkdir,mkdirat,mknod,mknodat,link,linkat,symlink,symlinkat,truncate"
_OPENED: Final = re.compile(r'\bopen(?:at)?\((?:[^"]*, )?"([^"]+)", ([A-Z0-9_|]+)')
_MADE: Final = re.compile(r'"([^"]+)"[^"]*\)\s+= 0')
_WRITING: Final = ("O_WRONLY", "O_RDWR", "O_CREAT", "O_TMPFILE", "O_TRUNC")
_QUIET_DEVICES: Final = ("/dev/null", "/dev/tty")


@dataclass(slots=True, kw_only=True)
class Seen:
    """What one installation used."""

    peak_rss_bytes: dict[str, int] = field(default_factory=dict)
    """By process: service, trust child."""
    state_peak_bytes: int = 0
    state_bound_bytes: int = 0
    written_outside: list[str] = field(default_factory=list)
    """Files that are neither the slot, nor the boot environment, nor below state, run or audit directory."""
    is_traced: bool = False
    by_source: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    trust_seconds: float = 0.0
    """Check: the trust child from start to answer, with everything around it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """The release in slot A, as its own installation left it: what a patch starts from."""

    image: Path
    build: Path


def install(image: BenchImage, slot: Slot, work: Path, *, running: Running | None, trace: bool) -> Seen:
    """Install `image` into `slot`.

    Args:
        running: None: something unknown runs, and the release comes from its pack.
        trace: Watch every file that is opened for writing, if strace is here.

    Raises:
        RuntimeError: It did not get to STAGED.
    """
    _compile()
    with tempfile.TemporaryDirectory(prefix="device-", dir=work) as place:
        home = Path(place)
        repository = TestRepository(home / "vendor", product=PRODUCT, hw=HARDWARE)
        made = MadeRelease(directory=image.build, image=image.image, release=image.release)
        repository.publish(made)
        device = _Device(
            home, repository, home / "injector", trace=trace and shutil.which("strace") is not None
        )
        device.prepare(slot, running)
        (home / "run/agent").mkdir(parents=True)
        with relaying(repository.repo, home / "run/agent/relay.sock") as relay:
            relay.honest = _from_disk(relay)  # type: ignore[method-assign,assignment]
            try:
                return _watched(device, made, slot, image)
            finally:
                device.end()


class _Device(UpdaterProcess):
    """An `UpdaterProcess` whose slot B is any device, whose image nobody reads, and which may run under strace."""

    def __init__(self, home: Path, repository: TestRepository, device: Path, *, trace: bool) -> None:
        super().__init__(home, repository, device)
        self.trace = home / "strace" if trace else None

    def prepare(self, slot: Slot, running: Running | None) -> None:
        """Slot A runs, slot B is the one to measure."""
        self.manufacture(bytes(4096), "1.0.0", 1)
        places = {"slot_b": slot.path}
        if running is not None:
            places["slot_a"] = running.image
            self._remember(running)
        text = self.config.read_text()
        for name, place in places.items():
            text = re.sub(rf"(?m)^{name} = .*$", f'{name} = "{place}"', text)
        self.config.write_text(text)
        identity = {
            "schema": 1, "product": PRODUCT, "version": "1.0.0", "sequence": 1, "security_epoch": 0,
            "built_utc": "2026-01-01T00:00:00Z", "hw": [HARDWARE],
        }  # fmt: skip
        (self.home / "image.json").write_text(json.dumps(identity))
        (self.home / "cmdline").write_text(f"ro tidewaiter.slot={SlotName.A}\n")
        self.boots = 1

    def _remember(self, running: Running) -> None:
        state = self.home / STATE
        record = recorded(running.build / "index.twci", IndexStore(state / "index"))
        Journal(StateFiles(state)).save_slot(SlotName.A, record)

    def environment(self) -> dict[str, str]:
        # On a device the compiled modules are in the read-only image.
        return {**super().environment(), "PYTHONDONTWRITEBYTECODE": "1"}

    def command(self, module: str = "tidewaiter_updater.main") -> list[str]:
        command = super().command(module)
        if self.trace is None:
            return command
        return [
            "strace",
            "-f",
            "-qq",
            "--seccomp-bpf",
            "-e",
            f"trace={_CALLS}",
            "-o",
            str(self.trace),
            *command,
        ]

    def pids(self) -> Iterator[int]:
        """The service and its children, without strace."""
        process = self.process
        pending = [process.pid] if process is not None else []
        while pending:
            pid = pending.pop()
            pending += _children(pid)
            if process is None or self.trace is None or pid != process.pid:
                yield pid

    def end(self) -> None:
        """The service alone is told: strace ends with it."""
        if self.process is None or self.process.poll() is not None:
            return
        for pid in list(self.pids()):
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                continue
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


def _compile() -> None:
    """Compile what changed since the last run, as an image builder does: python -I would write it while it is watched."""
    for package in (tidewaiter_core, tidewaiter_updater):
        for folder in package.__path__:
            compileall.compile_dir(folder, quiet=2)


def _watched(device: _Device, made: MadeRelease, slot: Slot, image: BenchImage) -> Seen:
    seen = Seen(is_traced=device.trace is not None)
    device.start()
    state, stop = device.home / "state", threading.Event()
    watcher = threading.Thread(target=_watch, args=(device, state, seen, stop))
    watcher.start()
    try:
        began_s = time.monotonic()
        offer = device.call("Check", source="relay", release=made.path)["offer"]
        seen.trust_seconds = time.monotonic() - began_s
        if not offer["installable"]:
            raise RuntimeError(f"the device does not want the release: {offer}")
        began_s = time.monotonic()
        device.call("Install", digest=str(made.digest), consent=None)
        device.until(
            lambda: device.status()["phase"] in ("STAGED", "WAIT_WINDOW", "ARMED", "FAILED"),
            "the end",
            limit_s=1200,
        )
        seen.seconds = time.monotonic() - began_s
        status = device.status()
        seen.by_source = status["by_source"]
        if status["phase"] == "FAILED":
            raise RuntimeError(f"the installation failed: {status['last']}")
    finally:
        stop.set()
        watcher.join()
    device.end()
    component = image.release.slot
    chunks = -(-component.image_bytes // component.chunk_bytes)
    # The index and the head of a patch, the hash tables of both slots and a new one being written, chunk 0, and documents.
    seen.state_bound_bytes = (
        component.index.length + 3 * (32 * chunks + 16) + 2 * component.chunk_bytes + (4 << 20)
    )
    if device.trace is not None:
        seen.written_outside = sorted(_outside(device, slot))
    return seen


def _watch(device: _Device, state: Path, seen: Seen, stop: threading.Event) -> None:
    while not stop.wait(_WATCH_S):
        for pid in list(device.pids()):
            name, peak = _process(pid)
            if peak:
                seen.peak_rss_bytes[name] = max(peak, seen.peak_rss_bytes.get(name, 0))
        seen.state_peak_bytes = max(seen.state_peak_bytes, _size(state))


def _process(pid: int) -> tuple[str, int]:
    """What a process is, and its VmHWM."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "", 0
    peak = next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:")), 0)
    for module in ("trust", "seal", "migrate"):
        if f"tidewaiter_updater.{module}" in command:
            return f"{module} child", peak
    return ("service" if "tidewaiter_updater.main" in command else "other child"), peak


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return found


def _size(folder: Path) -> int:
    """Bytes of all files below a folder; those that vanish meanwhile count nothing."""
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(directory, name)).st_size
            except OSError:
                continue
    return total


def _outside(device: _Device, slot: Slot) -> set[str]:
    """What was opened for writing or made where nothing may be: strace's word for it."""
    if device.trace is None:
        return set()
    allowed = [device.home / name for name in ("state", "run", "audit", "env", "updater.log")]
    found: set[str] = set()
    for line in device.trace.read_text(errors="replace").splitlines():
        opened = _OPENED.search(line)
        if opened is not None:
            paths = (
                [opened[1]] if any(flag in opened[2] for flag in _WRITING) and " = -1 " not in line else []
            )
        else:
            made = _MADE.search(line)
            paths = [made[1]] if made is not None else []
        for path in paths:
            # A relative name is relative to a directory descriptor, which was opened by an absolute one and is judged there.
            is_ours = path == str(slot.path) or path in _QUIET_DEVICES or not path.startswith("/")
            if not is_ours and not any(Path(path).is_relative_to(place) for place in allowed):
                found.add(path)
    return found


def _from_disk(relay: Relay) -> Callable[[Ask], Answer]:
    """An honest answer that reads only what was asked for: the packs here do not fit into memory."""

    def honest(ask: Ask) -> Answer:
        file = relay.folder / ask.path
        if not file.is_file():
            return Answer(status="not-found", detail="404")
        with file.open("rb") as data:
            data.seek(ask.offset)
            body = data.read(ask.max_bytes)
        return Answer(offset=ask.offset, total=file.stat().st_size, length=len(body), body=body)

    return honest
