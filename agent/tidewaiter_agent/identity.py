"""Who this device is: provisioning file, private key and certificate chain. The only place that reads
certificates.
"""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from tidewaiter_core.clock import format_utc
from tidewaiter_core.durable import load_document
from tidewaiter_core.model import Sha256

from tidewaiter_agent.errors import IdentityError

_DEVICE_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The certificate this device shows to the server."""

    device_id: str
    certificate_file: Path
    key_file: Path
    subject: str
    issuer: str
    not_before_utc: datetime
    not_after_utc: datetime

    @property
    def summary(self) -> str:
        """One line for error texts."""
        dates = f"{format_utc(self.not_before_utc)} to {format_utc(self.not_after_utc)}"
        return f"{self.subject}, issued by {self.issuer}, valid {dates}"

    def finding(self, now_utc: datetime) -> str | None:
        """What is wrong with the certificate's dates, or None. Informational: the server decides, with a
        clock that is right.
        """
        if now_utc > self.not_after_utc:
            expired = format_utc(self.not_after_utc)
            return f"device certificate expired on {expired}; the server will refuse it; renew it"
        if now_utc < self.not_before_utc:
            start = format_utc(self.not_before_utc)
            return f"device certificate is valid from {start}, the clock says {format_utc(now_utc)}"
        return None

    def load_into(self, context: ssl.SSLContext) -> None:
        """Give key and chain to a TLS context."""
        try:
            context.load_cert_chain(
                str(self.certificate_file), str(self.key_file), password=_refuse_passphrase
            )
        except (OSError, ValueError) as err:
            raise IdentityError(
                f"{self.key_file}: expected the private key of {self.certificate_file} ({err}); the agent "
                "does not start"
            ) from err


def _refuse_passphrase() -> str:
    # Without a callback OpenSSL would ask on the terminal and block a daemon for ever.
    raise ValueError("the key is encrypted; a device key has no passphrase")


def device_serial(provisioned_file: Path) -> tuple[str, dict[str, Any]]:
    """The device id (its serial number) and the whole provisioning document."""
    document = load_document(provisioned_file, schema=1)
    if document is None:
        raise IdentityError(
            f"{provisioned_file}: missing; expected the provisioning document of the factory; an "
            "unprovisioned device polls no server"
        )
    serial = document.get("serial")
    if not isinstance(serial, str) or not 1 <= len(serial) <= 64 or not set(serial) <= _DEVICE_ID_CHARACTERS:
        raise IdentityError(
            f"{provisioned_file}: serial is {serial!r}; expected 1 to 64 letters, digits, '-', '_' or '.'; "
            "the agent does not start"
        )
    return serial, document


def load(directory: Path, *, device_id: str) -> Identity:
    """Read `directory`/cert.pem and check that it names this device and that the key is private.

    Raises:
        IdentityError: Missing, unreadable, for another device, or a key that others may read.
    """
    certificate_file, key_file = directory / "cert.pem", directory / "key.pem"
    try:
        certificates = x509.load_pem_x509_certificates(certificate_file.read_bytes())
        mode = stat.S_IMODE(key_file.stat().st_mode)
    except (OSError, ValueError) as err:
        raise IdentityError(
            f"{directory}: expected cert.pem (PEM chain) and key.pem ({err}); without them no server "
            "accepts this device"
        ) from err
    if mode & 0o077:
        raise IdentityError(
            f"{key_file}: mode {mode:04o} lets others read the device key; expected 0600; the agent does "
            "not start"
        )
    leaf = certificates[0]
    if device_id not in _names(leaf):
        raise IdentityError(
            f"{certificate_file}: is for {leaf.subject.rfc4514_string()}; expected device {device_id}; the "
            "agent does not start"
        )
    return Identity(
        device_id=device_id,
        certificate_file=certificate_file,
        key_file=key_file,
        subject=leaf.subject.rfc4514_string(),
        issuer=leaf.issuer.rfc4514_string(),
        not_before_utc=leaf.not_valid_before_utc,
        not_after_utc=leaf.not_valid_after_utc,
    )


def _names(certificate: x509.Certificate) -> set[str]:
    """Every spelling of the device id that a factory may have put in: CN, serialNumber, URN or DNS names."""
    subject = certificate.subject
    names = {
        str(attribute.value)
        for oid in (NameOID.COMMON_NAME, NameOID.SERIAL_NUMBER)
        for attribute in subject.get_attributes_for_oid(oid)
    }
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return names
    names.update(alternative.get_values_for_type(x509.DNSName))
    names.update(
        uri.rpartition(":")[2] for uri in alternative.get_values_for_type(x509.UniformResourceIdentifier)
    )
    return names


def spki_sha256(ca_file: Path) -> list[str]:
    """Hashes of the public keys in a CA file, for the sheet of the hospital's IT."""
    try:
        certificates = x509.load_pem_x509_certificates(ca_file.read_bytes())
    except (OSError, ValueError) as err:
        raise IdentityError(f"{ca_file}: expected PEM certificates ({err})") from err
    encoded = (
        certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for certificate in certificates
    )
    return [Sha256.of(spki) for spki in encoded]


def describe_issuer(der: bytes) -> str:
    """The issuer of a certificate we do not trust, as short printable text."""
    try:
        text = x509.load_der_x509_certificate(der).issuer.rfc4514_string()
    except ValueError:
        return "an unreadable issuer"
    return "'" + "".join(c if c.isprintable() else "?" for c in text)[:120] + "'"
