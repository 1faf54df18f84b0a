"""One zstd frame, exactly as long as promised: the checks that the library leaves out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core.payload.errors import PayloadFrameError
from tidewaiter_core.payload.frame import PIECE_BYTES, check_frame_header, decode_frame, in_pieces
from tidewaiter_release.zstd import ZstdCodec, compress_behind

CODEC = ZstdCodec()
DATA = bytes(range(256)) * 64
FRAME = compress_behind(DATA, b"", level=3, window_log=20)


def decoded(frame: bytes, raw_bytes: int, *, window_log_max: int = 20) -> bytes:
    decoder = CODEC.decompressor(window_log_max=window_log_max)
    return b"".join(
        decode_frame(decoder, in_pieces(frame), raw_bytes=raw_bytes, error=CODEC.error, what="test")
    )


def test_a_frame_gives_its_content() -> None:
    check_frame_header(FRAME, raw_bytes=len(DATA), what="test")
    assert decoded(FRAME, len(DATA)) == DATA


@pytest.mark.parametrize(
    ("frame", "raw_bytes"),
    [
        (FRAME[:-1], len(DATA)),
        (FRAME[:5], len(DATA)),
        (b"", len(DATA)),
        (FRAME + b"x", len(DATA)),
        (FRAME + FRAME, len(DATA)),
        (FRAME, len(DATA) - 1),
        (FRAME, len(DATA) + 1),
        (b"garbage" * 9, len(DATA)),
    ],
)
def test_anything_but_one_whole_frame_is_refused(frame: bytes, raw_bytes: int) -> None:
    with pytest.raises(PayloadFrameError):
        decoded(frame, raw_bytes)


def test_a_bomb_stops_one_byte_behind_the_promise() -> None:
    bomb = compress_behind(bytes(64 << 20), b"", level=1, window_log=20)
    produced = 0
    decoder = CODEC.decompressor(window_log_max=20)
    with pytest.raises(PayloadFrameError):
        for piece in decode_frame(
            decoder, in_pieces(bomb), raw_bytes=200_000, error=CODEC.error, what="test"
        ):
            produced += len(piece)
            assert len(piece) <= PIECE_BYTES
    assert produced <= 200_000


def test_a_frame_that_wants_more_memory_than_allowed_is_refused() -> None:
    frame = compress_behind(bytes(2 << 20), b"", level=1, window_log=21)
    with pytest.raises(PayloadFrameError):
        decoded(frame, 2 << 20)


def test_bytes_behind_a_frame_are_noticed_in_a_later_piece_too() -> None:
    decoder = CODEC.decompressor(window_log_max=20)
    with pytest.raises(PayloadFrameError):
        list(decode_frame(decoder, [FRAME, b"x"], raw_bytes=len(DATA), error=CODEC.error, what="test"))


@pytest.mark.parametrize("size", [1, 255, 256, 65_535, 65_791, 65_792, 4 << 20])
def test_the_header_says_the_length_of_every_size(size: int) -> None:
    frame = compress_behind(bytes(size), b"", level=1, window_log=22)
    check_frame_header(frame, raw_bytes=size, what="test")
    with pytest.raises(PayloadFrameError):
        check_frame_header(frame, raw_bytes=size + 1, what="test")


def test_checksums_dictionaries_skippable_and_unsized_frames_are_refused() -> None:
    for frame in (
        FRAME[:4] + bytes([FRAME[4] | 0x04]) + FRAME[5:],
        FRAME[:4] + bytes([FRAME[4] | 0x01]) + FRAME[5:],
        b"\x50\x2a\x4d\x18" + FRAME[4:],
        FRAME[:5],
        FRAME[:4] + bytes([FRAME[4] & 0x1F]) + FRAME[5:],  # no content size
    ):
        with pytest.raises(PayloadFrameError):
            check_frame_header(frame, raw_bytes=len(DATA), what="test")


@given(st.binary(max_size=200))
def test_random_bytes_raise_only_frame_errors(data: bytes) -> None:
    try:
        check_frame_header(data, raw_bytes=len(DATA), what="test")
        decoded(data, len(DATA))
    except PayloadFrameError:
        pass
