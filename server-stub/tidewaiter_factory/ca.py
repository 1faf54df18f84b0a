"""Builds and issues certificates: every extension comes from the profile, only the public key from the requester.

Keys here are files of a test PKI (0600). The line's HSM, its issuance log and the work order belong to the station,
which is a later stage; the profiles and the linter are the same for both.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID, ObjectIdentifier
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_factory import der
from tidewaiter_factory.profile import (
    FOREVER,
    HARDWARE_MODULE_NAME,
    IDEVID,
    LDEVID,
    SERIAL_RULE,
    SERVER,
    SESSION,
    Profile,
    San,
    device_uri,
    excluded_hosts,
    hw_type,
    lint,
)

BACKDATED = timedelta(hours=24)
"""notBefore lies a day back so that a device whose clock runs late can use a fresh certificate."""


class FactoryError(TidewaiterError):
    """The factory did not issue or did not write what was asked."""

    code: ClassVar[str] = "factory.refused"


class ProfileError(FactoryError):
    """A finished certificate deviates from its profile; it was not issued."""

    code: ClassVar[str] = "factory.profile"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate, the chain that leads to (not including) its root, and the private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    def chain_pem(self) -> bytes:
        """The certificate first, then its issuers, as TLS sends them."""
        return b"".join(_pem(certificate) for certificate in (self.certificate, *self.chain))

    def certificate_pem(self) -> bytes:
        return _pem(self.certificate)

    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def spki_sha256(certificate: x509.Certificate) -> str:
    """How the server knows a key: SHA-256 of the SubjectPublicKeyInfo."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(
        certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return digest.finalize().hex()


def make_root(profile: Profile, organization: str, name: str, now: datetime) -> Identity:
    """A new self-signed root of `profile`."""
    key = ec.generate_private_key(profile.curve())
    subject = _subject(profile, organization, {NameOID.COMMON_NAME: name})
    return Identity(_issue(profile, subject, key.public_key(), None, key, now, ()), key)


def make_authority(
    profile: Profile, issuer: Identity, name: str, now: datetime, *, line: str | None = None
) -> Identity:
    """A new issuing CA below `issuer`; `line` is the line id of a line CA."""
    key = ec.generate_private_key(profile.curve())
    extra = {NameOID.COMMON_NAME: name}
    if line is not None:
        extra[NameOID.ORGANIZATIONAL_UNIT_NAME] = line
    subject = _subject(profile, _organization(issuer), extra)
    certificate = _issue(profile, subject, key.public_key(), issuer, issuer.key, now, ())
    return Identity(certificate, key, _chain_below_root(issuer))


def issue_device(
    profile: Profile,
    issuer: Identity,
    serial: str,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime,
    *,
    model: int = 1,
    days: int = 90,
) -> x509.Certificate:
    """An IDevID, session or LDevID certificate of the device `serial` for its own public key."""
    if not SERIAL_RULE.fullmatch(serial):
        raise FactoryError(
            f"serial {serial!r}: expected {SERIAL_RULE.pattern}; no certificate issued", code="factory.serial"
        )
    common = f"{serial} session" if profile is SESSION else serial
    subject = _subject(
        profile, _organization(issuer), {NameOID.SERIAL_NUMBER: serial, NameOID.COMMON_NAME: common}
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(device_uri(serial))]
    if profile.san is San.MODULE_AND_URI:
        value = der.hardware_module_name(hw_type(model), serial)
        names.insert(0, x509.OtherName(HARDWARE_MODULE_NAME, value))
    lasts = timedelta(days=days) if profile is LDEVID else None
    return _issue(profile, subject, public_key, issuer, issuer.key, now, names, lasts=lasts)


def make_device(
    profile: Profile, issuer: Identity, serial: str, now: datetime, *, model: int = 1, days: int = 90
) -> Identity:
    """A device identity with its key, for benches and tests only: a real device makes its own key."""
    if profile not in (IDEVID, SESSION, LDEVID):
        raise FactoryError(f"profile {profile.name}: not one of a device; nothing issued")
    key = ec.generate_private_key(profile.curve())
    certificate = issue_device(profile, issuer, serial, key.public_key(), now, model=model, days=days)
    return Identity(certificate, key, _chain_below_root(issuer))


