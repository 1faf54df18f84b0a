"""What the agent's modules need from HTTP: the Transport port, its values, and the rules for statuses and
Retry-After. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Protocol

from tidewaiter_agent.errors import AuthError, NetError

JSON_LIMIT_BYTES = 256 * 1024
RETRY_AFTER_CAP_S = 3600.0

_TITLE = re.compile(rb"<title[^>]{0,64}>([^<]{1,80})", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer; the body is bounded by the limit the caller gave."""

    status: int
    headers: Mapping[str, str]
    """Lower-case names."""
    body: bytes

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Stream(Protocol):
    """An answer whose body has not been read yet."""

    @property
    def status(self) -> int: ...
    @property
    def headers(self) -> Mapping[str, str]: ...
    def chunks(self, *, limit_bytes: int, deadline_s: float) -> Iterator[bytes]:
        """Pieces of at most 64 KiB; NetError when the limit, the deadline or the minimum rate is broken."""
        ...


class Transport(Protocol):
    """HTTPS to the one configured origin. `path` is origin-relative, so no caller can name another host."""

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "application/hal+json, application/json",
        headers: Mapping[str, str] | None = None,
        limit_bytes: int = JSON_LIMIT_BYTES,
    ) -> Reply: ...

    def open(self, path: str, *, headers: Mapping[str, str]) -> AbstractContextManager[Stream]: ...


class Verdict(StrEnum):
    """What an answer means for an item that was sent."""

    DONE = "done"
    LATER = "later"
    """Try again after a back-off."""
    STOP = "stop"
    """The server does not know us: the whole class waits for a new identity."""
    DEAD = "dead"
    """This item will never be accepted; it must not hold up the next."""


def judge_status(status: int) -> Verdict:
    """Agent design section 7: what each status does to an outbox item."""
    if 200 <= status < 300 or status == 410:
        return Verdict.DONE
    if status in (401, 403):
        return Verdict.STOP
    if status in (408, 425, 429) or status >= 500:
        return Verdict.LATER
    return Verdict.DEAD


def retry_after_s(headers: Mapping[str, str], now_epoch_s: float) -> float:
    """Seconds the server asks us to stay away: 0 when it does not ask, at most an hour, never negative."""
    text = headers.get("retry-after", "").strip()
    if not text:
        return 0.0
    if text.isascii() and text.isdigit():
        # A figure of a thousand digits must not become a float overflow.
        return min(float(text[:9]), RETRY_AFTER_CAP_S)
    try:
        wanted = parsedate_to_datetime(text).timestamp() - now_epoch_s
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(wanted, 0.0), RETRY_AFTER_CAP_S)


class StatusError(NetError):
    """An answer with an error status; carries what back-off needs."""

    def __init__(self, message: str, *, status: int, wait_s: float = 0.0) -> None:
        super().__init__(message, code=f"net.http-{status}", retryable=True)
        self.status = status
        self.wait_s = wait_s


def expect_json(reply: Reply, what: str, *, now_epoch_s: float) -> bytes:
    """The body of a 200 JSON answer, or an error that names what was asked, expected and found."""
    if reply.status in (401, 403):
        code = "auth.revoked" if b"revoked" in reply.body[:4096] else "auth.rejected"
        raise AuthError(
            f"{what}: the server answered {reply.status} for this device's certificate; expected 200; "
            "nothing is reported or installed until the device is accepted again",
            code=code,
        )
    if reply.status != 200:
        raise StatusError(
            f"{what}: expected status 200, found {reply.status}{_page_title(reply.body)}; asked again after "
            "a back-off",
            status=reply.status,
            wait_s=retry_after_s(reply.headers, now_epoch_s),
        )
    content_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    looks_like_html = reply.body[:512].lstrip().lower().startswith((b"<!doctype", b"<html"))
    if "json" not in content_type or looks_like_html:
        kind = "HTML" if looks_like_html or "html" in content_type else (content_type or "no content type")
        raise NetError(
            f"{what}: expected JSON, found {kind}{_page_title(reply.body)}; looks like the block page of a "
            "proxy or portal; "
            "the answer is ignored and asked for again",
            code="net.bad-json",
        )
    return reply.body


def _page_title(body: bytes) -> str:
    match = _TITLE.search(body[:4096])
    if match is None:
        return ""
    title = match.group(1).decode("utf-8", "replace")
    return " (page title: " + "".join(c if c.isprintable() else "?" for c in title).strip() + ")"
