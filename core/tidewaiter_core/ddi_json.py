"""JSON answers of the server and their fields, read strictly; every error names what was expected and what came. Pure."""

from __future__ import annotations

import re
from typing import Any

from tidewaiter_core import strictjson
from tidewaiter_core.errors import TidewaiterError

ANSWER_LIMIT_BYTES = 256 * 1024
ANSWER_DEPTH = 16
TEXT_LIMIT = 128

_ACTION_ID = re.compile(r"[0-9]{1,19}")
_TITLE = re.compile(rb"<title[^>]{0,64}>([^<]{0,200})", re.IGNORECASE)


class BadJsonError(TidewaiterError):
    """The body is not JSON as this protocol has it; the message says what came instead."""

    code = "net.bad-json"
    retryable = True


class BadAnswerError(TidewaiterError):
    """JSON, but not the answer that was asked for; the message names the field."""

    code = "net.bad-answer"
    retryable = True


def load_json(
    data: bytes, *, limit: int = ANSWER_LIMIT_BYTES, depth: int = ANSWER_DEPTH, what: str = "answer"
) -> dict[str, Any]:
    """The JSON object in `data`.

    Raises:
        BadJsonError: Not JSON, not an object, or beyond a limit; names what came.
    """
    try:
        value = strictjson.loads(data, limit_bytes=limit, depth=depth)
    except strictjson.StrictJsonError as err:
        raise BadJsonError(
            f"{what}: expected JSON, found {_came(data)} ({err}); the answer is ignored"
        ) from err
    if not isinstance(value, dict):
        raise BadJsonError(
            f"{what}: expected a JSON object, found a JSON {type(value).__name__}; the answer is ignored"
        )
    return value


def action_id_of(value: object, where: str) -> str:
    """Decimal text: it goes into a path, so nothing else may pass."""
    if not isinstance(value, str) or not _ACTION_ID.fullmatch(value):
        raise BadAnswerError(
            f"{where}: expected a decimal action id, found {shown(value)}; the answer is ignored"
        )
    return value


def text_of(value: object, where: str) -> str:
    """A text of 1 to 128 characters."""
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_LIMIT:
        raise BadAnswerError(
            f"{where}: expected a text of 1 to {TEXT_LIMIT} characters, found {shown(value)}; the answer is ignored"
        )
    return value


def object_of(value: object, where: str) -> dict[str, Any]:
    """A JSON object."""
    if not isinstance(value, dict):
        raise BadAnswerError(f"{where}: expected an object, found {shown(value)}; the answer is ignored")
    return value


def list_of(value: object, where: str) -> list[Any]:
    """A list of up to 256 entries; absent is empty."""
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > 256:
        raise BadAnswerError(
            f"{where}: expected a list of up to 256, found {shown(value)}; the answer is ignored"
        )
    return value


def shown(value: object) -> str:
    """`value` for a message: short, and escaped."""
    match value:
        case None:
            return "nothing"
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
        case str() if len(value) > 64:
            return repr(value[:63] + "…")
    return repr(value)


def _came(data: bytes) -> str:
    """What a body looks like that is not JSON: usually the page of a proxy or a portal."""
    start = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if not start:
        return "an empty body"
    if start[:1] == b"<":
        is_html = b"<html" in start.lower() or b"<!doctype html" in start.lower()
        title = _TITLE.search(data[:16384])
        name = f" titled {title[1].decode('utf-8', 'replace').strip()[:80]!r}" if title else ""
        return f"{'an HTML page' if is_html else 'XML or HTML'}{name}, as a proxy or portal sends it"
    if start[:2] == b"\x1f\x8b":
        return "a compressed body"
    return f"{len(data)} bytes starting with {start[:24]!r}"
