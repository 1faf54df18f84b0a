"""Keys on a PKCS#11 token (SoftHSM2 stands in for one): they sign, never leave, and their errors are understood."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from securesystemslib.signer import Signature
from tidewaiter_core.clock import SystemClock
from tidewaiter_release.repository import Desk, edits
from tidewaiter_release.repository.adopt import adopt
from tidewaiter_release.repository.keys import load_public, load_signer
from tidewaiter_release.repository.request import read_request
from tidewaiter_release.repository.sign import read_signatures, sign, signature_files
from tidewaiter_release.repository.signing import Calendar
from tidewaiter_release.repository.stage import Change, stage

from tests.sim.repository import TestRepository
from tests.sim.tuf_client import TufDevice

MODULE = Path("/usr/lib/softhsm/libsofthsm2.so")
PIN = "123456"
RUN = "import sys; from tidewaiter_release.cli import main; sys.exit(main())"

pytestmark = [
    pytest.mark.skipif(shutil.which("softhsm2-util") is None, reason="needs Debian's softhsm2"),
    pytest.mark.skipif(shutil.which("pkcs11-tool") is None, reason="needs Debian's opensc"),
    pytest.mark.skipif(
        importlib.util.find_spec("pkcs11") is None, reason="needs python-pkcs11 (extra pkcs11)"
    ),
]


class Token:
    """A software token with one P-256 key, in a process of its own each time: a module is loaded once per process."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "tokens").mkdir()
        self.pin_file = directory / "pin"
        self.pin_file.write_text(f"{PIN}\n")
        configuration = directory / "softhsm2.conf"
        configuration.write_text(f"directories.tokendir = {directory / 'tokens'}\nlog.level = ERROR\n")
        self.environment = {**os.environ, "SOFTHSM2_CONF": str(configuration)}
        self._run(
            "softhsm2-util", "--init-token", "--free", "--label", "desk", "--pin", PIN, "--so-pin", "0000"
        )
        self._run(
            *("pkcs11-tool", "--module", str(MODULE), "--token-label", "desk", "--login", "--pin", PIN),
            *("--keypairgen", "--key-type", "EC:prime256v1", "--id", "02", "--usage-sign"),
        )

    def tool(self, *arguments: str | Path, pin: Path | None = None) -> subprocess.CompletedProcess[str]:
        """`tidewaiter-release` with this token plugged in."""
        command = [sys.executable, "-c", RUN, *map(str, arguments)]
        command += [
            "--pkcs11-module",
            str(MODULE),
            "--pkcs11-token",
            "desk",
            "--pin-file",
            str(pin or self.pin_file),
        ]
        return subprocess.run(
            command,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def _run(self, *command: str) -> None:
        subprocess.run(command, env=self.environment, check=True, capture_output=True)


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Token:
    return Token(tmp_path_factory.mktemp("token") / "soft")


def test_a_key_on_a_token_becomes_a_key_of_a_role_and_signs_a_release(token: Token, tmp_path: Path) -> None:
    world = TestRepository(tmp_path / "world")
    public = tmp_path / "anna-token.pub.pem"
    done = token.tool("key", "public", "--out", public)
    assert done.returncode == 0, done.stderr
    assert load_public(public).scheme == "ecdsa-sha2-nistp256"

    def publish(change: Change, name: str, *signers: str, by_token: bool = False) -> None:
        folder = tmp_path / name
        stage(world.store, folder, change, calendar=Calendar(clock=SystemClock()), media=False)
        request = read_request(folder)
        sign(request, folder, [load_signer(world.keys / f"{signer}.pem") for signer in signers])
        if by_token:
            signed = token.tool("sign", folder, "--yes")
            assert signed.returncode == 0, signed.stderr
            assert "signed os-3 by anna-token" in signed.stdout
        signatures = [one for path in signature_files(folder) for one in read_signatures(path, request)]
        desk = Desk(keys=world.keys, clock=SystemClock())
        adopt(world.store, desk, request, signatures, builds=[made.directory])

    made = world.make_release(bytes(range(256)) * 64, "1.0", 1)
    replacement = edits.Replacement(role="os", old="os-1", new=public)
    publish(edits.keys([replacement]), "keys", "targets-1", "targets-2", "os-2", "os-3")
    publish(edits.release(made.directory), "release", "os-2", by_token=True)
    device = TufDevice(tmp_path / "device", repository=world.repo, root=world.trusted_root)
    assert device.fetch(made.path)


def test_a_wrong_pin_is_refused_and_nothing_is_signed(token: Token, tmp_path: Path) -> None:
    world = TestRepository(tmp_path / "world")
    public = tmp_path / "t.pub.pem"
    assert token.tool("key", "public", "--out", public).returncode == 0
    change = edits.keys([edits.Replacement(role="root", old="root-1", new=public)])
    folder = tmp_path / "request"
    stage(world.store, folder, change, calendar=Calendar(clock=SystemClock()))
    (tmp_path / "pin").write_text("999999")
    done = token.tool("sign", folder, "--yes", pin=tmp_path / "pin")
    assert (done.returncode, "[release-tool.keys]" in done.stderr) == (1, True), done.stderr
    assert signature_files(folder) == []


def test_an_absent_key_is_named(token: Token, tmp_path: Path) -> None:
    done = token.tool("key", "public", "--pkcs11-id", "9", "--out", tmp_path / "x.pub.pem")
    assert done.returncode == 1 and "key 9: could not find ECDSA key" in done.stderr
    assert not (tmp_path / "x.pub.pem").exists()


def test_a_signature_of_the_token_verifies_with_its_exported_key(token: Token, tmp_path: Path) -> None:
    """The exported half is all that the repository ever learns of the token."""
    assert token.tool("key", "public", "--out", tmp_path / "t.pub.pem").returncode == 0
    (tmp_path / "data").write_bytes(hashlib.sha256(b"data").digest())
    command = [
        "pkcs11-tool",
        "--module",
        str(MODULE),
        "--token-label",
        "desk",
        "--login",
        "--pin",
        PIN,
        "--sign",
    ]
    command += ["--mechanism", "ECDSA", "--id", "02", "--signature-format", "openssl"]
    command += ["--input-file", str(tmp_path / "data"), "--output-file", str(tmp_path / "sig")]
    subprocess.run(command, env=token.environment, check=True, capture_output=True)
    key = load_public(tmp_path / "t.pub.pem")
    key.verify_signature(Signature(key.keyid, (tmp_path / "sig").read_bytes().hex()), b"data")
