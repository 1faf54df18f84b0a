"""A device for the real tidewaiter-migrate: configuration, identity, boot environment, programs, a place for its sets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot.medium import FileMedium
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.data_sets import Progress, read_progress
from tidewaiter_updater.model import BootEnv

from tests.sim.boot import format_environment
from tests.sim.hal import write_config

FIRST = {"writes": 1, "reads_min": 1, "reads_max": 1, "reversible": True}
SECOND = {"writes": 2, "reads_min": 1, "reads_max": 2, "reversible": True}


@dataclass
class MigrateDevice:
    """`home` is its disk and its /run; `sets` may be a file system of its own."""

    home: Path
    sets: Path
    boots: int = 0

    def manufacture(self, *, deadline_s: int = 60) -> MigrateDevice:
        """A new device with its first set, into which the product wrote."""
        config = write_config(self.home, self.home / "injector", hal={"bench": True})
        text = config.read_text().replace(
            "[updater]\n",
            f'[updater]\ncmdline_file = "{self.home}/cmdline"\nimage_identity = "{self.home}/image.json"\n',
        )
        text += (
            f'[data]\nsets_dir = "{self.sets}"\nprograms_dir = "{self.programs}"\ndeadline_s = {deadline_s}\n'
        )
        config.write_text(text)
        self.programs.mkdir()
        (self.home / "run/settle").mkdir(parents=True)
        self.sets.parent.mkdir(parents=True, exist_ok=True)
        format_environment(self.home / "env")
        self.boot(SlotName.A, FIRST)
        done = self.run("boot")
        assert done.returncode == 0, done.stderr
        return self

    @property
    def programs(self) -> Path:
        return self.home / "migrate.d"

    def data(self, schema: int) -> Path:
        return self.sets / str(schema) / "data"

    def names(self) -> set[str]:
        return {path.name for path in self.sets.iterdir() if path.is_dir()}

    def program(self, name: str, text: str, *, interpreter: str = "/bin/sh") -> None:
        """A migration program of the image."""
        path = self.programs / name
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o755)

    def env(self, env: BootEnv) -> None:
        """What the boot loader and the updater left in the boot environment."""
        SimulatedBoot(FileMedium(self.home / "env"), cmdline=lambda: "").write(env)

    def boot(self, slot: SlotName, data: Mapping[str, Any]) -> None:
        """A slot gets control; its image says what its data are."""
        self.boots += 1
        identity = {
            "schema": 1,
            "product": "injector",
            "version": f"{data['writes']}.0",
            "sequence": data["writes"],
            "security_epoch": 0,
            "built_utc": "2026-01-01T00:00:00Z",
            "hw": ["inj-a1"],
            "data": dict(data),
        }
        (self.home / "image.json").write_text(json.dumps(identity))
        (self.home / "cmdline").write_text(f"ro tidewaiter.slot={slot}\n")

    def try_second(self, *, txn: str = "a" * 16, armboot: str = "0badb007") -> None:
        """Slot B is on trial with a release of schema 2."""
        self.env(
            BootEnv(
                committed=SlotName.A,
                ok_a=True,
                ok_b=True,
                trial=SlotName.B,
                left=2,
                txn=txn,
                armboot=armboot,
            )
        )
        self.boot(SlotName.B, SECOND)

    def command(self, action: str) -> list[str]:
        config = ["--config", str(self.home / "tidewaiter.toml"), "--conf-dir", str(self.home / "conf.d")]
        return [sys.executable, "-I", "-B", "-m", "tidewaiter_updater.migrate_main", action, *config]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "TIDEWAITER_BOOT_ID": f"{self.boots:08x}" * 4,
            "SECRET_OF_THE_PARENT": "hunter2",
        }

    def start(self, action: str = "boot") -> subprocess.Popen[str]:
        """The root one-shot, in a group of its own as systemd's control group is."""
        return subprocess.Popen(
            self.command(action),
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, action: str = "boot", *, limit_s: float = 90) -> subprocess.CompletedProcess[str]:
        process = self.start(action)
        try:
            out, err = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def progress(self) -> Progress:
        found = read_progress(self.home / "run/migrate/progress.json")
        assert found is not None
        return found
