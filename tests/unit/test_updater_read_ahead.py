"""Reading ahead of a copier: in order, out of order, past failures, and never into memory that somebody else uses."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_updater.device import SlotDevice, aligned_buffer
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.read_ahead import PIECE_BYTES, Foreseen, ReadAhead

from tests.sim.disk import BLOCK_BYTES, FaultyDisk

IMAGE = random.Random(1).randbytes(6 * PIECE_BYTES)
BLOCKS = len(IMAGE) // BLOCK_BYTES


@pytest.fixture
def disk() -> FaultyDisk:
    return FaultyDisk(len(IMAGE), content=IMAGE)


@pytest.fixture
def ahead(disk: FaultyDisk) -> Iterator[ReadAhead]:
    with ReadAhead(SlotDevice(disk)) as reader:
        yield reader


def read(ahead: ReadAhead, offset: int, length: int) -> bytes:
    with memoryview(aligned_buffer(length)) as view:
        ahead.read_into(view, offset)
        return bytes(view)


def foreseen(*spans: tuple[int, int]) -> Iterator[Foreseen]:
    return iter([Foreseen(offset, length, number) for number, (offset, length) in enumerate(spans)])


def test_a_foreseen_read_is_made_once_and_before_it_is_asked_for(ahead: ReadAhead, disk: FaultyDisk) -> None:
    ahead.foresee(foreseen((0, PIECE_BYTES), (PIECE_BYTES, PIECE_BYTES)))
    ahead.pass_to(0)
    assert read(ahead, 0, 3 * BLOCK_BYTES) == IMAGE[: 3 * BLOCK_BYTES]
    assert read(ahead, 3 * BLOCK_BYTES, PIECE_BYTES) == IMAGE[3 * BLOCK_BYTES :][:PIECE_BYTES]
    assert sorted(disk.reads) == [(0, PIECE_BYTES), (PIECE_BYTES, PIECE_BYTES)]


def test_an_unforeseen_read_is_made_at_once(ahead: ReadAhead) -> None:
    assert read(ahead, 5 * BLOCK_BYTES, BLOCK_BYTES) == IMAGE[5 * BLOCK_BYTES :][:BLOCK_BYTES]


def test_pieces_that_nobody_takes_make_room(ahead: ReadAhead) -> None:
    spans = [(block * BLOCK_BYTES, BLOCK_BYTES) for block in range(60)]
    ahead.foresee(foreseen(*spans))
    for chunk in range(60):
        ahead.pass_to(chunk)
    assert read(ahead, 59 * BLOCK_BYTES, BLOCK_BYTES) == IMAGE[59 * BLOCK_BYTES :][:BLOCK_BYTES]


def test_a_failed_read_is_made_again_for_whoever_wants_a_part_of_it(
    ahead: ReadAhead, disk: FaultyDisk
) -> None:
    disk.faults.read_errors = {1: errno.EIO}
    ahead.foresee(foreseen((0, 2 * BLOCK_BYTES), (4 * BLOCK_BYTES, BLOCK_BYTES)))
    ahead.pass_to(0)
    assert read(ahead, 0, BLOCK_BYTES) == IMAGE[:BLOCK_BYTES]
    assert read(ahead, 4 * BLOCK_BYTES, BLOCK_BYTES) == IMAGE[4 * BLOCK_BYTES :][:BLOCK_BYTES]


def test_what_cannot_be_read_fails_whoever_wants_it_and_nobody_else(
    ahead: ReadAhead, disk: FaultyDisk
) -> None:
    disk.faults.read_errors = {1: errno.EIO}
    with pytest.raises(SlotError):
        read(ahead, BLOCK_BYTES, BLOCK_BYTES)
    assert read(ahead, 2 * BLOCK_BYTES, BLOCK_BYTES) == IMAGE[2 * BLOCK_BYTES :][:BLOCK_BYTES]


def test_many_reads_are_all_made_or_raise(ahead: ReadAhead, disk: FaultyDisk) -> None:
    with memoryview(aligned_buffer(40 * BLOCK_BYTES)) as view:
        parts = [
            (view[number * BLOCK_BYTES :][:BLOCK_BYTES], (39 - number) * BLOCK_BYTES) for number in range(40)
        ]
        ahead.read_many(parts)
        for buffer, offset in parts:
            assert buffer == IMAGE[offset : offset + BLOCK_BYTES]
        disk.faults.read_errors = {7: errno.EIO}
        with pytest.raises(SlotError):
            ahead.read_many(parts)
        parts.clear()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 32)), max_size=30),
    st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 40), st.integers(0, 3)), max_size=30),
)
def test_whatever_was_foreseen_the_bytes_are_right(
    guesses: list[tuple[int, int]], wishes: list[tuple[int, int, int]]
) -> None:
    disk = FaultyDisk(len(IMAGE), content=IMAGE)
    with ReadAhead(SlotDevice(disk)) as ahead:
        spans = [(block * BLOCK_BYTES, min(count, BLOCKS - block) * BLOCK_BYTES) for block, count in guesses]
        ahead.foresee(foreseen(*spans))
        chunk = 0
        for block, count, step in wishes:
            chunk += step
            ahead.pass_to(chunk)
            length = min(count, BLOCKS - block) * BLOCK_BYTES
            assert read(ahead, block * BLOCK_BYTES, length) == IMAGE[block * BLOCK_BYTES :][:length]
