"""The manufacturer's side as real programs: factory PKI, TUF repository, server process, and its management API.

Every step runs the installed command line, as a manufacturer's engineer would; nothing is reached through Python imports.
"""

import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import requests

PRODUCT = "injector"
_READY = re.compile(r"ready device=https://[^:]+:(\d+) console=https://[^:]+:(\d+)")


class CommandFailedError(AssertionError):
    """A program of ours ended with a code that the caller did not expect."""


def run(program: str, *arguments: str | Path, expect: int = 0, timeout_s: float = 240) -> str:
    """Run an installed program and return what it printed.

    Raises:
        CommandFailedError: The exit code is not `expect`; the message holds the whole output.
    """
    command = [str(Path(sys.executable).parent / program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != expect:
        raise CommandFailedError(
            f"{program} {' '.join(map(str, arguments))}: exit {done.returncode}, expected {expect}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


@dataclass(slots=True)
class Enterprise:
    """PKI, release repository and a running server below `home`."""

    home: Path
    poll_sleep_s: int = 1
    token: str = ""
    device_port: int = 0
    console_port: int = 0
    _process: subprocess.Popen[str] | None = None
    _session: requests.Session = field(default_factory=requests.Session)

    @property
    def pki(self) -> Path:
        return self.home / "pki"

    @property
    def repository(self) -> Path:
        return self.home / "repository"

    @property
    def keys(self) -> Path:
        """Signing keys: on other hosts in real life, never on the server's."""
        return self.home / "offline-keys"

    @property
    def trusted_root(self) -> bytes:
        return (self.repository / "metadata/1.root.json").read_bytes()

    @property
    def server_ca(self) -> bytes:
        return (self.pki / "server-root.pem").read_bytes()

    def establish(self) -> Self:
        """Make PKI, repository and server data; idempotent only on an empty `home`."""
        self.home.mkdir(parents=True, exist_ok=True)
        run("tidewaiter-factory", "pki", "init", "--out", self.pki)
        run(
            "tidewaiter-factory",
            "server-cert",
            "--pki",
            self.pki,
            "--dns",
            "localhost",
            "--ip",
            "127.0.0.1",
            "--out",
            self.home / "tls",
        )
        run("tidewaiter-release", "init", "--repo", self.repository, "--keys", self.keys)
        printed = run("tidewaiter-server", "init", "--data", self.home / "server")
        self.token = re.findall(r"\S{32,}", printed)[-1]
        return self

    def start(self) -> Self:
        """Start the server process and wait until it listens."""
        settings = {
            "device_url": "https://localhost:{port}",
            "data_dir": str(self.home / "server"),
            "tenant": "default",
            "device_listen": f"127.0.0.1:{self.device_port}",
            "console_listen": f"127.0.0.1:{self.console_port}",
            "tls_cert": str(self.home / "tls/cert.pem"),
            "tls_key": str(self.home / "tls/key.pem"),
            "device_ca": str(self.pki / "device-cas.pem"),
            "repository_dir": str(self.repository),
            "poll_sleep_s": self.poll_sleep_s,
        }
        config = self.home / "server.toml"
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        log = (self.home / "server.log").open("a")
        program = str(Path(sys.executable).parent / "tidewaiter-server")
        self._process = subprocess.Popen(
            [program, "run", "--config", str(config)], stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.close()
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = _READY.search(line)
            if found:
                self.device_port, self.console_port = int(found[1]), int(found[2])
                threading.Thread(target=self._process.stdout.read, daemon=True, name="server-stdout").start()
                self._session = requests.Session()
                self._session.verify = str(self.pki / "server-root.pem")
                self._session.trust_env = False
                self._session.headers["Authorization"] = f"Bearer {self.token}"
                return self
        raise CommandFailedError(
            "tidewaiter-server ended before it was ready:\n" + (self.home / "server.log").read_text()
        )

    def stop(self) -> None:
        """End the server in order; it can be started again on the same ports and data."""
        self._session.close()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    # -- management API ---

    def api(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        expect: tuple[int, ...] = (200, 201, 204),
    ) -> Any:
        """One call of the management API; returns the decoded body."""
        answer = self._session.request(
            method, f"https://localhost:{self.console_port}/api/v1{path}", json=body, timeout=20
        )
        if answer.status_code not in expect:
            raise CommandFailedError(
                f"{method} {path}: {answer.status_code}, expected {expect}: {answer.text}"
            )
        return answer.json() if answer.content else None

    def enroll(self, serial: str, hw: str = "inj-a1") -> Path:
        """Issue a device certificate and put the device on the server's list; returns the directory with key and certificate."""
        identity = self.home / f"identities/{serial}"
        run("tidewaiter-factory", "device", "--pki", self.pki, "--serial", serial, "--out", identity)
        certificate = (identity / "cert.pem").read_text()
        body = {"id": serial, "model": "Injector A1", "hw": hw, "certificate_pem": certificate}
        self.api("POST", "/devices", body)
        return identity

    def build(self, image: Path, out: Path, *, version: str, sequence: int, **options: Any) -> dict[str, Any]:
        """`tidewaiter-release build`; returns the parsed release.json."""
        arguments: list[str | Path] = [
            "build",
            image,
            "--out",
            out,
            "--product",
            PRODUCT,
            "--version",
            version,
            "--sequence",
            str(sequence),
        ]
        defaults: dict[str, Any] = {"hw": "inj-a1", "security_epoch": 1, "consent": "none", "tries": 3}
        defaults |= {"health_required": "root,medium,hal,injector,disk", "health_deadline_s": 60, "hold_s": 1}
        for key, value in (defaults | options).items():
            arguments += [f"--{key.replace('_', '-')}", str(value)]
        run("tidewaiter-release", *arguments)
        document: dict[str, Any] = json.loads((out / "release.json").read_text())
        return document

    def publish(self, build: Path) -> None:
        run("tidewaiter-release", "publish", "--repo", self.repository, "--keys", self.keys, build)

    def import_release(self, version: str) -> int:
        """Make a published release known to the server; returns its id."""
        return int(self.api("POST", "/releases", {"product": PRODUCT, "version": version})["id"])

    def deploy(self, release_id: int, *serials: str, **options: Any) -> int:
        """Assign a release to devices; returns the deployment's id."""
        body = {
            "release_id": release_id,
            "device_ids": list(serials),
            "forced": False,
            "confirm": False,
            "window": None,
        }
        return int(self.api("POST", "/deployments", body | options)["id"])

    def action(self, serial: str, deployment: int) -> dict[str, Any]:
        """The device's action of a deployment: state, code, history."""
        for action in self.api("GET", f"/devices/{serial}/actions")["items"]:
            if action["deployment_id"] == deployment:
                return dict(action)
        raise CommandFailedError(f"{serial} has no action of deployment {deployment}")
