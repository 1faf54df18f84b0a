"""Varlink messages as bytes: JSON objects of at most 64 KiB, each ended by a NUL byte. Pure: no socket here.

Both sides feed what they received to a Decoder and take whole messages from it. What follows an upgrade is
not a message: `take_rest` hands over the bytes that arrived together with the last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tidewaiter_core import strictjson

LIMIT_BYTES = 64 * 1024
"""Longest message without its NUL."""
DEPTH = 24


class FramingError(ValueError):
    """The byte stream is not Varlink, or a message would not fit; the connection has no future."""


def encode(message: Mapping[str, Any]) -> bytes:
    """The wire form of `message`, NUL included.

    Raises:
        FramingError: The message is too long, too deep, or holds a value JSON cannot carry.
    """
    try:
        strictjson.check(message, depth=DEPTH)
        data = json.dumps(message, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except (TypeError, ValueError) as err:
        raise FramingError(f"message cannot be written as JSON: {err}") from err
    if len(data) > LIMIT_BYTES:
        raise FramingError(f"message of {len(data)} bytes, the limit is {LIMIT_BYTES}")
    return data + b"\0"


class Decoder:
    """Collects received bytes and cuts them into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    @property
    def has_partial(self) -> bool:
        """Bytes are waiting that do not make a whole message yet (call after `next_message` returned
        None).
        """
        return bool(self._buffer)

    def next_message(self) -> dict[str, Any] | None:
        """The next whole message, or None if more bytes are needed.

        Raises:
            FramingError: Not a JSON object, or no NUL within the limit.
        """
        end = self._buffer.find(b"\0", self._searched)
        if end < 0:
            self._searched = len(self._buffer)
            if len(self._buffer) > LIMIT_BYTES:
                raise FramingError(f"no end of message within {LIMIT_BYTES} bytes")
            return None
        data = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        try:
            message = strictjson.loads(data, limit_bytes=LIMIT_BYTES, depth=DEPTH)
        except strictjson.StrictJsonError as err:
            raise FramingError(f"message is {err}") from err
        if not isinstance(message, dict):
            raise FramingError(f"message is a JSON {type(message).__name__}, expected an object")
        return message

    def take_rest(self) -> bytes:
        """All bytes not yet cut into messages; the decoder is empty afterwards."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        return rest
