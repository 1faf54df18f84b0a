"""The outermost layer of both applications: turns refusals and accidents into answers, with their audit record first.

A denial's record is durable before the answer leaves. A flood of denials must not grow the chain without bound, because
who causes it needs no credential: beyond a rate per actor and in total the answer is 429, and the next record of that
actor counts what was not recorded one by one. An exception never reaches a body: 500 carries an id that is in
the log.
"""

import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from tidewaiter_core.clock import Clock

from tidewaiter_server import audit, limits
from tidewaiter_server.db import Database
from tidewaiter_server.errors import Denial, Refusal

logger = logging.getLogger(__name__)

_ACTORS_LIMIT: Final = 10_000

Render = Callable[[Refusal, str], Response]
Translate = Callable[[Exception], Refusal | None]


class Boundary:
    """Wraps an application that lets every exception through.

    Args:
        render: Gives a refusal the shape its clients expect.
        translate: Makes a refusal of the framework's own exceptions; None for those that are accidents.
    """

    def __init__(
        self, inner: ASGIApp, *, database: Database, clock: Clock, render: Render, translate: Translate
    ) -> None:
        self._inner = inner
        self._translate = translate
        self._database = database
        self._clock = clock
        self._render = render
        self._per_actor = limits.Buckets(clock, rate_per_s=0.5, burst=40)
        self._in_total = limits.Buckets(clock, rate_per_s=5, burst=300)
        self._unrecorded: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._inner(scope, receive, watched)
            return
        except Refusal as refusal:
            answer = await self._refuse(refusal, scope["path"])
        except ConnectionAbortedError as error:
            logger.warning("transfer of %s ended: %s", scope["path"], error)
            return
        except Exception as error:  # noqa: BLE001 - the outermost place: whatever it is becomes an answer without detail
            known = self._translate(error)
            answer = self._render(known, scope["path"]) if known else self._accident(scope["path"])
        if started:
            raise ConnectionAbortedError("an answer that has begun cannot be replaced")
        await answer(scope, receive, send)

    async def _refuse(self, refusal: Refusal, path: str) -> Response:
        denial = refusal.denial
        if denial is not None:
            try:
                denial = self._counted(denial)
                await self._database.write(lambda connection: self._append(connection, refusal.code, denial))
            except Refusal as busy:
                refusal = busy
        return self._render(refusal, path)

    def _counted(self, denial: Denial) -> Denial:
        """The denial with what was left out before it; 429 when this one is left out too."""
        actor = denial.actor
        try:
            self._per_actor.take(actor)
            self._in_total.take("denials")
        except Refusal:
            if actor in self._unrecorded or len(self._unrecorded) < _ACTORS_LIMIT:
                self._unrecorded[actor] = self._unrecorded.get(actor, 0) + 1
            raise
        missed = self._unrecorded.pop(actor, 0)
        return replace(denial, fields={**denial.fields, "unrecorded": missed}) if missed else denial

    def _append(self, connection: Connection, code: str, denial: Denial) -> None:
        audit.append_denial(connection, self._clock, code, denial)

    def _accident(self, path: str) -> Response:
        number = secrets.token_hex(8)
        logger.exception("accident %s at %s", number, path)
        refusal = Refusal(500, "server.accident", f"the server failed; the log has the reason under {number}")
        return self._render(refusal, path)


def from_starlette(error: Exception) -> Refusal | None:
    """Starlette's own 404 and 405 as refusals."""
    if not isinstance(error, HTTPException):
        return None
    codes = {404: "request.not-found", 405: "request.method"}
    return Refusal(
        error.status_code,
        codes.get(error.status_code, "request.refused"),
        f"{error.detail}; nothing was changed",
        headers=error.headers,
    )


def render_ddi(refusal: Refusal, _path: str) -> Response:
    """ExceptionInfo of the DDI document, plus `code` and what our device needs (`next_seq`)."""
    body: Mapping[str, Any] = {
        "exceptionClass": "tidewaiter.Refusal",
        "errorCode": refusal.code,
        "message": str(refusal),
        "code": refusal.code,
        **refusal.extra,
    }
    return JSONResponse(body, status_code=refusal.status, headers=refusal.headers)


def render_problem(refusal: Refusal, path: str) -> Response:
    """RFC 9457."""
    body: Mapping[str, Any] = {
        "type": f"urn:tidewaiter:error:{refusal.code}",
        "title": refusal.code,
        "status": refusal.status,
        "code": refusal.code,
        "detail": str(refusal),
        "instance": path,
        **refusal.extra,
    }
    return JSONResponse(
        body, status_code=refusal.status, headers=refusal.headers, media_type="application/problem+json"
    )
