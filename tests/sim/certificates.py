"""A small real PKI for tests: authorities that issue server and device certificates, good ones and
deliberately bad ones.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Leaf:
    """A certificate and its key as files."""

    certificate_file: Path
    key_file: Path


class Authority:
    """A certificate authority with one self-signed root."""

    def __init__(self, directory: Path, name: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._root()
        self.ca_file = directory / f"{name}.pem"
        self.ca_file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def _root(self) -> x509.Certificate:
        now = datetime.now(UTC)
        public = self._key.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3650))
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def server(
        self, *, start_days: float = -1, end_days: float = 30, names: tuple[str, ...] = ("localhost",)
    ) -> Leaf:
        """A server certificate for 127.0.0.1 and `names`."""
        alternative: list[x509.GeneralName] = (
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))] if names else []
        )
        alternative += [x509.DNSName(name) for name in names or ("elsewhere.example",)]
        return self._issue("server", alternative, ExtendedKeyUsageOID.SERVER_AUTH, start_days, end_days)

    def device(
        self, serial: str, *, start_days: float = -1, end_days: float = 30, directory: Path | None = None
    ) -> Leaf:
        """A device certificate; with `directory`, in the file layout of the agent's key store."""
        leaf = self._issue(
            serial,
            [x509.UniformResourceIdentifier(f"urn:tidewaiter:device:default:{serial}")],
            ExtendedKeyUsageOID.CLIENT_AUTH,
            start_days,
            end_days,
        )
        if directory is None:
            return leaf
        directory.mkdir(parents=True, exist_ok=True)
        placed = Leaf(directory / "cert.pem", directory / "key.pem")
        placed.certificate_file.write_bytes(leaf.certificate_file.read_bytes())
        placed.key_file.write_bytes(leaf.key_file.read_bytes())
        placed.key_file.chmod(0o600)
        return placed

    def _issue(
        self,
        name: str,
        alternative: list[x509.GeneralName],
        usage: x509.ObjectIdentifier,
        start_days: float,
        end_days: float,
    ) -> Leaf:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        serial = x509.random_serial_number()
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now + timedelta(days=start_days))
            .not_valid_after(now + timedelta(days=end_days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        leaf = Leaf(
            self._directory / f"{name}-{serial % 10**8}.pem", self._directory / f"{name}-{serial % 10**8}.key"
        )
        leaf.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        leaf.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        leaf.key_file.chmod(0o600)
        return leaf


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
