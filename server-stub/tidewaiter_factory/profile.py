"""The certificate profiles of the three trees, and the linter that runs on everything before it leaves a CA.

A profile is data: `ca.py` builds every extension from it and `lint` checks the finished certificate against the
same data, reading it back from the DER. A finding means: not issued. Source: provisioning design, section 3.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import ip_network
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

PEN: Final = 32473
"""Private enterprise number of the examples (RFC 5612); a product sets its own."""
SERIAL_RULE: Final = re.compile(r"[A-Z0-9][A-Z0-9-]{2,30}")
HARDWARE_MODULE_NAME: Final = ObjectIdentifier("1.3.6.1.5.5.7.8.4")
FOREVER: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""802.1AR: a device identity has no well-defined expiry."""
YEAR: Final = timedelta(days=365)
SERIAL_NUMBER_BITS: Final = 159


class San(StrEnum):
    """What the subjectAltName of a profile must hold, and nothing else."""

    NONE = "none"
    URI = "urn"
    MODULE_AND_URI = "hardwareModuleName and urn"
    HOST = "dns and ip"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a certificate of one kind looks like, completely."""

    name: str
    curve: type[ec.EllipticCurve]
    signature_hash: str
    validity: timedelta | None
    """Longest notBefore..notAfter; None means notAfter 9999-12-31."""
    path_length: int | None = None
    """None: an end entity."""
    extended_usages: tuple[ObjectIdentifier, ...] = ()
    excludes_hosts: bool = False
    """A critical name constraint that excludes every DNS name and address."""
    san: San = San.NONE
    is_root: bool = False
    subject: tuple[ObjectIdentifier, ...] = (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)

    @property
    def is_authority(self) -> bool:
        return self.path_length is not None


@dataclass(frozen=True, slots=True)
class Finding:
    """One deviation of a certificate from its profile."""

    rule: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.rule}: expected {self.expected}, found {self.found}"


_USAGES: Final = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)
_CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
_LEAF_SUBJECT = (NameOID.ORGANIZATION_NAME, NameOID.SERIAL_NUMBER, NameOID.COMMON_NAME)
_LINE_SUBJECT = (NameOID.ORGANIZATION_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME, NameOID.COMMON_NAME)


def _root(name: str, path_length: int) -> Profile:
    return Profile(
        name=name,
        curve=ec.SECP384R1,
        signature_hash="sha384",
        validity=25 * YEAR + timedelta(days=7),
        path_length=path_length,
        is_root=True,
    )


FACTORY_ROOT = _root("factory-root", 1)
OPERATIONS_ROOT = _root("operations-root", 1)
SERVER_ROOT = _root("server-root", 0)
LINE_CA = Profile(
    name="line-ca",
    curve=ec.SECP384R1,
    signature_hash="sha384",
    validity=2 * YEAR,
    path_length=0,
    extended_usages=_CLIENT,
    excludes_hosts=True,
    subject=_LINE_SUBJECT,
)
OPERATIONS_CA = Profile(
    name="operations-ca",
    curve=ec.SECP384R1,
    signature_hash="sha384",
    validity=2 * YEAR,
    path_length=0,
    extended_usages=_CLIENT,
    excludes_hosts=True,
)
IDEVID = Profile(
    name="idevid",
    curve=ec.SECP256R1,
    signature_hash="sha384",
    validity=None,
    extended_usages=_CLIENT,
    san=San.MODULE_AND_URI,
    subject=_LEAF_SUBJECT,
)
SESSION = Profile(
    name="session",
    curve=ec.SECP256R1,
    signature_hash="sha384",
    validity=None,
    extended_usages=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    san=San.URI,
    subject=_LEAF_SUBJECT,
)
LDEVID = Profile(
    name="ldevid",
    curve=ec.SECP256R1,
    signature_hash="sha384",
    validity=timedelta(days=91),  # 90 days of use and notBefore one day back
    extended_usages=_CLIENT,
    san=San.URI,
    subject=_LEAF_SUBJECT,
)
SERVER = Profile(
    name="server",
    curve=ec.SECP256R1,
    signature_hash="sha384",
    validity=timedelta(days=398),
    extended_usages=(ExtendedKeyUsageOID.SERVER_AUTH,),
    san=San.HOST,
)

PROFILES: Final = {
    profile.name: profile
    for profile in (
        FACTORY_ROOT,
        LINE_CA,
        IDEVID,
        SESSION,
        OPERATIONS_ROOT,
        OPERATIONS_CA,
        LDEVID,
        SERVER_ROOT,
        SERVER,
    )
}


def device_uri(serial: str) -> str:
    """The name of a device for tools that cannot read an otherName."""
    return f"urn:dev:ops:{PEN}-{serial}"


def hw_type(model: int) -> str:
    """The hwType object identifier of a model number under the manufacturer's PEN."""
    return f"1.3.6.1.4.1.{PEN}.1.{model}"


