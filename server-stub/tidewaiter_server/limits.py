"""What a request may cost: body sizes counted while reading, idle bodies, JSON that means one thing, requests per second."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from tidewaiter_core.clock import Clock
from tidewaiter_core.strictjson import StrictJsonError, loads

from tidewaiter_server.errors import Refusal, malformed

DDI_BODY_BYTES: Final = 64 * 1024
API_BODY_BYTES: Final = 256 * 1024
AUDIT_BODY_BYTES: Final = 1024 * 1024
_IDLE_S: Final = 15.0
_TOTAL_S: Final = 60.0
_DEPTH: Final = 16
_KEYS: Final = 1000
_CLOSE: Final = {"Connection": "close"}


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body, refused as soon as it exceeds the limit (413) or stalls (408); the connection then ends."""
    body = bytearray()
    stream = request.stream()
    try:
        async with asyncio.timeout(_TOTAL_S):
            while (piece := await _next(stream)) is not None:
                body += piece
                if len(body) > limit_bytes:
                    raise Refusal(
                        413,
                        "request.too-large",
                        f"body: more than {limit_bytes} bytes; nothing was stored",
                        headers=_CLOSE,
                    )
    except TimeoutError as error:
        raise Refusal(
            408,
            "request.slow",
            f"body: idle for {_IDLE_S:g} s or longer than {_TOTAL_S:g} s; given up",
            headers=_CLOSE,
        ) from error
    except ClientDisconnect as error:
        raise Refusal(
            400, "request.malformed", "body: the client hung up in the middle", headers=_CLOSE
        ) from error
    return bytes(body)


async def _next(stream: AsyncIterator[bytes]) -> bytes | None:
    async with asyncio.timeout(_IDLE_S):
        return await anext(stream, None)


def read_json(body: bytes) -> Any:
    """Strict JSON: UTF-8, no duplicate key, no NaN, no NUL, at most 16 levels and 1000 keys; 400 otherwise."""
    try:
        document = loads(body, limit_bytes=max(len(body), 1), depth=_DEPTH)
    except StrictJsonError as error:
        raise malformed("body", "one JSON document", str(error)) from error
    keys, pending = 0, [document]
    while pending:
        item = pending.pop()
        if isinstance(item, str) and "\0" in item:
            raise malformed("body", "text without NUL", "a NUL character")
        if isinstance(item, dict):
            keys += len(item)
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    if keys > _KEYS:
        raise malformed("body", f"at most {_KEYS} keys", str(keys))
    return document


class Buckets:
    """Token buckets by name: `rate_per_s` on average, `burst` at once."""

    def __init__(self, clock: Clock, *, rate_per_s: float, burst: int) -> None:
        self._clock = clock
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, name: str) -> None:
        """One request of `name`; 429 with Retry-After when the bucket is empty."""
        now_s = self._clock.boottime_s()
        level, since_s = self._levels.get(name, (float(self._burst), now_s))
        level = min(float(self._burst), level + (now_s - since_s) * self._rate_per_s)
        if level < 1.0:
            self._levels[name] = (level, now_s)
            raise Refusal(
                429,
                "request.rate",
                f"{name}: more than {self._rate_per_s:g} requests per second; try again later",
                headers={"Retry-After": "1"},
            )
        if len(self._levels) > 20_000:
            self._levels.clear()
        self._levels[name] = (level - 1.0, now_s)
