"""Profiles and their linter, on what the CA issues and on what it must never issue."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tidewaiter_factory import der
from tidewaiter_factory.ca import (
    FactoryError,
    Identity,
    ProfileError,
    issue_device,
    make_authority,
    make_device,
    make_server,
)
from tidewaiter_factory.pki import Pki, make_pki
from tidewaiter_factory.profile import (
    FOREVER,
    IDEVID,
    LDEVID,
    LINE_CA,
    OPERATIONS_CA,
    PROFILES,
    SESSION,
    hw_type,
    lint,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return make_pki("Example Devices", NOW)


def rules(certificate: x509.Certificate, profile: str) -> set[str]:
    return {finding.rule for finding in lint(certificate, PROFILES[profile])}


def test_the_hardware_module_name_equals_the_vector_of_the_design() -> None:
    encoded = der.hardware_module_name(hw_type(1), "INJ-000123")
    assert encoded.hex() == "3018060a2b0601040181fd590101040a494e4a2d303030313233"


def test_openssl_reads_the_hardware_module_name_as_we_meant_it(tmp_path: Path) -> None:
    (tmp_path / "name.der").write_bytes(der.hardware_module_name(hw_type(300), "INJ-000123"))
    read = subprocess.run(
        ["openssl", "asn1parse", "-inform", "DER", "-in", str(tmp_path / "name.der")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OBJECT            :1.3.6.1.4.1.32473.1.300" in read.stdout
    assert "OCTET STRING      :INJ-000123" in read.stdout


def test_a_value_that_needs_a_long_length_is_refused() -> None:
    with pytest.raises(ValueError, match="short form"):
        der.hardware_module_name(hw_type(1), "A" * 128)


def test_every_authority_of_a_pki_is_as_its_profile_says(pki: Pki) -> None:
    assert rules(pki.factory_root.certificate, "factory-root") == set()
    assert rules(pki.line_ca.certificate, "line-ca") == set()
    assert rules(pki.operations_root.certificate, "operations-root") == set()
    assert rules(pki.operations_ca.certificate, "operations-ca") == set()
    assert rules(pki.server_root.certificate, "server-root") == set()


@pytest.mark.parametrize("profile", [IDEVID, SESSION, LDEVID], ids=lambda one: one.name)
def test_a_device_certificate_fits_its_own_profile_and_no_other(pki: Pki, profile: object) -> None:
    issuer = pki.operations_ca if profile is LDEVID else pki.line_ca
    certificate = make_device(profile, issuer, "INJ-000123", NOW).certificate  # type: ignore[arg-type]
    fits = {name for name in PROFILES if not rules(certificate, name)}
    assert fits == {profile.name}  # type: ignore[attr-defined]


def test_an_idevid_never_expires_and_an_ldevid_after_90_days(pki: Pki) -> None:
    assert make_device(IDEVID, pki.line_ca, "INJ-000123", NOW).certificate.not_valid_after_utc == FOREVER
    ldevid = make_device(LDEVID, pki.operations_ca, "INJ-000123", NOW).certificate
    assert ldevid.not_valid_after_utc == NOW + timedelta(days=90)
    assert ldevid.not_valid_before_utc == NOW - timedelta(days=1)


def test_two_devices_share_neither_key_nor_serial_number(pki: Pki) -> None:
    first, second = (make_device(LDEVID, pki.operations_ca, "INJ-000123", NOW) for _ in range(2))
    assert first.key.public_key() != second.key.public_key()
    assert first.certificate.serial_number != second.certificate.serial_number


@pytest.mark.parametrize("serial", ["", "ab", "inj-1", "INJ 1", "A" * 40, "-AB", "INJ/1"])
def test_a_serial_outside_the_rule_gets_no_certificate(pki: Pki, serial: str) -> None:
    with pytest.raises(FactoryError, match="no certificate issued"):
        make_device(LDEVID, pki.operations_ca, serial, NOW)


def test_a_key_of_another_curve_is_not_issued(pki: Pki) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ProfileError, match="key: expected secp256r1, found secp384r1"):
        issue_device(LDEVID, pki.operations_ca, "INJ-000123", key.public_key(), NOW)


def test_a_server_certificate_needs_a_name(pki: Pki) -> None:
    with pytest.raises(FactoryError, match="at least one"):
        make_server(pki.server_root, [], [], NOW)


def test_a_server_certificate_of_a_device_ca_is_refused_by_openssl(pki: Pki, tmp_path: Path) -> None:
    wrong = make_server(pki.operations_ca, ["server.example"], [ip_address("192.0.2.1")], NOW)
    assert verify(tmp_path, wrong, pki.operations_root, "sslserver") != 0


def test_openssl_accepts_the_chains_under_strict_rules(pki: Pki, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    present = make_pki("Example Devices", now)
    ldevid = make_device(LDEVID, present.operations_ca, "INJ-000123", now)
    idevid = make_device(IDEVID, present.line_ca, "INJ-000123", now)
    server = make_server(present.server_root, ["localhost"], [], now)
    assert verify(tmp_path, ldevid, present.operations_root, "sslclient") == 0
    assert verify(tmp_path, idevid, present.factory_root, "sslclient") == 0
    assert verify(tmp_path, server, present.server_root, "sslserver") == 0
    assert verify(tmp_path, ldevid, present.factory_root, "sslclient") != 0


def verify(folder: Path, identity: Identity, root: Identity, purpose: str) -> int:
    (folder / "leaf.pem").write_bytes(identity.chain_pem())
    (folder / "root.pem").write_bytes(root.certificate_pem())
    return subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(folder / "root.pem"),
         "-untrusted", str(folder / "leaf.pem"), str(folder / "leaf.pem")],
        capture_output=True,
    ).returncode  # fmt: skip


def rebuilt(
    identity: Identity, issuer: Identity, *, without: type | None = None, **changes: object
) -> x509.Certificate:
    """The same certificate with one thing changed, as a broken CA would make it."""
    certificate = identity.certificate
    builder = (
        x509.CertificateBuilder()
        .subject_name(changes.get("subject", certificate.subject))  # type: ignore[arg-type]
        .issuer_name(certificate.issuer)
        .public_key(identity.key.public_key())
        .serial_number(changes.get("serial_number", certificate.serial_number))  # type: ignore[arg-type]
        .not_valid_before(certificate.not_valid_before_utc)
        .not_valid_after(changes.get("not_after", certificate.not_valid_after_utc))  # type: ignore[arg-type]
    )
    extra = changes.get("extra")
    for extension in certificate.extensions:
        value = extension.value
        if without is not None and isinstance(value, without):
            continue
        if isinstance(extra, type(value)):
            value, extra = extra, None
        critical = extension.critical and changes.get("critical", True) is True
        builder = builder.add_extension(value, critical=critical)
    if isinstance(extra, x509.ExtensionType):
        builder = builder.add_extension(extra, critical=False)
    return builder.sign(issuer.key, changes.get("hash", hashes.SHA384()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"without": x509.KeyUsage}, "keyUsage"),
        ({"without": x509.BasicConstraints}, "basicConstraints"),
        ({"without": x509.ExtendedKeyUsage}, "extKeyUsage"),
        ({"without": x509.SubjectAlternativeName}, "subjectAltName"),
        ({"without": x509.AuthorityKeyIdentifier}, "authorityKeyIdentifier"),
        ({"extra": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])}, "extKeyUsage"),
        ({"extra": x509.BasicConstraints(ca=True, path_length=0)}, "basicConstraints"),
        ({"extra": x509.SubjectAlternativeName([x509.DNSName("a.example")])}, "subjectAltName URI"),
        ({"extra": x509.OCSPNoCheck()}, "extension"),
        ({"critical": False}, "keyUsage"),
        ({"not_after": NOW + timedelta(days=400)}, "validity"),
        ({"serial_number": 17}, "serial number"),
        ({"hash": hashes.SHA256()}, "signature"),
        ({"subject": x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "INJ-000123")])}, "subject"),
    ],
)
def test_each_deviation_of_an_ldevid_is_found(pki: Pki, changes: dict[str, object], rule: str) -> None:
    good = make_device(LDEVID, pki.operations_ca, "INJ-000123", NOW)
    assert rule in rules(rebuilt(good, pki.operations_ca, **changes), "ldevid")  # type: ignore[arg-type]


def test_a_san_of_another_serial_is_found(pki: Pki) -> None:
    good = make_device(IDEVID, pki.line_ca, "INJ-000123", NOW)
    other = make_device(IDEVID, pki.line_ca, "INJ-000124", NOW)
    names = other.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = rules(rebuilt(good, pki.line_ca, extra=names), "idevid")
    assert {"subjectAltName URI", "hardwareModuleName"} <= found


def test_an_expired_authority_issues_nothing(pki: Pki) -> None:
    with pytest.raises(FactoryError, match="expired on 2028"):
        make_device(LDEVID, pki.operations_ca, "INJ-000123", NOW + timedelta(days=800))


def test_a_line_ca_without_its_constraints_is_found(pki: Pki) -> None:
    bare = replace(LINE_CA, excludes_hosts=False)
    certificate = make_authority(bare, pki.factory_root, "bare", NOW, line="x").certificate
    assert rules(certificate, "line-ca") == {"nameConstraints"}
    assert "subject" in rules(certificate, OPERATIONS_CA.name)
