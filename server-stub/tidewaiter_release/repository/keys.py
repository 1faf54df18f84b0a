"""Signing keys as files: PKCS#8 PEM, one key per file, readable by their owner only.

Enough for tests, the demo and an offline machine; a token takes this module's place behind the same two functions.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, Key
from tidewaiter_core.durable import write_atomic

from tidewaiter_release.errors import KeyFileError, ThresholdError

_PEM_LIMIT_BYTES = 16_384


def generate(directory: Path, role: str, count: int, *, first: int = 1) -> list[Key]:
    """Make `count` Ed25519 keys for a role and keep them as `<role>-<number>.pem`, mode 0600; returns the public halves.

    Raises:
        KeyFileError: A file of that name exists: a key is never overwritten.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    public: list[Key] = []
    for number in range(first, first + count):
        path = key_path(directory, role, number)
        if path.exists():
            raise KeyFileError(f"{path}: exists; a signing key is never overwritten")
        signer = CryptoSigner.generate_ed25519()
        write_atomic(path, signer.private_bytes, mode=0o600)
        public.append(signer.public_key)
    return public


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
        signer = _load(path)
        if signer.public_key.keyid in keyids:
            found[signer.public_key.keyid] = signer
    if len(found) < threshold:
        raise ThresholdError(
            f"{directory}: {len(found)} of the {len(keyids)} keys of role {role} found, {threshold} are needed to sign; "
            "nothing was published"
        )
    return list(found.values())


def _load(path: Path) -> CryptoSigner:
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = file.read(_PEM_LIMIT_BYTES)
    except OSError as err:
        raise KeyFileError(f"{path}: cannot be read: {err}") from err
    if mode & 0o077:
        raise KeyFileError(f"{path}: mode {mode:04o} lets others read a signing key; expected 0600, not used")
    try:
        return CryptoSigner(load_pem_private_key(data, password=None))
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise KeyFileError(f"{path}: no unencrypted PKCS#8 signing key: {err}") from err
