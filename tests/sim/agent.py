"""The real agent as a process on a device made of a folder: configuration, identity, sockets. The other processes are up to the
test.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.varlink import Client

from tests.sim.certificates import Authority

SERIAL = "INJ-000123"


class AgentDevice:
    """A folder with everything the agent needs. Sockets live in a short path of their own."""

    def __init__(self, directory: Path, *, url: str, ca_file: Path, devices: Authority) -> None:
        self.directory = directory
        self._short = tempfile.TemporaryDirectory(prefix="tw")
        self.run_dir = Path(self._short.name)
        self.state_dir = directory / "state"
        self.conf_dir = directory / "conf.d"
        self.keys = self.state_dir / "agent" / "keys" / "ldevid"
        self.stderr = directory / "agent.stderr"
        self.process: subprocess.Popen[bytes] | None = None
        self.settings: dict[str, dict[str, Any]] = {
            "device": {
                "product": "contrast-injector",
                "hw": "rev-c",
                "model": "Injector 200",
                "provisioned_file": str(directory / "provisioned.json"),
            },
            "paths": {
                "state_dir": str(self.state_dir),
                "run_dir": str(self.run_dir),
                "audit_dir": str(directory / "audit"),
                "trust_dir": str(directory / "trust"),
            },
            "peers": dict.fromkeys(("agent_user", "updater_user"), str(os.getuid()))
            | dict.fromkeys(("operator_group", "monitor_group", "local_group"), str(os.getgid())),
            "server": {"url": url, "ca_file": str(ca_file)},
            "poll": {"clamp_min_s": 1, "interval_min_s": 1, "interval_max_s": 1},
            "network": {"connect_timeout_s": 3, "request_timeout_s": 5},
            "telemetry": {"interval_s": 5},
            "updater": {
                "slot_a": str(directory / "a.img"),
                "slot_b": str(directory / "b.img"),
                "boot_env": str(directory / "env"),
                "image_identity": str(directory / "image.json"),
            },
        }
        self.conf_dir.mkdir(parents=True)
        devices.device(SERIAL, directory=self.keys)
        (directory / "provisioned.json").write_text(json.dumps({"schema": 1, "serial": SERIAL}))
        (directory / "image.json").write_text(
            json.dumps({"schema": 1, "built_utc": "2026-01-01T00:00:00.000Z"})
        )

    @property
    def config_file(self) -> Path:
        return self.directory / "tidewaiter.toml"

    @property
    def updater_socket(self) -> Path:
        return self.run_dir / "updater.sock"

    def write_config(self) -> None:
        lines: list[str] = []
        for section, values in self.settings.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), ""]
        self.config_file.write_text("\n".join(lines))

    def command(self, module: str, *arguments: str) -> list[str]:
        return [
            sys.executable, "-m", module, "--config", str(self.config_file), "--conf-dir", str(self.conf_dir), *arguments
        ]  # fmt: skip

    def start(self, *, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        self.write_config()
        with self.stderr.open("ab") as log:
            self.process = subprocess.Popen(
                self.command("tidewaiter_agent.main"), stderr=log, env={**os.environ, **(environment or {})}
            )
        return self.process

    def started(self) -> AgentDevice:
        """Start and wait until the local socket answers."""
        self.start()
        self.until(lambda: self.call("Status"))
        return self

    def run_to_end(self, *, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """For starts that are refused."""
        self.write_config()
        return subprocess.run(
            self.command("tidewaiter_agent.main"),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def cli(self, *arguments: str, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command("tidewaiter_agent.cli", *arguments),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def call(self, method: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        client = Client(self.run_dir / "agent" / "local.sock", timeout_s=5)
        try:
            return client.call(f"io.tidewaiter.Agent.{method}", parameters)
        finally:
            client.close()

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.call("Status")["status"]
        return status

    def until(self, condition: Callable[[], object], *, timeout_s: float = 15.0) -> None:
        end = time.monotonic() + timeout_s
        while True:
            try:
                if condition():
                    return
            except TidewaiterError:
                pass
            dead = self.process is not None and self.process.poll() is not None
            assert not dead, f"the agent ended: {self.stderr.read_text()[-3000:]}"
            assert time.monotonic() < end, f"not true within {timeout_s} s: {self.stderr.read_text()[-3000:]}"
            time.sleep(0.05)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(15)

    def __enter__(self) -> AgentDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._short.cleanup()
