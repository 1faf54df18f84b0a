"""Decoding ahead of the writer: order, bounds, and what a wrong unit or a failing source does to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.fetcher import SPANS_AHEAD, Fetcher
from tidewaiter_updater.pack_units import PackUnits
from tidewaiter_updater.plan import TransferPlan
from tidewaiter_updater.stage import Control, Work
from tidewaiter_updater.supply import Meter
from tidewaiter_updater.unpacking import BATCH_BYTES, Unpacker

from tests.sim.packs import CHUNK_BYTES, MemorySource, Packed, packed, random_image

CHUNKS = 16 * 12  # twelve batches of incompressible chunks: six spans


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed(random_image(CHUNKS, seed=5), tmp_path_factory.mktemp("new"))


class Bench:
    """A plan that fetches everything, and what unpacks it."""

    def __init__(self, new: Packed, source: MemorySource) -> None:
        self.control = Control()
        plan = TransferPlan(new.index, bytearray(b"\1") * new.index.header.chunk_count, active=None)
        units = PackUnits(new.component, new.index, source, Meter(source), self.control.times)
        self.fetcher = Fetcher(source, units.path, plan.spans, self.control)
        self.unpacker = Unpacker(self.fetcher, units, chunk_bytes=CHUNK_BYTES, wait=lambda: None)

    def close(self) -> None:
        self.unpacker.close()
        self.fetcher.close()


@pytest.fixture
def bench(new: Packed) -> Iterator[Bench]:
    bench = Bench(new, MemorySource.of(new))
    yield bench
    bench.close()


def taken(bench: Bench) -> list[bytes | memoryview | None]:
    """Every chunk, None for one with wrong bytes."""
    found: list[bytes | memoryview | None] = []
    while len(found) < CHUNKS:
        found += bench.unpacker.next(len(found)) or [None]
    return found


def test_chunks_come_in_the_order_of_the_plan_and_are_the_image(new: Packed, bench: Bench) -> None:
    assert b"".join(content for content in taken(bench) if content is not None) == new.image


def test_chunks_come_in_runs_up_to_the_end_of_a_batch_and_chunk_0_alone(bench: Bench) -> None:
    first, second = bench.unpacker.next(0), bench.unpacker.next(1)
    assert first is not None and second is not None
    assert (len(first), len(second)) == (1, BATCH_BYTES // CHUNK_BYTES - 1)


def test_a_unit_with_other_bytes_is_nothing_and_its_neighbors_are_right(new: Packed) -> None:
    source = MemorySource.of(new)
    wrong = bytearray(new.pack)
    wrong[new.index.unit(17).offset] ^= 1
    source.targets[new.pack_target] = bytes(wrong)
    bench = Bench(new, source)
    found = taken(bench)
    bench.close()
    assert [chunk for chunk, content in enumerate(found) if content is None] == [17]


def test_no_more_than_two_spans_are_fetched_beyond_the_last_chunk_used(new: Packed) -> None:
    source = MemorySource.of(new)
    bench = Bench(new, source)
    bench.unpacker.next(0)
    assert len(source.spans) <= SPANS_AHEAD
    bench.close()


def test_a_source_that_fails_is_an_error_once_what_came_before_it_is_used(new: Packed) -> None:
    source = MemorySource.of(new)
    source.targets[new.pack_target] = new.pack[: len(new.pack) // 2]
    bench = Bench(new, source)
    used = 0
    with pytest.raises(SourceError):
        while used < CHUNKS:
            used += len(bench.unpacker.next(used) or ())
    bench.close()
    assert CHUNKS // 4 < used < CHUNKS


def test_a_chunk_out_of_turn_is_a_mistake_of_the_caller(bench: Bench) -> None:
    with pytest.raises(RuntimeError, match="asked for where the plan has 0"):
        bench.unpacker.next(1)


def test_closing_leaves_no_thread_and_the_work_was_timed(new: Packed, bench: Bench) -> None:
    bench.unpacker.next(0)
    bench.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("slot-")] == []
    seconds = bench.control.times.seconds()
    assert seconds[Work.HASH] > 0 and seconds[Work.WRITE] == 0
