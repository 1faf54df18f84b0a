"""Signing keys as files: PKCS#8 PEM, one key per file, readable by their owner only; and what is known of a public key.

A key may be encrypted with a passphrase. A key on a PKCS#11 token is used through `token.py`, behind the same `Signer`.
Each public key carries the name its owner knows it by: it is signed with the role that lists it, so a person can be told who
has to sign instead of being shown 64 digits.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from securesystemslib.signer import Signer as Signer
from tidewaiter_core.durable import write_atomic

from tidewaiter_release.errors import KeyFileError, ThresholdError

_PEM_LIMIT_BYTES = 16_384
_NAME_FIELD = "x-tidewaiter-name"
PUBLIC_SUFFIX = ".pub.pem"
KEY_SCHEMES = frozenset({"ed25519", "ecdsa-sha2-nistp256"})
"""What a device checks: Ed25519, and P-256 where a token cannot do it."""

Passphrase = Callable[[Path], bytes]
"""Asks for the passphrase of an encrypted key file."""


def no_passphrase(path: Path) -> bytes:
    """For commands that run unattended."""
    raise KeyFileError(f"{path}: is encrypted, and this command asks for no passphrase; not used")


def generate(directory: Path, role: str, count: int, *, first: int = 1) -> list[Key]:
    """Make `count` Ed25519 keys for a role and keep them as `<role>-<number>.pem`, mode 0600; returns the public halves.

    Raises:
        KeyFileError: A file of that name exists: a key is never overwritten.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return [make_key(key_path(directory, role, number)) for number in range(first, first + count)]


def make_key(path: Path, *, passphrase: bytes | None = None) -> Key:
    """Make one Ed25519 key file; returns the public half, named after the file.

    Raises:
        KeyFileError: The file exists: a key is never overwritten.
    """
    if path.exists():
        raise KeyFileError(f"{path}: exists; a signing key is never overwritten")
    signer = CryptoSigner.generate_ed25519()
    data = signer.private_bytes
    if passphrase is not None:
        private = load_pem_private_key(data, password=None)
        data = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    write_atomic(path, data, mode=0o600)
    return named(signer.public_key, path.name.removesuffix(".pem"))


def key_path(directory: Path, role: str, number: int) -> Path:
    """Where a key lies."""
    return directory / f"{role}-{number}.pem"


def signers(directory: Path, role: str, *, keyids: Collection[str], threshold: int) -> list[CryptoSigner]:
    """Every key of the role at hand, at least `threshold` of those that the repository names.

    Raises:
        KeyFileError: A key file is readable by others, or no key.
        ThresholdError: Too few.
    """
    found: dict[str, CryptoSigner] = {}
    for path in sorted(directory.glob(f"{role}-[0-9]*.pem")):
        if path.name.endswith(PUBLIC_SUFFIX):
            continue
        signer = load_signer(path)
        if signer.public_key.keyid in keyids:
            found[signer.public_key.keyid] = signer
    if len(found) < threshold:
        raise ThresholdError(
            f"{directory}: {len(found)} of the {len(keyids)} keys of role {role} found, {threshold} are needed to sign; "
            "nothing was published"
        )
    return list(found.values())


def load_signer(path: Path, *, passphrase: Passphrase = no_passphrase) -> CryptoSigner:
    """The key of a file.

    Raises:
        KeyFileError: It is missing, readable by others, no key, or the passphrase is wrong.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_PEM_LIMIT_BYTES)
    except OSError as err:
        raise KeyFileError(f"{path}: cannot be read: {err}") from err
    if mode & 0o077:
        raise KeyFileError(f"{path}: mode {mode:04o} lets others read a signing key; expected 0600, not used")
    try:
        return CryptoSigner(_private_key(path, data, passphrase))
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise KeyFileError(f"{path}: no PKCS#8 signing key, or not its passphrase: {err}") from err


def _private_key(path: Path, data: bytes, passphrase: Passphrase) -> PrivateKeyTypes:
    encrypted = b"ENCRYPTED" in data
    return load_pem_private_key(data, password=passphrase(path) if encrypted else None)


def write_public(key: Key, path: Path) -> None:
    """Write the public half as PEM, for whoever lists it in a role.

    Raises:
        KeyFileError: Another file is there, or it cannot be written.
    """
    if path.exists():
        raise KeyFileError(f"{path}: exists; a key file is never overwritten")
    value = str(key.keyval["public"])
    if key.keytype == "ed25519":
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(value))
        value = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    write_atomic(path, value.encode(), mode=0o644)


def load_public(path: Path) -> Key:
    """A public key file, named after the file.

    Raises:
        KeyFileError: It is none, or of a kind that no device checks.
    """
    try:
        with path.open("rb") as file:
            key = SSlibKey.from_crypto(load_pem_public_key(file.read(_PEM_LIMIT_BYTES)))
    except (OSError, ValueError, TypeError, SecureSystemsError, UnsupportedAlgorithm) as err:
        raise KeyFileError(f"{path}: no public key in PEM form: {err}") from err
    if key.scheme not in KEY_SCHEMES:
        raise KeyFileError(
            f"{path}: key of scheme {key.scheme}, expected one of {', '.join(sorted(KEY_SCHEMES))}"
        )
    return named(key, path.name.removesuffix(".pem").removesuffix(".pub"))


def named(key: Key, name: str) -> Key:
    """The key under the name its owner knows it by."""
    key.unrecognized_fields[_NAME_FIELD] = name[:64]
    return key


def name_of(key: Key) -> str:
    """What to call a key before people."""
    name = key.unrecognized_fields.get(_NAME_FIELD)
    return f"{name} ({key.keyid[:8]})" if isinstance(name, str) and name else key.keyid[:16]
