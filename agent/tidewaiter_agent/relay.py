"""Repository bytes for the updater: `io.tidewaiter.Relay.Fetch`. The updater has no network; the agent is not believed by it.

Nothing is buffered: one span streams from the server to the socket. What the agent answers is only what the server's headers
said;
a body that breaks simply ends early, and the updater notices. The answer never carries more bytes than were asked for.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from tidewaiter_core.varlink import Call, Upgrade

from tidewaiter_agent.errors import NetError
from tidewaiter_agent.exchange import Stream, Transport

logger = logging.getLogger(__name__)

SPAN_LIMIT_BYTES = 4 * 1024 * 1024
DEADLINE_BASE_S = 30.0
DEADLINE_BYTES_PER_S = 1024
_PATH = re.compile(r"[A-Za-z0-9._+/-]{1,200}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """What the headers of an answer promise."""

    status: str
    detail: str = ""
    offset: int = 0
    total: int = -1
    length: int = 0


def is_repository_path(path: str) -> bool:
    """metadata/... or targets/..., no empty segment, none that starts with a dot (the CVE-2021-41131 class)."""
    segments = path.split("/")
    return (
        _PATH.fullmatch(path) is not None
        and len(segments) > 1
        and segments[0] in ("metadata", "targets")
        and all(segment and not segment.startswith(".") for segment in segments)
    )


class Relay:
    """The service; `locate` maps a repository path to a path on the server, None when it is not offered."""

    def __init__(self, transport: Transport, locate: Callable[[str], str | None]) -> None:
        self._transport = transport
        self._locate = locate

    def handlers(self) -> Mapping[str, Callable[[Call], Upgrade]]:
        """Method table for the Varlink server."""
        return {"Fetch": self.fetch}

    def fetch(self, call: Call) -> Upgrade:
        """Answer one span."""
        path, offset, wanted = (
            call.parameters["path"],
            call.parameters["offset"],
            call.parameters["max_bytes"],
        )
        if not is_repository_path(path):
            return _refusal(Span(status="forbidden", detail="not a repository path"))
        if offset < 0 or not 0 < wanted <= SPAN_LIMIT_BYTES:
            return _refusal(
                Span(status="bad-range", detail=f"offset >= 0 and 1..{SPAN_LIMIT_BYTES} bytes per span")
            )
        try:
            located = self._locate(path)
        except NetError as err:
            return _refusal(Span(status="unavailable", detail=str(err)[:300]))
        if located is None:
            return _refusal(Span(status="not-found", detail="the server does not offer this file"))
        return self._fetch(located, offset, wanted)

    def _fetch(self, located: str, offset: int, wanted: int) -> Upgrade:
        headers = {"Accept": "*/*", "Range": f"bytes={offset}-{offset + wanted - 1}"}
        exchange = self._transport.open(located, headers=headers)
        try:
            stream = exchange.__enter__()
        except NetError as err:
            logger.info("relay %s: %s", located, err)
            status = "too-slow" if err.code == "net.slow" else "unavailable"
            return _refusal(Span(status=status, detail=str(err)[:300]))
        span = read_span(stream.status, stream.headers, offset=offset, wanted=wanted)
        if span.status != "ok":
            exchange.__exit__(None, None, None)
            return _refusal(span)
        return Upgrade(_reply(span), _Body(exchange, stream, span, located))


def read_span(status: int, headers: Mapping[str, str], *, offset: int, wanted: int) -> Span:
    """Judge an answer to a Range request by its headers alone."""
    length = _length(headers)
    if status == 206:
        return _partial(headers, length, offset=offset, wanted=wanted)
    if status == 200:
        if offset != 0:
            return Span(
                status="bad-range", detail="the server sent the whole file where a range was asked for"
            )
        if length is None:
            return Span(status="unavailable", detail="the server did not say how long the file is")
        if length > wanted:
            return Span(
                status="bad-range",
                detail=f"the server sends all {length} bytes where {wanted} were asked for",
            )
        return Span(status="ok", offset=0, total=length, length=length)
    if status == 416:
        match = re.fullmatch(r"bytes \*/([0-9]{1,18})", headers.get("content-range", ""))
        return Span(
            status="bad-range",
            detail="the file ends before this offset",
            total=int(match.group(1)) if match else -1,
        )
    if status in (404, 410):
        return Span(status="not-found", detail=f"status {status}")
    if status in (401, 403):
        return Span(status="forbidden", detail=f"status {status}")
    if status in (408, 504):
        return Span(status="too-slow", detail=f"status {status}")
    return Span(status="unavailable", detail=f"status {status}")


def _partial(headers: Mapping[str, str], length: int | None, *, offset: int, wanted: int) -> Span:
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    if match is None:
        return Span(status="bad-range", detail="206 without a usable Content-Range")
    first, last = int(match.group(1)), int(match.group(2))
    total = -1 if match.group(3) == "*" else int(match.group(3))
    promised = last - first + 1
    if first != offset or not 0 < promised <= wanted or (length is not None and length != promised):
        return Span(
            status="bad-range",
            detail=f"asked for {wanted} bytes from {offset}, the server sends {first}-{last}",
        )
    if total != -1 and total <= last:
        return Span(status="bad-range", detail=f"range {first}-{last} of a file of {total} bytes")
    return Span(status="ok", offset=offset, total=total, length=promised)


class _Body:
    """Exactly `span.length` bytes, or fewer when the server fails; the updater counts.

    Not a generator: closing one that was never started would not run its `finally`, and the connection to the server would leak
    when the updater hangs up before the first byte.
    """

    def __init__(
        self, exchange: AbstractContextManager[Stream], stream: Stream, span: Span, located: str
    ) -> None:
        self._exchange = exchange
        self._located = located
        self._left = span.length
        deadline_s = DEADLINE_BASE_S + span.length / DEADLINE_BYTES_PER_S
        self._pieces = stream.chunks(limit_bytes=span.length, deadline_s=deadline_s)
        self._open = True

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            piece = next(self._pieces)
        except NetError as err:
            logger.info("relay %s: broke with %d bytes missing: %s", self._located, self._left, err)
        except StopIteration:
            pass
        else:
            self._left -= len(piece)
            return piece
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Give the connection back, or end it when bytes are still to come."""
        if self._open:
            self._open = False
            self._exchange.__exit__(None, None, None)


def _length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def _refusal(span: Span) -> Upgrade:
    return Upgrade(_reply(span), ())


def _reply(span: Span) -> dict[str, Any]:
    return {
        "status": span.status,
        "detail": span.detail,
        "offset": span.offset,
        "total": span.total,
        "length": span.length,
    }
