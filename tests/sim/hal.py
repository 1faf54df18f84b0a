"""A running tidewaiter-hal process with a configuration of its own, as tests need it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tidewaiter_core.varlink import Client, NotReachable

from tests.sim.image import dump_toml

INJECTOR = "io.tidewaiter.Injector"
INTERLOCK = "io.tidewaiter.Interlock"
START_LIMIT_S = 15.0


def write_config(home: Path, device: Path, *, hal: Mapping[str, Any] | None = None) -> Path:
    """An image configuration whose paths all lie in `home`; every account is the one that runs the test."""
    me = str(os.getuid())
    settings = {
        "device": {
            "product": "injector",
            "hw": "inj-a1",
            "model": "Injector A1",
            "provisioned_file": str(home / "provisioned.json"),
        },
        "paths": {
            "state_dir": str(home / "state"),
            "run_dir": str(home / "run"),
            "audit_dir": str(home / "audit"),
            "trust_dir": str(home / "trust"),
        },
        "peers": {
            "agent_user": me,
            "updater_user": me,
            "operator_group": str(os.getgid()),
            "monitor_group": str(os.getgid()),
            "local_group": str(os.getgid()),
        },
        "server": {"url": "https://localhost:1", "ca_file": str(home / "ca.pem")},
        "hal": {"device": str(device), "quiet_after_injection_s": 60, **(hal or {})},
        "updater": {
            "slot_a": str(home / "slot-a"),
            "slot_b": str(home / "slot-b"),
            "boot_env": str(home / "env"),
        },
    }
    home.mkdir(parents=True, exist_ok=True)
    (home / "conf.d").mkdir(exist_ok=True)
    (home / "provisioned.json").write_text(
        json.dumps({"schema": 1, "serial": "INJ-000001", "tenant": "default"})
    )
    path = home / "tidewaiter.toml"
    path.write_text(dump_toml(settings))
    return path


class HalProcess:
    """The daemon; started by the constructor, ended by `stop` or by leaving the context."""

    def __init__(
        self, home: Path, device: Path, *, boot_id: str = "", hal: Mapping[str, Any] | None = None
    ) -> None:
        self.home = home
        self.monitor = home / "run/hal/monitor.sock"
        self.control = home / "run/hal/control.sock"
        self.log = home / "hal.log"
        config = write_config(home, device, hal=hal)
        self.command = [sys.executable, "-m", "tidewaiter_hal.main"]
        self.command += ["--config", str(config), "--conf-dir", str(home / "conf.d")]
        self.environment = {**os.environ, **({"TIDEWAITER_BOOT_ID": boot_id} if boot_id else {})}
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=self.environment
            )
        self.until(lambda: self.snapshot() is not None, "the service answers", timeout_s=START_LIMIT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """What a watchdog or the kernel does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A method of the monitor socket."""
        with Client(self.monitor, timeout_s=5.0) as client:
            return client.call(f"{INJECTOR}.{method}", parameters)

    def order(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A method of the control socket."""
        with Client(self.control, timeout_s=10.0) as client:
            return client.call(f"{INTERLOCK}.{method}", parameters)

    def snapshot(self) -> dict[str, Any] | None:
        """None while the service does not answer."""
        try:
            snapshot: dict[str, Any] = self.ask("GetSnapshot")["snapshot"]
        except NotReachable:
            if self.process.poll() is not None:
                raise AssertionError(f"tidewaiter-hal ended: {self.log.read_text()[-3000:]}") from None
            return None
        return snapshot

    def decision(self, purpose: str = "reboot") -> dict[str, Any]:
        """The interlock's answer."""
        decision: dict[str, Any] = self.ask("CheckInterlock", purpose=purpose)["decision"]
        return decision

    @contextmanager
    def hold(self, purpose: str = "reboot", ttl_ms: int = 60_000) -> Iterator[Iterator[dict[str, Any]]]:
        """A Hold connection; its replies one by one."""
        with Client(self.control, timeout_s=10.0) as client:
            yield client.more(f"{INTERLOCK}.Hold", {"purpose": purpose, "ttl_ms": ttl_ms}, timeout_s=10.0)

    def until_link(self, link: str, *, timeout_s: float = 15.0) -> float:
        """Wait for a link state; returns how long it took."""
        return self.until(
            lambda: (self.snapshot() or {}).get("link") == link, f"link {link}", timeout_s=timeout_s
        )

    def until_allowed(self, purpose: str = "reboot", *, timeout_s: float = 30.0) -> float:
        """Wait for the interlock to allow."""
        return self.until(
            lambda: bool(self.decision(purpose)["allow"]),
            "the interlock allows",
            timeout_s=timeout_s,
            finding=lambda: str(self.decision(purpose)),
        )

    def until(
        self,
        condition: Callable[[], bool],
        what: str,
        *,
        timeout_s: float,
        finding: Callable[[], str] = lambda: "",
    ) -> float:
        """Wait for `condition`; returns how long it took."""
        started_s = time.monotonic()
        while not condition():
            if time.monotonic() - started_s >= timeout_s:
                raise AssertionError(
                    f"{what}: not within {timeout_s:g} s; {finding()} {self.log.read_text()[-2000:]}"
                )
            time.sleep(0.05)
        return time.monotonic() - started_s
