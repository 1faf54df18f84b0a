"""Chunks made ahead and hashed meanwhile: in order, only right ones given out, errors and damage when their turn comes."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_core.model import Sha256
from tidewaiter_updater.errors import RouteClosedError
from tidewaiter_updater.made_ahead import BATCH_BYTES, BATCHES, MadeAhead
from tidewaiter_updater.plan import Origin

SIZE = 64 * 1024
PER_BATCH = BATCH_BYTES // SIZE
CHUNKS = 3 * BATCHES * PER_BATCH
IMAGE = random.Random(4).randbytes(CHUNKS * SIZE - SIZE // 2)  # the last chunk is short


def right(chunk: int) -> bytes:
    return IMAGE[chunk * SIZE : (chunk + 1) * SIZE]


class Table:
    """The hashes of IMAGE."""

    image_root = Sha256.of(IMAGE)
    image_bytes = len(IMAGE)
    chunk_bytes = SIZE
    chunk_count = CHUNKS

    def chunk_hash(self, number: int) -> bytes:
        return hashlib.sha256(right(number)).digest()


class Bench:
    def __init__(self, *, wanted: set[int] | None = None) -> None:
        self.wanted = set(range(CHUNKS)) if wanted is None else wanted
        self.wrong: set[int] = set()
        self.lost: set[int] = set()
        self.made: list[int] = []
        self.fetched: list[int] = []
        self.failure: dict[int, Exception] = {}
        self.copies: dict[int, int] = {}
        """Chunks that are made out of an earlier one that was not taken yet."""
        self.origin: Callable[[int], Origin] = lambda chunk: Origin.COPY
        self.ahead = MadeAhead(Table(), self._next, make=self._make, replace=self._fetched)

    def _next(self, chunk: int) -> int | None:
        return min((one for one in self.wanted if one >= chunk), default=None)

    def _make(self, chunk: int, out: memoryview) -> Origin | None:
        if error := self.failure.get(chunk):
            raise error
        self.made.append(chunk)
        if chunk in self.lost:
            return None
        if (earlier := self.copies.get(chunk)) is not None:
            content = self.ahead.content(earlier)
            assert content is not None
            assert bytes(content) == right(earlier)
        out[:] = right(chunk)
        if chunk in self.wrong:
            out[7] ^= 1
        return self.origin(chunk)

    def _fetched(self, chunk: int) -> bytes:
        self.fetched.append(chunk)
        return right(chunk)

    def run(self) -> list[tuple[int, Origin]]:
        """Take everything; each chunk and where it is from."""
        taken: list[tuple[int, Origin]] = []
        chunk = self._next(0)
        while chunk is not None:
            supplied = self.ahead.take(chunk)
            assert supplied.data is not None
            for content in (supplied.data, *supplied.following):
                assert bytes(content) == right(chunk)
                taken.append((chunk, supplied.origin))
                chunk += 1
            chunk = self._next(chunk)
        return taken


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.ahead.close()


def test_chunks_come_in_order_and_are_made_once(bench: Bench) -> None:
    assert [chunk for chunk, _ in bench.run()] == bench.made == list(range(CHUNKS))
    assert bench.ahead.replaced == 0


def test_no_more_is_made_ahead_than_there_is_room_for(bench: Bench) -> None:
    bench.ahead.take(0)
    assert len(bench.made) == BATCHES * PER_BATCH
    bench.ahead.take(PER_BATCH)
    assert len(bench.made) == (BATCHES + 1) * PER_BATCH


def test_chunks_nobody_wants_are_not_made_and_end_a_run() -> None:
    bench = Bench(wanted={0, 1, 5, 6, 7, CHUNKS - 1})
    assert [chunk for chunk, _ in bench.run()] == bench.made == [0, 1, 5, 6, 7, CHUNKS - 1]
    bench.ahead.close()


def test_a_run_has_chunks_of_one_origin(bench: Bench) -> None:
    bench.origin = lambda chunk: Origin.PATCH if chunk % 5 == 0 else Origin.COPY
    assert bench.run() == [(chunk, bench.origin(chunk)) for chunk in range(CHUNKS)]


def test_a_chunk_that_comes_out_wrong_is_never_given_out_and_replaced_in_its_turn(bench: Bench) -> None:
    bench.wrong, bench.lost = {3, PER_BATCH, 2 * PER_BATCH - 1}, {4, CHUNKS - 1}
    bench.ahead.take(0)
    assert set(bench.fetched) <= set(range(PER_BATCH))  # what is further ahead is not fetched yet
    again = Bench()
    again.wrong, again.lost = bench.wrong, bench.lost
    origins = dict(again.run())
    assert again.fetched == sorted(again.wrong | again.lost)
    assert {chunk for chunk, origin in origins.items() if origin is Origin.PACK} == again.wrong | again.lost
    assert again.ahead.replaced == 5
    again.ahead.close()


def test_an_error_comes_when_everything_before_it_was_taken(bench: Bench) -> None:
    failing = PER_BATCH + 3
    bench.failure = {failing: RouteClosedError("gone")}
    for chunk in (0, PER_BATCH):
        bench.ahead.take(chunk)
    assert bench.made == list(range(failing))
    with pytest.raises(RouteClosedError):
        bench.ahead.take(failing)
    with pytest.raises(RouteClosedError):  # and again: nothing is made behind it
        bench.ahead.take(failing)
    assert bench.made == list(range(failing))


def test_an_error_at_the_first_chunk_is_raised_at_once(bench: Bench) -> None:
    bench.failure = {0: RouteClosedError("gone")}
    with pytest.raises(RouteClosedError):
        bench.ahead.take(0)


def test_a_chunk_that_repeats_one_not_yet_taken_finds_it_proven(bench: Bench) -> None:
    bench.copies = {2: 1, PER_BATCH: 1, PER_BATCH + 1: PER_BATCH}  # of its own batch, and of the one before
    bench.wrong = {1}
    bench.run()
    assert bench.fetched == [1]  # once, although it is wanted three times
    assert bench.ahead.replaced == 1


def test_what_was_taken_or_is_not_made_is_not_found(bench: Bench) -> None:
    bench.ahead.take(0)
    assert bench.ahead.content(0) is None
    assert bench.ahead.content(PER_BATCH) is not None
    assert bench.ahead.content(BATCHES * PER_BATCH) is None


def test_a_chunk_out_of_turn_is_a_defect_and_not_given_out(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="chunk 1 was asked for where 0 is next"):
        bench.ahead.take(1)


def test_no_thread_is_left_behind() -> None:
    before = threading.active_count()
    with Bench().ahead as ahead:
        ahead.take(0)
    assert threading.active_count() == before


@settings(max_examples=30, deadline=None)
@given(
    wanted=st.sets(st.integers(0, CHUNKS - 1)),
    wrong=st.sets(st.integers(0, CHUNKS - 1), max_size=9),
    lost=st.sets(st.integers(0, CHUNKS - 1), max_size=9),
    modulus=st.integers(1, 9),
)
def test_whatever_goes_wrong_the_image_comes_out(
    wanted: set[int], wrong: set[int], lost: set[int], modulus: int
) -> None:
    bench = Bench(wanted=wanted)
    bench.wrong, bench.lost = wrong, lost
    bench.origin = lambda chunk: Origin.PATCH if chunk % modulus else Origin.COPY
    assert [chunk for chunk, _ in bench.run()] == sorted(wanted)
    assert bench.fetched == sorted((wrong | lost) & wanted)
    bench.ahead.close()
