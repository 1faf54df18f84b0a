"""The real `tidewaiter-server` as a process, with a PKI of the real factory, and clients that speak TLS to it.

Nothing is replaced: certificates come from tidewaiter_factory, the listeners are sockets, identity is what OpenSSL verified.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tidewaiter_factory.ca import Identity, make_device, make_server, write_identity
from tidewaiter_factory.pki import DEVICE_CAS, SERVER_ROOT_FILE, Pki, make_pki, write_pki
from tidewaiter_factory.profile import LDEVID

TENANT = "default"


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One keep-alive connection, opened at the first request."""

    def __init__(self, origin: str, context: ssl.SSLContext, headers: Mapping[str, str]) -> None:
        address = urlsplit(origin)
        assert address.hostname is not None
        self._connection = http.client.HTTPSConnection(
            address.hostname, address.port, context=context, timeout=20
        )
        self._headers = dict(headers)

    def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """`body`: bytes go out as they are, an iterator chunked, anything else as JSON."""
        sent = self._headers | dict(headers or {})
        if body is not None and not isinstance(body, bytes | Iterator):
            body = json.dumps(body).encode()
        if body is not None:
            sent.setdefault("Content-Type", "application/json")
        self._connection.request(method, path, body=body, headers=sent)
        answer = self._connection.getresponse()
        headers_seen = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, headers_seen, answer.read())

    def close(self) -> None:
        self._connection.close()


@dataclass
class ServerProcess:
    """A started server and everything around it."""

    directory: Path
    pki: Pki
    token: str
    device_origin: str
    console_origin: str
    process: subprocess.Popen[str]
    clients: list[Client] = field(default_factory=list)

    @property
    def repository(self) -> Path:
        return self.directory / "repository"

    def make_identity(self, serial: str, name: str = "", **options: Any) -> tuple[Identity, Path]:
        """An LDevID of this PKI, and the folder its files are in."""
        identity = make_device(LDEVID, self.pki.operations_ca, serial, datetime.now(UTC), **options)
        return identity, self.write(identity, name or serial)

    def write(self, identity: Identity, name: str) -> Path:
        folder = self.directory / "devices" / name
        write_identity(identity, folder / "cert.pem", folder / "key.pem")
        return folder

    def enroll(self, serial: str) -> Client:
        """A new device on the enrollment list, connected."""
        identity, folder = self.make_identity(serial)
        entry = {"id": serial, "model": "ci-300", "hw": "ci-300-a"}
        answer = self.api(
            "POST", "/api/v1/devices", entry | {"certificate_pem": identity.certificate_pem().decode()}
        )
        assert answer.status == 201, answer
        return self.client(folder)

    def client(self, folder: Path | None, **options: Any) -> Client:
        """A client of the device listener with the certificate in `folder`; None: without one."""
        client = Client(self.device_origin, self.context(folder, **options), {})
        self.clients.append(client)
        return client

    def context(self, folder: Path | None, *, tls: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.directory / "pki" / SERVER_ROOT_FILE)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        if folder is not None:
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        if tls is not None:
            context.maximum_version = tls
        return context

    def api(self, method: str, path: str, body: object = None, *, token: str | None = None) -> Answer:
        """One request to the management API, by default with the administrator's token."""
        headers = {"Authorization": f"Bearer {self.token if token is None else token}"}
        client = Client(self.console_origin, self.context(None), headers)
        try:
            return client.request(method, path, body)
        finally:
            client.close()

    def audit(self, kind: str) -> list[dict[str, Any]]:
        """All records of the server's chain of one kind."""
        found: list[dict[str, Any]] = []
        after: int | None = -1
        while after is not None:
            page = self.api("GET", f"/api/v1/audit?limit=200&after={after}").json
            found += [record for record in page["items"] if record["kind"] == kind]
            after = page["next"]
        return found

    def stop(self, *, timeout_s: float = 10) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)


def prepare(directory: Path, **settings: object) -> tuple[Pki, str, Path]:
    """PKI, certificate, database and server.toml; returns PKI, token and configuration file."""
    now = datetime.now(UTC)
    pki = make_pki("Example Devices", now)
    write_pki(pki, directory / "pki")
    server = make_server(pki.server_root, ["localhost"], [ip_address("127.0.0.1")], now)
    write_identity(server, directory / "tls" / "cert.pem", directory / "tls" / "key.pem")
    (directory / "repository" / "metadata").mkdir(parents=True, exist_ok=True)
    (directory / "repository" / "targets").mkdir(exist_ok=True)
    done = command("init", "--data", str(directory / "data"))
    assert done.returncode == 0, done.stderr
    values: dict[str, object] = {
        "data_dir": "data",
        "tls_cert": "tls/cert.pem",
        "tls_key": "tls/key.pem",
        "device_ca": f"pki/{DEVICE_CAS}",
        "repository_dir": "repository",
        "device_listen": "127.0.0.1:0",
        "console_listen": "127.0.0.1:0",
        "poll_sleep_s": 1,
    }
    config = directory / "server.toml"
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in (values | settings).items())
    config.write_text(text)
    return pki, done.stdout.strip(), config


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`tidewaiter-server` with these arguments, to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tidewaiter_server.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextmanager
def running(directory: Path, pki: Pki, token: str, config: Path) -> Iterator[ServerProcess]:
    """The server from its ready line on until SIGTERM."""
    errors = (directory / "server.err").open("a")
    process = subprocess.Popen(
        [sys.executable, "-m", "tidewaiter_server.cli", "run", "--config", str(config)],
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("tidewaiter-server: ready "):
        process.kill()
        process.wait()
        raise AssertionError(f"no ready line: {line!r} {(directory / 'server.err').read_text()}")
    origins = dict(part.split("=", 1) for part in line.split()[2:])
    server = ServerProcess(directory, pki, token, origins["device"], origins["console"], process)
    try:
        yield server
    finally:
        for client in server.clients:
            client.close()
        if process.poll() is None:
            server.stop()
        process.stdout.close()
        errors.close()


@contextmanager
def started(directory: Path, **settings: object) -> Iterator[ServerProcess]:
    """A fresh server in `directory`."""
    with running(directory, *prepare(directory, **settings)) as server:
        yield server


def base_path(serial: str) -> str:
    return f"/{TENANT}/controller/v1/{serial}"
