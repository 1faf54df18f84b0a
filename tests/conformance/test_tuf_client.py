"""The conformance client as the suite starts it: over a repository of ours, and by the public suite where that is here."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import suite
from tests.sim.repository import MadeRelease, TestRepository


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Client:
    """One device of the suite."""

    def __init__(self, repository: TestRepository, place: Path, port: int) -> None:
        self.repository = repository
        self.metadata = place / "metadata"
        self.targets = place / "targets"
        self.base = f"http://127.0.0.1:{port}"
        self.metadata.mkdir()
        self.targets.mkdir()

    def init(self) -> int:
        return self._run("init", str(self.repository.trusted_root))

    def refresh(self) -> int:
        return self._run("--metadata-url", f"{self.base}/metadata", "refresh")

    def download(self, *targets: str) -> int:
        named = [word for name in targets for word in ("--target-name", name)]
        return self._run(
            "--metadata-url",
            f"{self.base}/metadata",
            *named,
            "--target-base-url",
            f"{self.base}/targets",
            "--target-dir",
            str(self.targets),
            "download",
        )

    def downloaded(self) -> list[bytes]:
        return sorted(path.read_bytes() for path in self.targets.iterdir())

    def _run(self, *arguments: str) -> int:
        command = [sys.executable, str(suite.CLIENT), "--metadata-dir", str(self.metadata), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 1), done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode


@pytest.fixture
def repository(tmp_path: Path) -> TestRepository:
    return TestRepository(tmp_path / "desk")


@pytest.fixture
def made(repository: TestRepository) -> MadeRelease:
    return repository.add_release(b"\7" * 4096 * 20, "1.0", 1)


@pytest.fixture
def client(repository: TestRepository, made: MadeRelease, tmp_path: Path) -> Iterator[Client]:
    handler = partial(_Quiet, directory=str(repository.repo))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield Client(repository, tmp_path, server.server_address[1])
        server.shutdown()
        serving.join()


def test_the_client_initializes_refreshes_and_downloads(client: Client, made: MadeRelease) -> None:
    assert (client.init(), client.refresh()) == (0, 0)
    assert {path.name for path in client.metadata.glob("*.json")} == {
        "root.json",
        "timestamp.json",
        "snapshot.json",
        "targets.json",
    }
    index = made.release.slot.index.path
    assert client.download(made.path, index) == 0
    expected = [(made.directory / name).read_bytes() for name in ("release.json", "index.twci")]
    assert client.downloaded() == sorted(expected)


def test_an_unsigned_target_ends_a_download_there(client: Client, made: MadeRelease) -> None:
    client.init()
    assert client.download(made.path, "no/such/target", made.release.slot.pack.path) == 1
    assert client.downloaded() == [(made.directory / "release.json").read_bytes()]


def test_a_changed_target_is_not_kept(client: Client, repository: TestRepository, made: MadeRelease) -> None:
    client.init()
    repository.flip_byte(made.path, 3)
    assert (client.download(made.path), client.downloaded()) == (1, [])


def test_the_floors_of_the_client_refuse_a_replay_that_its_cache_forgot(
    client: Client, repository: TestRepository
) -> None:
    old = repository.keep_copy("old")
    repository.refresh()
    assert (client.init(), client.refresh()) == (0, 0)
    repository.rollback_to(old)
    for path in client.metadata.glob("*.json"):
        path.write_bytes(b"")
    assert client.refresh() == 1


def test_forged_metadata_is_refused(client: Client, repository: TestRepository) -> None:
    client.init()
    repository.sign_with_foreign_keys("timestamp")
    assert client.refresh() == 1


def test_the_file_can_be_executed_by_itself() -> None:
    done = subprocess.run([suite.CLIENT, "--help"], capture_output=True, text=True, check=False)
    if "is not installed in" in done.stderr:
        pytest.skip("neither the python3 on PATH nor .venv has this project installed")
    assert "conformance tests" in done.stdout


def test_the_public_conformance_suite_passes(tmp_path: Path) -> None:
    place = suite.checkout()
    if place is None:
        pytest.skip(suite.HOW_TO_GET_IT)
    missing = suite.missing_program()
    if missing is not None:
        pytest.skip(missing)
    outcome = suite.run(place, tmp_path)
    assert outcome.failures == ()
    assert (outcome.passed >= 113, outcome.other) == (True, 0)
