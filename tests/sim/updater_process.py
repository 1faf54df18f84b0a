"""A running tidewaiter-updater with slots, boot environment and a relay that serves a published repository."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import SlotName
from tidewaiter_core.varlink import Client, NotReachable
from tidewaiter_updater.model import BootEnv

from tests.sim.boot.installed import InstalledLoader, SimulatedFile
from tests.sim.hal import write_config
from tests.sim.relay import Relay, relaying
from tests.sim.repository import TestRepository

UPDATER = "io.tidewaiter.Updater"
LIMIT_S = 60.0


@dataclass
class UpdaterProcess:
    """The daemon and its device. `home` has the layout of `write_config`, which a HalProcess may share."""

    home: Path
    repository: TestRepository
    device: Path
    process: subprocess.Popen[bytes] | None = None
    boots: int = 0
    booted: SlotName = SlotName.A
    loader: InstalledLoader | None = None
    """None: the simulated one."""
    identities: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """Version and sequence that the identity file inside an image says."""
    data_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By version, what an image says of its data; the root program runs at each boot if there is any."""
    epochs: dict[str, int] = field(default_factory=dict)
    """By version, the security epoch that an image says; 0 if it is not here."""
    python: str = sys.executable
    """What the daemon and its units run with."""
    person_python: str = sys.executable
    """What the command line runs with."""

    def manufacture(self, image: bytes, version: str, sequence: int) -> None:
        """The same image in both slots, slot A committed."""
        write_config(self.home, self.device, hal={"bench": True, "quiet_after_injection_s": 1})
        text = (self.home / "tidewaiter.toml").read_text()
        extra = {
            **self._loader.settings,
            "kernel_files": self.home / "kernel",
            "cmdline_file": self.home / "cmdline",
            "image_identity": self.home / "image.json",
            "tuf_root": self.repository.trusted_root,
            "media_root": self.repository.store.media.metadata / "1.root.json",
            "floor_file": self.home / "no-floor.json",
        }
        lines = "".join(f'{name} = "{value}"\n' for name, value in extra.items())
        text = re.sub(r"^boot_env = .*\n", "", text, flags=re.MULTILINE)
        text = text.replace("[updater]\n", f"[updater]\n{lines}")
        text = text.replace('product = "injector"', f'product = "{self.repository.product}"')
        text = text.replace('hw = "inj-a1"', f'hw = "{self.repository.hw}"')
        if self.data_of:
            text += f'[data]\nsets_dir = "{self.sets}"\nprograms_dir = "{self.home}/migrate.d"\n'
            for folder in ("data", "migrate.d", "run/settle"):
                (self.home / folder).mkdir(parents=True)
        # A file of its own: a HalProcess in the same home writes its configuration again.
        self.config.write_text(text)
        (self.home / "run/reboot").mkdir(parents=True)
        (self.home / "ca.pem").touch()
        for slot in ("a", "b"):
            (self.home / f"slot-{slot}").write_bytes(image)
        self._loader.format()
        self.knows(image, version, sequence)

    @property
    def _loader(self) -> InstalledLoader:
        return self.loader or SimulatedFile(self.home / "env")

    @property
    def config(self) -> Path:
        return self.home / "updater.toml"

    def knows(self, image: bytes, version: str, sequence: int) -> None:
        """What the identity file inside another image says."""
        self.identities[image] = (version, sequence)

    def boot(self) -> None:
        """Boot script, identity of the booted root, daemon."""
        self.boots += 1
        (self.home / "run/reboot/now").unlink(missing_ok=True)
        booted = self._loader.choose(lambda slot: True)
        assert booted is not None
        self.booted = booted
        self.mount_root(booted)
        version, sequence = self.identities[self.slot(booted).read_bytes()]
        identity = {
            "schema": 1,
            "product": self.repository.product,
            "version": version,
            "sequence": sequence,
            "security_epoch": self.epochs.get(version, 0),
            "built_utc": "2026-01-01T00:00:00Z",
            "hw": [self.repository.hw],
        }
        if version in self.data_of:
            identity["data"] = dict(self.data_of[version])
        (self.home / "image.json").write_text(json.dumps(identity))
        (self.home / "cmdline").write_text(f"ro tidewaiter.slot={booted}\n")
        if self.data_of:
            self.migrate("boot")  # how it went is the health check's question
        self.start()

    @property
    def sets(self) -> Path:
        return self.home / "data/sets"

    def data(self, schema: int) -> Path:
        """What the product of that schema sees."""
        return self.sets / str(schema) / "data"

    def migration(self, name: str, text: str) -> None:
        """A migration program of the images."""
        path = self.home / "migrate.d" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def migrate(self, action: str) -> subprocess.CompletedProcess[str]:
        """The root one-shot."""
        command = [*self.command("tidewaiter_updater.migrate_main"), action]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=90)

    def settle(self) -> bool:
        """What the path unit does when the updater raised its flag; False when it did not."""
        asked = (self.home / "run/settle/now").exists()
        if asked:
            done = self.migrate("settle")
            assert done.returncode == 0, done.stderr
        return asked

    def unit(self, name: str) -> subprocess.CompletedProcess[str]:
        """tidewaiter-health or tidewaiter-commit."""
        code = f"import sys; from tidewaiter_updater.units import {name}_main; sys.exit({name}_main())"
        python, _, _, *options = self.command()
        return subprocess.run(
            [python, "-c", code, *options],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=90,
        )

    def consent(self, digest: str, *scope: str) -> None:
        """A person at the device."""
        until = format_utc(datetime.now(UTC) + timedelta(hours=1))
        self.call("Consent", local=True, digest=digest, scope=list(scope), until=until)

    def slot(self, slot: SlotName) -> Path:
        return self.home / f"slot-{slot.lower()}"

    def mount_root(self, slot: SlotName) -> None:
        """What the kernel says of `/`: it is a file, so its numbers are those of the file."""
        status = self.slot(slot).stat()
        device = f"{status.st_dev}:{status.st_ino}"
        kernel = self.home / "kernel"
        (kernel / "proc/self").mkdir(parents=True, exist_ok=True)
        (kernel / "proc/self/mountinfo").write_text(f"1 0 {device} / / ro - ext4 /dev/root ro\n")
        (kernel / "sys/dev/block" / device).mkdir(parents=True, exist_ok=True)

    def command(self, module: str = "tidewaiter_updater.main") -> list[str]:
        config = ["--config", str(self.config), "--conf-dir", str(self.home / "conf.d")]
        return [self.python, "-m", module, *config]

    def cli(self, *words: str) -> list[str]:
        """The command line of a person at this device."""
        return [self.person_python, *self.command("tidewaiter_agent.cli")[1:], *words]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "TIDEWAITER_BOOT_ID": f"{self.boots:08x}" * 4}

    def start(self) -> None:
        """The daemon alone, in the present boot."""
        with (self.home / "updater.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=self.environment())
        self.until(self._answers, "the updater answers")

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(15)

    def call(self, method: str, *, local: bool = False, **parameters: Any) -> dict[str, Any]:
        name = "updater-local.sock" if local else "updater.sock"
        with Client(self.home / "run" / name, timeout_s=30) as client:
            return client.call(f"{UPDATER}.{method}", parameters)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.call("GetStatus")["status"]
        return status

    def until_phase(self, *phases: str) -> dict[str, Any]:
        self.until(lambda: self.status()["phase"] in phases, f"phase {' or '.join(phases)}")
        return self.status()

    def until(self, holds: Callable[[], bool], what: str, *, limit_s: float = LIMIT_S) -> None:
        end_s = time.monotonic() + limit_s
        while not holds():
            if time.monotonic() > end_s:
                raise AssertionError(
                    f"{what}: not within {limit_s:g} s\n{(self.home / 'updater.log').read_text()[-4000:]}"
                )
            time.sleep(0.05)

    def env(self) -> BootEnv:
        env = self._loader.control().read()
        assert env is not None
        return env

    @property
    def reboots(self) -> bool:
        """Whether PID 1 would restart the machine now."""
        return (self.home / "run/reboot/now").exists()

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the updater ended: {(self.home / 'updater.log').read_text()[-4000:]}")
        with contextlib.suppress(NotReachable):
            return bool(self.status())
        return False


@contextlib.contextmanager
def updater_process(
    home: Path, device: Path, *, loader: InstalledLoader | None = None
) -> Iterator[tuple[UpdaterProcess, Relay]]:
    """A device that is not yet manufactured, the repository it will trust, and the way between them."""
    repository = TestRepository(home / "vendor")
    updater = UpdaterProcess(home, repository, device, loader=loader)
    (home / "run/agent").mkdir(parents=True)
    with relaying(repository.repo, home / "run/agent/relay.sock") as relay:
        try:
            yield updater, relay
        finally:
            if updater.process is not None and updater.process.poll() is None:
                updater.kill()
