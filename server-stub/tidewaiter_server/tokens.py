"""API tokens: 256 random bits, stored as SHA-256, shown once. And the gate in front of the management API.

Order at the gate: who (401), may he (403), how much (413), is it JSON that means one thing (400); only then the route.
"""

import hashlib
import json
import secrets
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, insert, select
from starlette.requests import Request
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tidewaiter_core.clock import Clock, format_utc

from tidewaiter_server import audit, limits
from tidewaiter_server.db import Database
from tidewaiter_server.errors import Denial, Refusal
from tidewaiter_server.schema import api_tokens

PREFIX: Final = "twat_"
_HEADER_LIMIT: Final = 256


def create(connection: Connection, clock: Clock, *, name: str, permissions: Sequence[str]) -> str:
    """A new token; the value returned here is the only copy."""
    token = PREFIX + secrets.token_urlsafe(32)
    connection.execute(
        insert(api_tokens).values(
            sha256=_digest(token),
            name=name,
            permissions=json.dumps(list(permissions)),
            created_utc=format_utc(clock.now_utc()),
        )
    )
    audit.append(connection, clock, "token.created", actor="system", object=f"token:{name}")
    return token


class Gate:
    """Authenticates the bearer token, checks the route's permission, reads the body within its limits."""

    def __init__(
        self, inner: ASGIApp, *, database: Database, clock: Clock, routes: Sequence[BaseRoute]
    ) -> None:
        self._inner = inner
        self._database = database
        self._clock = clock
        self._routes = routes
        self._buckets = limits.Buckets(clock, rate_per_s=20, burst=100)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        name, permissions = await self._authenticate(request)
        self._buckets.take(f"token:{name}")
        scope.setdefault("state", {})["actor"] = f"token:{name}"
        needed = self._needed(scope)
        if needed is not None and "*" not in permissions and needed not in permissions:
            raise Refusal(
                403,
                "right.missing",
                f"token {name}: lacks the permission {needed}; nothing was changed",
                denial=Denial(kind="right.missing", actor=f"token:{name}", object=request.url.path),
                extra={"permission": needed},
            )
        body = await limits.read_body(request, limits.API_BODY_BYTES)
        if body:
            limits.read_json(body)
        await self._inner(scope, _replay(body, receive), send)

    async def _authenticate(self, request: Request) -> tuple[str, frozenset[str]]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token or len(token) > _HEADER_LIMIT:
            raise self._unauthorized(request, "expected `Authorization: Bearer`, found none")
        wanted = _digest(token.strip())
        row = await self._database.read(
            lambda connection: connection.execute(
                select(api_tokens).where(api_tokens.c.sha256 == wanted, api_tokens.c.revoked_utc.is_(None))
            ).first()
        )
        if row is None:
            raise self._unauthorized(request, "unknown token")
        return str(row.name), frozenset(json.loads(row.permissions))

    def _unauthorized(self, request: Request, reason: str) -> Refusal:
        client = request.client.host if request.client else "?"
        return Refusal(
            401,
            "login.failed",
            f"{reason}; nothing was shown or changed",
            denial=Denial(kind="login.failed", actor=f"address:{client}", object=request.url.path),
            headers={"WWW-Authenticate": "Bearer", "Connection": "close"},
        )

    def _needed(self, scope: Scope) -> str | None:
        for route in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                extra: dict[str, Any] = getattr(route, "openapi_extra", None) or {}
                return str(extra["x-permission"])
        return None  # the router answers 404 or 405


def _replay(body: bytes, receive: Receive) -> Receive:
    delivered = False

    async def replayed() -> Message:
        nonlocal delivered
        if delivered:
            return await receive()
        delivered = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
