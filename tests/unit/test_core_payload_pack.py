"""The pack header."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import (
    PackHeader,
    PayloadError,
    PayloadLengthError,
    PayloadLimitError,
    PayloadMagicError,
    PayloadVersionError,
)

ROOT = Sha256.of(b"hash table")
HEADER = PackHeader(pack_bytes=1000, image_root=ROOT)


def test_the_layout_is_the_documented_one_byte_for_byte() -> None:
    assert HEADER.to_bytes() == b"TWPK\r\n\x1a\x01" + struct.pack("<IIQ", 64, 0, 1000) + ROOT.raw + bytes(8)


def test_a_header_round_trips() -> None:
    assert PackHeader.parse(HEADER.to_bytes(), length=1000) == HEADER


@pytest.mark.parametrize(
    ("offset", "data", "error"),
    [
        (0, b"TWCI", PayloadMagicError),
        (4, b"\n", PayloadMagicError),
        (7, b"\x00", PayloadVersionError),
        (8, b"\x41", PayloadLimitError),
        (12, b"\x01", PayloadLimitError),
        (16, struct.pack("<Q", 63), PayloadLimitError),
        (16, struct.pack("<Q", 2**64 - 1), PayloadLimitError),
        (63, b"\x01", PayloadLimitError),
        (16, struct.pack("<Q", 1001), PayloadLengthError),
    ],
)
def test_a_wrong_field_is_refused(offset: int, data: bytes, error: type[PayloadError]) -> None:
    header = bytearray(HEADER.to_bytes())
    header[offset : offset + len(data)] = data
    with pytest.raises(error):
        PackHeader.parse(bytes(header), length=1000)


@given(st.binary(max_size=80))
def test_random_bytes_raise_nothing_but_payload_errors(data: bytes) -> None:
    for candidate in (data, b"TWPK\r\n\x1a\x01" + data):
        try:
            PackHeader.parse(candidate)
        except PayloadError:
            continue
