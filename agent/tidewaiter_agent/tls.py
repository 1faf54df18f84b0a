"""The one TLS context of the agent, the socket that enforces header limits, and the translation of TLS
failures.

Never `create_default_context()`: it would trust the public certificate authorities. `VERIFY_X509_STRICT` is
set by hand because a bare
context lacks it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from tidewaiter_core.clock import Deadline

from tidewaiter_agent.errors import AuthError, NetError
from tidewaiter_agent.identity import Identity, describe_issuer

HEADER_ALLOWANCE_BYTES = 16 * 1024 + 8192
"""16 KiB of headers, plus the one buffer of body bytes that http.client may read together with them."""


class HeaderLimitError(OSError):
    """The peer sent more header bytes than any honest server does."""


CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

# X509_V_ERR_*: no trusted issuer for this chain, in its various spellings.
_UNKNOWN_ISSUER = frozenset({2, 18, 19, 20, 21})
_NOT_YET_VALID = 9
_EXPIRED = 10


class MeteredSocket(ssl.SSLSocket):
    """An SSL socket that bounds the time and size of the header phase, where `requests` only bounds each gap."""

    deadline: Deadline | None = None
    allowance_bytes: int | None = None

    def recv_into(  # type: ignore[override]
        self, buffer: bytearray | memoryview, nbytes: int | None = None, flags: int = 0
    ) -> int:
        """Like the parent's; TimeoutError past the deadline, OSError past the allowance."""
        if self.deadline is None:
            return super().recv_into(buffer, nbytes, flags)
        gap_s = self.gettimeout()
        remaining_s = self.deadline.remaining_s()
        if remaining_s <= 0:
            raise TimeoutError("headers did not arrive in time")
        self.settimeout(remaining_s if gap_s is None else min(gap_s, remaining_s))
        try:
            count = super().recv_into(buffer, nbytes, flags)
        finally:
            self.settimeout(gap_s)
        if self.allowance_bytes is not None:
            self.allowance_bytes -= count
            if self.allowance_bytes < 0:
                raise HeaderLimitError("more than 16 KiB of headers")
        return count


def make_context(ca_file: Path, identity: Identity) -> ssl.SSLContext:
    """TLS >= 1.2 with AEAD, trusting only the pinned CA, presenting this device's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.sslsocket_class = MeteredSocket
    try:
        context.load_verify_locations(cafile=str(ca_file))
    except OSError as err:
        raise NetError(
            f"{ca_file}: expected PEM certificates of the server's CA, found none usable ({err}); the agent "
            "does not start",
            code="net.tls-verify",
            retryable=False,
        ) from err
    identity.load_into(context)
    return context


def explain_tls_failure(
    err: ssl.SSLError, server: str, *, clock_unset: bool, identity: Identity, probe_issuer: Callable[[], str]
) -> NetError:
    """Name the cause of a failed handshake or of an alert, and what a person can do about it."""
    if isinstance(err, ssl.SSLCertVerificationError):
        return _explain_verification(err, server, clock_unset=clock_unset, probe_issuer=probe_issuer)
    reason = (err.reason or "").upper()
    if "ALERT" in reason and any(
        word in reason for word in ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "BAD_CERT")
    ):
        return AuthError(
            f"{server}: refused this device's certificate ({_words(reason)}); ours is {identity.summary}; "
            "nothing is reported or installed until the certificate is renewed or the device admitted",
            code="auth.rejected",
        )
    if reason in {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}:
        return NetError(
            f"{server}: expected TLS, found plain text ({_words(reason)}); a portal or block page answers "
            "in the server's place; "
            "nothing was sent",
            code="net.intercepted",
        )
    return NetError(
        f"{server}: TLS failed ({_words(reason) or err}); nothing was sent", code="net.tls-verify"
    )


def _explain_verification(
    err: ssl.SSLCertVerificationError, server: str, *, clock_unset: bool, probe_issuer: Callable[[], str]
) -> NetError:
    finding = err.verify_message or "not valid"
    if clock_unset:
        return NetError(
            f"{server}: its certificate cannot be checked because the clock of this device is before the "
            "build of its software "
            f"({finding}); set the clock (NTP or locally); there is no bypass, nothing was sent",
            code="net.clock-before-build",
        )
    if err.verify_code in _UNKNOWN_ISSUER:
        return NetError(
            f"{server}: expected a certificate of the pinned CA, found one issued by {probe_issuer()} "
            f"({finding}); "
            "another server or an inspecting proxy answers; nothing was sent",
            code="net.intercepted",
        )
    hint = "; check the clock of this device" if err.verify_code in (_NOT_YET_VALID, _EXPIRED) else ""
    return NetError(
        f"{server}: its certificate is refused ({finding}){hint}; nothing was sent", code="net.tls-verify"
    )


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()


def seen_issuer(dial: Callable[[], socket.socket], host: str, timeout_s: float) -> str:
    """Who issued the certificate that was refused: a second handshake that sends nothing and believes
    nothing.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with contextlib.suppress(OSError, NetError), dial() as raw:
        raw.settimeout(timeout_s)
        with context.wrap_socket(raw, server_hostname=host) as wrapped:
            return describe_issuer(wrapped.getpeercert(binary_form=True) or b"")
    return "an unknown issuer"
