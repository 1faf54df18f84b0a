"""TLS of the two listeners: versions, suites, whose certificates count, and what one connection may cost.

Two listeners, not one with SNI switching: replacing the context in an SNI callback does not change certificate
verification of the running handshake (measured: a client without a certificate was accepted).
"""

import asyncio.constants
import asyncio.sslproto
import ssl

from tidewaiter_server.errors import ServerError
from tidewaiter_server.settings import Settings

_SUITES = "ECDHE+AESGCM:ECDHE+CHACHA20"
_READ_BYTES = 16_384
_HANDSHAKE_S = 10.0


def console_context(settings: Settings) -> ssl.SSLContext:
    """Server authentication only; people come with a token."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_SUITES)
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    load_certificate(context, settings)
    return context


def device_context(settings: Settings) -> ssl.SSLContext:
    """A client certificate of the device CAs is required. No CRL: an expired one would refuse every device."""
    context = console_context(settings)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(settings.device_ca)
    except (OSError, ssl.SSLError) as error:
        raise ServerError(
            f"{settings.device_ca}: expected PEM certificates of the device CAs, found {error}; the server does not start"
        ) from error
    return context


def load_certificate(context: ssl.SSLContext, settings: Settings) -> None:
    """(Re)load certificate and key; connections that exist keep what they negotiated."""
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise ServerError(
            f"{settings.tls_cert}, {settings.tls_key}: expected a PEM certificate chain and its key, found {error}; "
            "not loaded"
        ) from error


def bound_connections() -> None:
    """Lower what asyncio spends per TLS connection: 256 KiB buffers and 60 s for a handshake are too much here.

    Both names are private to asyncio; an upgrade that renames them must not go unnoticed.
    """
    protocol = asyncio.sslproto.SSLProtocol
    if not hasattr(protocol, "max_size") or not hasattr(asyncio.constants, "SSL_HANDSHAKE_TIMEOUT"):
        raise ServerError(
            "asyncio: SSLProtocol.max_size or SSL_HANDSHAKE_TIMEOUT is gone; limits cannot be set, not started"
        )
    protocol.max_size = _READ_BYTES
    asyncio.constants.SSL_HANDSHAKE_TIMEOUT = _HANDSHAKE_S
