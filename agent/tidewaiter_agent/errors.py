"""The agent's error families: one class where a caller reacts differently, one stable code per cause.

The codes are listed in docs/errors.md. Foreign exceptions (requests, ssl, OSError) end in the adapters and
come out as these.
"""

from __future__ import annotations

from typing import ClassVar

from tidewaiter_core.errors import TidewaiterError


class NetError(TidewaiterError):
    """The exchange with the server did not take place or its answer cannot be used."""

    code: ClassVar[str] = "net.tcp"
    retryable: ClassVar[bool] = True


class ProxyError(NetError):
    """The configured proxy did not give us a tunnel."""

    code: ClassVar[str] = "proxy.refused"


class AuthError(NetError):
    """The server does not accept this device; only a person or a renewal changes that."""

    code: ClassVar[str] = "auth.rejected"
    retryable: ClassVar[bool] = False


class IdentityError(TidewaiterError):
    """Key, certificate or provisioning file of this device cannot be used."""

    code: ClassVar[str] = "identity.unusable"


class OutboxFullError(TidewaiterError):
    """The class of this item is at its budget and nothing in it may be dropped."""

    code: ClassVar[str] = "outbox.full"
    retryable: ClassVar[bool] = True


class ConsentError(TidewaiterError):
    """A prompt or grant cannot be made or answered."""

    code: ClassVar[str] = "consent.denied"


class MediumError(TidewaiterError):
    """A directory that a person named is no update medium, or is not there."""

    code: ClassVar[str] = "medium.absent"
