"""One frame, exactly the promised bytes, or an error: the library itself raises nothing for most of these."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from tidewaiter_core.payload import PayloadFrameError
from tidewaiter_release.zstd import compress
from tidewaiter_updater.zstd import decode_chunk

CHUNK = random.Random(4).randbytes(16 * 1024) * 4


def decoded(stored: bytes, *, raw_bytes: int = len(CHUNK)) -> bytes:
    return decode_chunk(stored, raw_bytes=raw_bytes, chunk_bytes=64 * 1024, what="pack: chunk 7")


@pytest.mark.parametrize("length", [4096, 60 * 1024, 64 * 1024])
def test_a_frame_gives_its_chunk(length: int) -> None:
    assert decoded(compress(CHUNK[:length], level=12), raw_bytes=length) == CHUNK[:length]


def test_a_frame_cut_anywhere_is_refused() -> None:
    frame = compress(CHUNK, level=3)
    for end in [*range(40), len(frame) // 2, len(frame) - 1]:
        with pytest.raises(PayloadFrameError):
            decoded(frame[:end])


@pytest.mark.parametrize("tail", [b"x", b"\0", compress(b"", level=1), compress(CHUNK, level=1)])
def test_bytes_behind_the_frame_are_refused(tail: bytes) -> None:
    with pytest.raises(PayloadFrameError):
        decoded(compress(CHUNK, level=3) + tail)


@pytest.mark.parametrize("raw_bytes", [len(CHUNK) - 1, len(CHUNK) - 4096, 4096])
def test_a_frame_longer_than_the_chunk_is_refused(raw_bytes: int) -> None:
    with pytest.raises(PayloadFrameError):
        decoded(compress(CHUNK, level=3), raw_bytes=raw_bytes)


def test_bomb_frame_stops_at_the_chunk_size() -> None:
    bomb = compress(bytes(256 * 1024 * 1024), level=1)
    tracemalloc.start()
    with pytest.raises(PayloadFrameError):
        decoded(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1024 * 1024


@pytest.mark.parametrize("stored", [b"", b"garbage", b"\x28\xb5\x2f\xfd"])
def test_what_is_no_frame_is_refused(stored: bytes) -> None:
    with pytest.raises(PayloadFrameError):
        decoded(stored)
