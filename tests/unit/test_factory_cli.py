"""`tidewaiter-factory`: what it writes, and what it refuses to overwrite."""

from __future__ import annotations

import json
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tidewaiter_factory.ca import FactoryError, write_identity
from tidewaiter_factory.cli import main
from tidewaiter_factory.pki import make_pki


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    assert main(["pki", "init", "--out", str(tmp_path / "pki")]) == 0
    return tmp_path / "pki"


def test_pki_init_keeps_keys_private(pki: Path) -> None:
    assert stat.S_IMODE((pki / "private").stat().st_mode) == 0o700
    modes = {stat.S_IMODE(key.stat().st_mode) for key in (pki / "private").iterdir()}
    assert modes == {0o600}
    assert (pki / "device-cas.pem").read_text().count("BEGIN CERTIFICATE") == 2


def test_pki_init_never_replaces_a_pki(pki: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (pki / "server-root.pem").read_bytes()
    assert main(["pki", "init", "--out", str(pki)]) == 1
    assert "holds a PKI already" in capsys.readouterr().err
    assert (pki / "server-root.pem").read_bytes() == before


def test_device_writes_identity_and_provisioned_document(pki: Path, tmp_path: Path) -> None:
    out = tmp_path / "device"
    assert main(["device", "--pki", str(pki), "--serial", "INJ-000123", "--out", str(out)]) == 0
    document = json.loads((out / "provisioned.json").read_text())
    assert document == {"schema": 1, "serial": "INJ-000123", "tenant": "default"}
    assert (out / "cert.pem").read_text().count("BEGIN CERTIFICATE") == 2
    assert stat.S_IMODE((out / "key.pem").stat().st_mode) == 0o600
    assert main(["lint", str(out / "cert.pem"), "--profile", "ldevid"]) == 0
    assert main(["lint", str(out / "cert.pem"), "--profile", "idevid"]) == 1


def test_an_identity_is_never_overwritten(
    pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["device", "--pki", str(pki), "--serial", "INJ-000123", "--out", str(tmp_path / "device")]
    assert main(command) == 0
    before = (tmp_path / "device" / "key.pem").read_bytes()
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "device" / "key.pem").read_bytes() == before


def test_server_cert_names_what_was_asked(pki: Path, tmp_path: Path) -> None:
    out = tmp_path / "tls"
    command = ["server-cert", "--pki", str(pki), "--dns", "localhost", "--ip", "127.0.0.1", "--out", str(out)]
    assert main(command) == 0
    assert main(["lint", str(out / "cert.pem"), "--profile", "server"]) == 0


def test_a_bad_serial_is_refused_with_a_sentence(
    pki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "device"
    assert main(["device", "--pki", str(pki), "--serial", "bad serial", "--out", str(out)]) == 1
    assert "no certificate issued" in capsys.readouterr().err
    assert not out.exists()


def test_a_missing_pki_is_refused_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = tmp_path / "nowhere"
    assert main(["device", "--pki", str(nowhere), "--serial", "INJ-1", "--out", str(tmp_path / "d")]) == 1
    assert str(nowhere) in capsys.readouterr().err


def test_a_refused_identity_leaves_no_key_behind(tmp_path: Path) -> None:
    identity = make_pki("Example", datetime(2026, 1, 1, tzinfo=UTC)).server_root
    (tmp_path / "cert.pem").write_text("of somebody else")
    with pytest.raises(FactoryError, match="nothing was written"):
        write_identity(identity, tmp_path / "cert.pem", tmp_path / "key.pem")
    assert not (tmp_path / "key.pem").exists()
