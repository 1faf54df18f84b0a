"""What the server refuses and why: one value that both listeners turn into their answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tidewaiter_core.errors import TidewaiterError


class ServerError(TidewaiterError):
    """The server cannot do what it was started for."""

    code: ClassVar[str] = "server.error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """What the audit chain says about a refusal: who wanted which object."""

    kind: str
    actor: str
    object: str
    fields: Mapping[str, str | int] = field(default_factory=dict)


class Refusal(TidewaiterError):
    """A request that is answered with an error; `denial` is set when it is one that the audit chain must hold."""

    code: ClassVar[str] = "request.refused"

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        denial: Denial | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.denial = denial
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})


def malformed(what: str, expected: str, found: str) -> Refusal:
    """400: the request is not what this route reads."""
    return Refusal(
        400, "request.malformed", f"{what}: expected {expected}, found {found[:120]}; nothing was changed"
    )


def not_found(what: str) -> Refusal:
    """404: there is no such thing, or it is not yours; the answer does not say which."""
    return Refusal(404, "request.not-found", f"{what}: not found; nothing was changed")
