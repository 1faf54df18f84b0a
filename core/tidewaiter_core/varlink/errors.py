"""Errors of the Varlink layer: what a service answers, and what a client finds when there is nobody to
answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tidewaiter_core.errors import TidewaiterError

INVALID_PARAMETER = "org.varlink.service.InvalidParameter"
METHOD_NOT_FOUND = "org.varlink.service.MethodNotFound"
METHOD_NOT_IMPLEMENTED = "org.varlink.service.MethodNotImplemented"
INTERFACE_NOT_FOUND = "org.varlink.service.InterfaceNotFound"
EXPECTED_MORE = "org.varlink.service.ExpectedMore"
EXPECTED_UPGRADE = "org.varlink.service.ExpectedUpgrade"
PERMISSION_DENIED = "org.varlink.service.PermissionDenied"

FAILED = "io.tidewaiter.Failed"
"""Carries a TidewaiterError that the interface has no error of its own for: (code, message, retryable)."""
INTERNAL_ERROR = "io.tidewaiter.InternalError"
"""A bug in the service. It says nothing more: the traceback is in the service's log."""


class VarlinkError(TidewaiterError):
    """An error reply, on either side: a handler raises it to answer with it, a client raises what it
    received.

    If the reply carries `code` and `retryable` (io.tidewaiter.Failed, io.tidewaiter.Updater.Refused), so
    does the exception.
    """

    code = "core.varlink-error"

    def __init__(self, name: str, parameters: Mapping[str, Any] | None = None) -> None:
        self.name = name
        self.parameters: dict[str, Any] = dict(parameters or {})
        code = self.parameters.get("code")
        retryable = self.parameters.get("retryable")
        super().__init__(
            _readable(name, self.parameters),
            code=code if isinstance(code, str) and code else None,
            retryable=retryable if isinstance(retryable, bool) else None,
        )


class NotReachable(TidewaiterError):
    """Nobody answered: no socket, connection refused or ended, or no reply in time. Whether the call took
    effect is unknown.
    """

    code = "core.not-reachable"
    retryable = True


class ProtocolError(NotReachable):
    """Somebody answered, but not in Varlink or not as the interface file says. Treated as unreachable:
    nothing was learned.
    """

    code = "core.varlink-protocol"
    retryable = False


class BadInterfaceError(TidewaiterError):
    """An interface file does not follow the Varlink grammar, or does not exist. A defect of the product, not
    of a peer.
    """

    code = "core.varlink-interface"


def _readable(name: str, parameters: Mapping[str, Any]) -> str:
    """`name: message` where there is one, else the parameters; bounded, because a peer may have written
    them.
    """
    for key in ("message", "detail"):
        text = parameters.get(key)
        if isinstance(text, str) and text:
            return f"{name}: {text[:400]}"
    if not parameters:
        return name
    return f"{name}: {json.dumps(parameters, default=str)[:400]}"
