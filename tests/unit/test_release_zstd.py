"""zstd as the formats need it: what the library forgives is refused here."""

from __future__ import annotations

import random
import shutil
import subprocess

import pytest
from tidewaiter_core.payload import PayloadFrameError
from tidewaiter_release import zstd

TEXT = b"contrast injector " * 300


def test_a_frame_round_trips_and_is_reproducible() -> None:
    frame = zstd.compress(TEXT, level=12)
    assert frame == zstd.compress(TEXT, level=12)
    assert zstd.decompress(frame, length=len(TEXT), what="chunk") == TEXT


def test_a_frame_has_its_content_size_and_neither_checksum_nor_dictionary_id() -> None:
    descriptor = zstd.compress(TEXT, level=12)[4]
    assert descriptor & 0b0000_0111 == 0  # checksum flag and dictionary id flag
    assert descriptor >> 6 or descriptor & 0b0010_0000  # content size field is there


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd program is not installed")
def test_the_zstd_program_decodes_a_frame() -> None:
    done = subprocess.run(
        ["zstd", "-dc"], input=zstd.compress(TEXT, level=12), capture_output=True, check=True
    )
    assert done.stdout == TEXT


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_truncated_frame_is_refused(cut: int) -> None:
    with pytest.raises(PayloadFrameError):
        zstd.decompress(zstd.compress(TEXT, level=12)[:-cut], length=len(TEXT), what="chunk")


def test_bytes_behind_the_frame_are_refused() -> None:
    with pytest.raises(PayloadFrameError, match="1 bytes left over"):
        zstd.decompress(zstd.compress(TEXT, level=12) + b"x", length=len(TEXT), what="chunk")


@pytest.mark.parametrize("length", [len(TEXT) - 1, len(TEXT) + 1])
def test_a_frame_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(PayloadFrameError):
        zstd.decompress(zstd.compress(TEXT, level=12), length=length, what="chunk")


def test_a_bomb_frame_stops_at_the_chunk_size() -> None:
    bomb = zstd.compress(bytes(64 * 1024 * 1024), level=12)
    with pytest.raises(PayloadFrameError) as caught:
        zstd.decompress(bomb, length=4096, what="chunk")
    assert "4097 of 4096" in str(caught.value) or "not a zstd frame" in str(caught.value)


def test_random_bytes_are_refused() -> None:
    rng = random.Random(1)
    for _ in range(50):
        with pytest.raises(PayloadFrameError):
            zstd.decompress(rng.randbytes(40), length=100, what="chunk")