def lint(cert: x509.Certificate, profile: Profile) -> list[Finding]:
    """Every way in which `cert` is not what `profile` says; an empty list means: may be issued."""
    return [
        *_lint_key(cert, profile),
        *_lint_validity(cert, profile),
        *_lint_subject(cert, profile),
        *_lint_usage(cert, profile),
        *_lint_constraints(cert, profile),
        *_lint_san(cert, profile),
        *_lint_key_ids(cert, profile),
        *_lint_unknown(cert, profile),
    ]


def _extension(cert: x509.Certificate, oid: ObjectIdentifier) -> x509.Extension[x509.ExtensionType] | None:
    return next((extension for extension in cert.extensions if extension.oid == oid), None)


def _lint_key(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    key = cert.public_key()
    found = key.curve.name if isinstance(key, ec.EllipticCurvePublicKey) else type(key).__name__
    wanted = profile.curve().name
    if found != wanted:
        yield Finding("key", wanted, found)
    signed = cert.signature_hash_algorithm.name if cert.signature_hash_algorithm else "none"
    if signed != profile.signature_hash:
        yield Finding("signature", profile.signature_hash, signed)
    if cert.serial_number.bit_length() > SERIAL_NUMBER_BITS or cert.serial_number.bit_length() < 64:
        yield Finding("serial number", "159 random bits", f"{cert.serial_number.bit_length()} bits")


def _lint_validity(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    if profile.validity is None:
        if cert.not_valid_after_utc != FOREVER:
            yield Finding("notAfter", FOREVER.isoformat(), cert.not_valid_after_utc.isoformat())
        return
    length = cert.not_valid_after_utc - cert.not_valid_before_utc
    if length > profile.validity or length <= timedelta(0):
        yield Finding("validity", f"at most {profile.validity.days} days", str(length))


def _lint_subject(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    found = tuple(attribute.oid for attribute in cert.subject)
    if found != profile.subject:
        yield Finding("subject", _names(profile.subject), _names(found) or "empty")
    if NameOID.SERIAL_NUMBER not in profile.subject or NameOID.SERIAL_NUMBER not in found:
        return
    serial = _text(cert.subject, NameOID.SERIAL_NUMBER)
    common = _text(cert.subject, NameOID.COMMON_NAME)
    expected = f"{serial} session" if profile is SESSION else serial
    if not SERIAL_RULE.fullmatch(serial):
        yield Finding("subject serialNumber", SERIAL_RULE.pattern, repr(serial))
    if common != expected:
        yield Finding("subject CN", repr(expected), repr(common))


def _lint_usage(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    wanted = {"key_cert_sign", "crl_sign"} if profile.is_authority else {"digital_signature"}
    usage = _extension(cert, x509.KeyUsage.oid)
    if usage is None or not isinstance(usage.value, x509.KeyUsage):
        yield Finding("keyUsage", ", ".join(sorted(wanted)), "absent")
    else:
        found = {name for name in _USAGES if getattr(usage.value, name)}
        if found != wanted or not usage.critical:
            critical = "critical" if usage.critical else "not critical"
            yield Finding(
                "keyUsage", f"critical {', '.join(sorted(wanted))}", f"{critical} {', '.join(sorted(found))}"
            )
    extended = _extension(cert, x509.ExtendedKeyUsage.oid)
    purposes = (
        set(extended.value) if extended and isinstance(extended.value, x509.ExtendedKeyUsage) else set()
    )
    if purposes != set(profile.extended_usages):
        yield Finding(
            "extKeyUsage", _names(profile.extended_usages) or "absent", _names(purposes) or "absent"
        )


def _lint_constraints(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    basic = _extension(cert, x509.BasicConstraints.oid)
    wanted = x509.BasicConstraints(ca=profile.is_authority, path_length=profile.path_length)
    if basic is None or basic.value != wanted or not basic.critical:
        yield Finding("basicConstraints", f"critical {wanted}", str(basic.value) if basic else "absent")
    names = _extension(cert, x509.NameConstraints.oid)
    if not profile.excludes_hosts:
        if names is not None:
            yield Finding("nameConstraints", "absent", str(names.value))
        return
    if names is None or names.value != excluded_hosts() or not names.critical:
        yield Finding(
            "nameConstraints",
            "critical, all DNS names and addresses excluded",
            str(names.value) if names else "absent",
        )


def _lint_san(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    extension = _extension(cert, x509.SubjectAlternativeName.oid)
    if profile.san is San.NONE:
        if extension is not None:
            yield Finding("subjectAltName", "absent", str(extension.value))
        return
    if extension is None or not isinstance(extension.value, x509.SubjectAlternativeName):
        yield Finding("subjectAltName", profile.san, "absent")
        return
    names = list(extension.value)
    if profile.san is San.HOST:
        if not names or not all(isinstance(name, (x509.DNSName, x509.IPAddress)) for name in names):
            yield Finding("subjectAltName", profile.san, _kinds(names))
        return
    serial = _text(cert.subject, NameOID.SERIAL_NUMBER)
    uris = [name.value for name in names if isinstance(name, x509.UniformResourceIdentifier)]
    if uris != [device_uri(serial)]:
        yield Finding("subjectAltName URI", device_uri(serial), str(uris))
    modules = [name for name in names if isinstance(name, x509.OtherName)]
    expected = 1 if profile.san is San.MODULE_AND_URI else 0
    if len(modules) != expected or len(names) != expected + 1:
        yield Finding("subjectAltName", profile.san, _kinds(names))
    for module in modules:
        octets = bytes([0x04, len(serial)]) + serial.encode("ascii")
        if module.type_id != HARDWARE_MODULE_NAME or not module.value.endswith(octets):
            yield Finding("hardwareModuleName", f"serial {serial}", module.value.hex())


def _lint_key_ids(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    has_subject = _extension(cert, x509.SubjectKeyIdentifier.oid) is not None
    has_authority = _extension(cert, x509.AuthorityKeyIdentifier.oid) is not None
    if has_subject != profile.is_authority:
        yield Finding(
            "subjectKeyIdentifier", "present" if profile.is_authority else "absent", str(has_subject)
        )
    if has_authority == profile.is_root:
        yield Finding(
            "authorityKeyIdentifier", "absent" if profile.is_root else "present", str(has_authority)
        )


def _lint_unknown(cert: x509.Certificate, profile: Profile) -> Iterator[Finding]:
    known = {
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        x509.NameConstraints.oid,
        x509.SubjectAlternativeName.oid,
        x509.SubjectKeyIdentifier.oid,
        x509.AuthorityKeyIdentifier.oid,
    }
    for extension in cert.extensions:
        if extension.oid not in known:
            yield Finding("extension", f"only those of {profile.name}", extension.oid.dotted_string)


def excluded_hosts() -> x509.NameConstraints:
    """No DNS name and no address: what keeps a device CA from ever making a server certificate.

    Not by directoryName, which pyca's verifier rejects, and not by permitted URI, which fails for `urn:` in both.
    """
    return x509.NameConstraints(
        permitted_subtrees=None,
        excluded_subtrees=[
            x509.DNSName(""),
            x509.IPAddress(ip_network("0.0.0.0/0")),
            x509.IPAddress(ip_network("::/0")),
        ],
    )


def _text(name: x509.Name, oid: ObjectIdentifier) -> str:
    attributes = name.get_attributes_for_oid(oid)
    return str(attributes[0].value) if attributes else ""


def _names(oids: Iterable[ObjectIdentifier]) -> str:
    return ", ".join(sorted(oid._name for oid in oids))


def _kinds(names: list[x509.GeneralName]) -> str:
    return ", ".join(type(name).__name__ for name in names) or "empty"