def make_server(
    issuer: Identity,
    dns: Sequence[str],
    ip: Sequence[IPv4Address | IPv6Address],
    now: datetime,
    *,
    days: int = 397,
) -> Identity:
    """A TLS server certificate; the first name becomes the common name."""
    names: list[x509.GeneralName] = [
        *(x509.DNSName(name) for name in dns),
        *(x509.IPAddress(one) for one in ip),
    ]
    if not names:
        raise FactoryError(
            "server certificate: expected at least one --dns or --ip, got none; nothing issued"
        )
    key = ec.generate_private_key(SERVER.curve())
    common = [*dns, *(str(one) for one in ip)][0]
    subject = _subject(SERVER, _organization(issuer), {NameOID.COMMON_NAME: common})
    certificate = _issue(
        SERVER, subject, key.public_key(), issuer, issuer.key, now, names, lasts=timedelta(days=days)
    )
    return Identity(certificate, key, _chain_below_root(issuer))


def write_identity(identity: Identity, certificate: Path, key: Path) -> None:
    """Both files, the key 0600 from its first byte on; an existing file is never replaced."""
    for path in (key, certificate):
        if path.exists():
            raise _exists(path)
    for path, content, mode in ((key, identity.key_pem(), 0o600), (certificate, identity.chain_pem(), 0o644)):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError as error:
            raise _exists(path) from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)


def _exists(path: Path) -> FactoryError:
    return FactoryError(
        f"{path}: exists already; an identity is never overwritten, nothing was written",
        code="factory.exists",
    )


def read_identity(certificate: Path, key: Path) -> Identity:
    """What `write_identity` wrote."""
    try:
        chain = x509.load_pem_x509_certificates(certificate.read_bytes())
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise FactoryError(
            f"{certificate}, {key}: expected PEM files of a certificate and its key, found {error}; nothing issued",
            code="factory.unreadable",
        ) from error
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise FactoryError(f"{key}: expected an elliptic curve key, found {type(private).__name__}")
    return Identity(chain[0], private, tuple(chain[1:]))


def _issue(
    profile: Profile,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: Identity | None,
    signing_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    names: Sequence[x509.GeneralName],
    *,
    lasts: timedelta | None = None,
) -> x509.Certificate:
    not_before = (now - BACKDATED).replace(microsecond=0)
    not_after = _not_after(profile, issuer, now, lasts, not_before)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(profile.is_authority, profile.path_length), critical=True)
        .add_extension(_key_usage(authority=profile.is_authority), critical=True)
    )
    if profile.extended_usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(profile.extended_usages), critical=False)
    if profile.excludes_hosts:
        builder = builder.add_extension(excluded_hosts(), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if profile.is_authority:
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    if issuer is not None:
        key_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
        builder = builder.add_extension(key_id, critical=False)
    certificate = builder.sign(signing_key, hashes.SHA384())
    if findings := lint(certificate, profile):
        raise ProfileError(
            f"certificate for {subject.rfc4514_string()}: not as profile {profile.name} says "
            f"({'; '.join(map(str, findings))}); not issued"
        )
    return certificate


def _not_after(
    profile: Profile, issuer: Identity | None, now: datetime, lasts: timedelta | None, not_before: datetime
) -> datetime:
    """The shortest of what was asked, what the profile allows and, for authorities, what the issuer still has."""
    if issuer is not None and issuer.certificate.not_valid_after_utc <= now:
        ended = issuer.certificate.not_valid_after_utc.date()
        raise FactoryError(
            f"{issuer.certificate.subject.rfc4514_string()}: expired on {ended}; no certificate issued",
            code="factory.issuer-expired",
        )
    if profile.validity is None:
        return FOREVER
    end = not_before + profile.validity
    if lasts is not None:
        end = min(end, (now + lasts).replace(microsecond=0))
    return min(end, issuer.certificate.not_valid_after_utc) if issuer else end


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _subject(profile: Profile, organization: str, values: dict[ObjectIdentifier, str]) -> x509.Name:
    values = {NameOID.ORGANIZATION_NAME: organization, **values}
    return x509.Name([x509.NameAttribute(oid, values[oid]) for oid in profile.subject])


def _organization(issuer: Identity) -> str:
    return str(issuer.certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)


def _chain_below_root(issuer: Identity) -> tuple[x509.Certificate, ...]:
    """The issuer and what is above it, without the root: the peer has that as its anchor."""
    is_root = issuer.certificate.issuer == issuer.certificate.subject
    return () if is_root else (issuer.certificate, *issuer.chain)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
