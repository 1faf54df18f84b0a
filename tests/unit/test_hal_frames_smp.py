"""Framing of SMP on a console line."""

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_hal import cbor
from tidewaiter_hal.frames import smp

BODY = cbor.encode({"bo": 1, "ms": 2000, "n": 3, "st": 4})
REQUEST = smp.Packet(op=0, group=0x5457, command=1, seq=7, body=cbor.encode({}))
REPLY = smp.Packet(op=1, group=0x5457, command=1, seq=7, body=smp.wrap(BODY, group=0x5457, command=1, seq=7))
LONG = smp.Packet(op=1, group=0x5457, command=0, seq=9, body=bytes(range(256)) + bytes(200))


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (REQUEST, b"\x06\x09AAsIAAABVFcHAaDXNg==\n"),
        (REPLY, b"\x06\x09ACcJAAAdVFcHAaJhYlKkYmJvAWJtcxkH0GFuA2JzdARhY0TR4uaLeAQ=\n"),
        (
            smp.Packet(
                op=3, group=0x5457, command=1, seq=8, body=cbor.encode({"err": {"group": 0x5457, "rc": 2}})
            ),
            b"\x06\x09AB0LAAATVFcIAaFjZXJyomVncm91cBlUV2JyYwLtAw==\n",
        ),
    ],
)
def test_golden_frames_match_byte_for_byte(packet: smp.Packet, line: bytes) -> None:
    assert smp.encode(packet) == line
    assert smp.Reassembler().feed(line, 0.0) == [packet]


def test_the_golden_envelope_matches_byte_for_byte() -> None:
    assert BODY.hex(" ") == "a4 62 62 6f 01 62 6d 73 19 07 d0 61 6e 03 62 73 74 04"
    assert smp.envelope_crc(BODY, group=0x5457, command=1, seq=7).hex(" ") == "d1 e2 e6 8b"


def test_no_line_is_longer_than_127_bytes_and_every_payload_is_whole_base64() -> None:
    for line in smp.encode(LONG).splitlines(keepends=True):
        assert len(line) <= 127
        assert len(line[2:-1]) % 4 == 0


@settings(max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_frames_decode_identically_for_every_split_and_merge(sizes: list[int]) -> None:
    stream = smp.encode(REQUEST) + smp.encode(LONG) + smp.encode(REPLY)
    reassembler, found, position = smp.Reassembler(), [], 0
    for size in [*sizes, len(stream)]:
        found += reassembler.feed(stream[position : position + size], 0.0)
        position += size
    assert found == [REQUEST, LONG, REPLY]


def test_console_text_between_frames_is_ignored() -> None:
    stream = (
        b"[00:01] <inf> motor: ok\r\n"
        + b"half a log line "
        + smp.encode(REPLY)
        + b"more\n"
        + smp.encode(REQUEST)
    )
    reassembler = smp.Reassembler()
    assert reassembler.feed(stream, 0.0) == [REPLY, REQUEST]
    assert not reassembler.damage


def test_line_of_10_mib_without_newline_keeps_memory_flat() -> None:
    reassembler = smp.Reassembler()
    for _ in range(10 * 256):
        assert reassembler.feed(b"A" * 4096, 0.0) == []
        assert len(reassembler._line) <= smp.LINE_LIMIT_BYTES
    assert reassembler.feed(b"\n" + smp.encode(REPLY), 0.0) == [REPLY]
    assert reassembler.damage[smp.Damage.OVERLONG_LINE] == 1


def test_a_start_marker_discards_an_unfinished_packet() -> None:
    first_line = smp.encode(LONG).splitlines(keepends=True)[0]
    reassembler = smp.Reassembler()
    assert reassembler.feed(first_line + smp.encode(REPLY), 0.0) == [REPLY]
    assert reassembler.damage[smp.Damage.ABANDONED] == 1


def test_a_continuation_after_two_seconds_is_too_late() -> None:
    lines = smp.encode(LONG).splitlines(keepends=True)
    reassembler = smp.Reassembler()
    reassembler.feed(lines[0], 0.0)
    assert reassembler.feed(b"".join(lines[1:]), 2.1) == []


def test_an_oversize_packet_is_refused_at_its_first_line() -> None:
    line = smp.FIRST + base64.b64encode(b"\xff\xf0" + bytes(88)) + b"\n"
    reassembler = smp.Reassembler()
    assert reassembler.feed(line, 0.0) == []
    assert reassembler.damage[smp.Damage.OVERSIZE] == 1


def test_corrupting_20000_frames_yields_no_wrong_body() -> None:
    """A damaged frame is dropped, or its envelope fails, or it is the true one (damage in ignored text)."""
    rng = random.Random(20260724)
    clean = smp.encode(REPLY)
    accepted = 0
    for _ in range(20_000):
        damaged = bytearray(clean)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
            where = rng.randrange(len(damaged))
            match rng.randrange(3):
                case 0:
                    damaged[where] ^= 1 << rng.randrange(8)
                case 1:
                    damaged[where] = rng.randrange(256)
                case _:
                    del damaged[where]
        for packet in smp.Reassembler().feed(bytes(damaged) + b"\n", 0.0):
            try:
                body = smp.unwrap(cbor.decode_map(packet.body), group=0x5457, command=1, seq=7)
            except cbor.CborError:
                continue
            if body is not None and packet.seq == 7:
                accepted += 1
                assert body == BODY
    assert accepted < 1000


def test_the_envelope_ties_a_body_to_its_request() -> None:
    envelope = cbor.decode_map(smp.wrap(BODY, group=0x5457, command=1, seq=7))
    assert smp.unwrap(envelope, group=0x5457, command=1, seq=7) == BODY
    assert smp.unwrap(envelope, group=0x5457, command=1, seq=8) is None
    assert smp.unwrap(envelope, group=0x5458, command=1, seq=7) is None
    assert smp.unwrap({"b": BODY}, group=0x5457, command=1, seq=7) is None
