"""Messages as bytes: split anywhere, limits, garbage."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core.varlink.framing import LIMIT_BYTES, Decoder, FramingError, encode


def test_a_message_ends_with_one_nul_and_has_no_other() -> None:
    data = encode({"method": "a.B", "parameters": {"text": "nul \0 inside"}})
    assert data.endswith(b"\0")
    assert data.count(b"\0") == 1


def test_messages_come_back_whole_however_the_bytes_were_split() -> None:
    messages: list[dict[str, Any]] = [{"n": 1}, {"text": "grün"}, {}]
    stream = b"".join(encode(message) for message in messages)
    for size in range(1, len(stream) + 1):
        decoder = Decoder()
        found = []
        for start in range(0, len(stream), size):
            decoder.feed(stream[start : start + size])
            while (message := decoder.next_message()) is not None:
                found.append(message)
        assert found == messages
        assert not decoder.has_partial


def test_the_rest_behind_a_message_is_handed_over_untouched() -> None:
    decoder = Decoder()
    decoder.feed(encode({"a": 1}) + b"\x00\xffraw")
    assert decoder.next_message() == {"a": 1}
    assert decoder.take_rest() == b"\x00\xffraw"
    assert decoder.take_rest() == b""


def test_a_message_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    filler = LIMIT_BYTES - len(b'{"a":""}')
    message = {"a": "x" * filler}
    decoder = Decoder()
    decoder.feed(encode(message))
    assert decoder.next_message() == message
    with pytest.raises(FramingError, match="65537 bytes"):
        encode({"a": "x" * (filler + 1)})
    decoder.feed(b'{"a":"' + b"x" * (filler + 1) + b'"}\0')
    with pytest.raises(FramingError, match="the limit is 65536"):
        decoder.next_message()


def test_an_endless_message_is_refused_before_its_end_arrives() -> None:
    decoder = Decoder()
    decoder.feed(b"x" * (LIMIT_BYTES + 1))
    with pytest.raises(FramingError, match="no end of message"):
        decoder.next_message()


@pytest.mark.parametrize(
    "data", [b"[1]\0", b"null\0", b'"text"\0', b"\0", b"GET / HTTP/1.1\0", b"[" * 60000 + b"\0"]
)
def test_what_is_not_an_object_is_refused(data: bytes) -> None:
    decoder = Decoder()
    decoder.feed(data)
    with pytest.raises(FramingError):
        decoder.next_message()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"bytes", {1}, "\ud800"])
def test_what_json_cannot_carry_is_not_sent(value: object) -> None:
    with pytest.raises(FramingError):
        encode({"a": value})


@given(st.lists(st.binary(max_size=80), max_size=8))
def test_any_bytes_give_messages_or_a_framing_error(pieces: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for piece in pieces:
            decoder.feed(piece)
            while decoder.next_message() is not None:
                pass
    except FramingError:
        return
