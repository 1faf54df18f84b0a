"""Keys that never leave a PKCS#11 token: ECDSA P-256, through securesystemslib.

The module of the token's maker is loaded into this process, so it is named by the person who signs, never by a request.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from securesystemslib.exceptions import UnsupportedLibraryError
from securesystemslib.signer import HSMSigner, Key, SecretsHandler, Signature, Signer

from tidewaiter_release.errors import KeyFileError
from tidewaiter_release.repository.keys import KEY_SCHEMES, named

_MODULE_VARIABLE = "PYKCS11LIB"
"""Where securesystemslib looks for the path of the module."""

Pin = Callable[[], str]


def token_signer(module: Path, *, key_id: int, label: str | None, pin: Pin) -> Signer:
    """A signer for one key of one token.

    Args:
        module: The PKCS#11 library of the token's maker.
        key_id: CKA_ID of the key pair as a number; 2 is the signature slot of a PIV card.
        label: Label of the token, needed when several are plugged in.

    Raises:
        KeyFileError: No such module, token or key, a wrong PIN, or python-pkcs11 is not installed.
    """
    if not module.is_file():
        raise KeyFileError(f"{module}: no PKCS#11 module; give the library of the token's maker")
    try:
        with _module(module):
            uri, key = HSMSigner.import_(key_id, label, lambda _: pin())
    except UnsupportedLibraryError as err:
        raise KeyFileError(f"{err}; install tidewaiter with its extra `pkcs11`") from err
    except Exception as err:  # python-pkcs11's errors can only be named where it is installed
        raise KeyFileError(f"{module}: key {key_id}: {_text(err)}; not used") from err
    if key.scheme not in KEY_SCHEMES:
        raise KeyFileError(f"{module}: key {key_id} is of scheme {key.scheme}, expected P-256; not used")
    named(key, label or f"token-{key_id}")
    return _TokenSigner(module, HSMSigner.from_priv_key_uri(uri, key, lambda _: pin()))


class _TokenSigner(Signer):
    """The library's signer with the module in place while it works, and its errors in our words."""

    def __init__(self, module: Path, signer: HSMSigner) -> None:
        self._module, self._signer = module, signer

    @property
    def public_key(self) -> Key:
        return self._signer.public_key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> Signer:
        raise NotImplementedError("made by token_signer")

    def sign(self, payload: bytes) -> Signature:
        try:
            with _module(self._module):
                return self._signer.sign(payload)
        except Exception as err:
            raise KeyFileError(f"{self._module}: the token refused to sign: {_text(err)}") from err


@contextlib.contextmanager
def _module(module: Path) -> Iterator[None]:
    before = os.environ.get(_MODULE_VARIABLE)
    os.environ[_MODULE_VARIABLE] = str(module)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_MODULE_VARIABLE]
        else:
            os.environ[_MODULE_VARIABLE] = before


def _text(err: Exception) -> str:
    return str(err) or type(err).__name__
