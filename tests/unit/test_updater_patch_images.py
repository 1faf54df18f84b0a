"""What a patch will read of the running slot, foretold in few large reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_core.payload.patchmap import Kind, Run
from tidewaiter_updater.patch_images import foreseen_reads
from tidewaiter_updater.read_ahead import PIECE_BYTES

BLOCK = 4096
PER_CHUNK = 16
PATCH: Any = SimpleNamespace(
    limits=SimpleNamespace(block_bytes=BLOCK), header=SimpleNamespace(chunk_bytes=PER_CHUNK * BLOCK)
)


def runs_of(*copied: tuple[Kind, int, int]) -> list[Run]:
    """Kind, blocks, source; one behind the other in the target."""
    runs: list[Run] = []
    for kind, blocks, source in copied:
        runs.append(Run(kind, sum(run.blocks for run in runs), blocks, source))
    return runs


def reads(runs: list[Run], wanted: bytearray | None = None) -> list[tuple[int, int, int]]:
    """First block, blocks, last chunk."""
    chunks = sum(run.blocks for run in runs) // PER_CHUNK + 1
    found = foreseen_reads(PATCH, iter(runs), wanted if wanted is not None else bytearray(b"\1" * chunks))
    return [(one.offset // BLOCK, one.length // BLOCK, one.last_chunk) for one in found]


def test_runs_a_short_gap_apart_are_one_read() -> None:
    runs = runs_of((Kind.OLD, 10, 100), (Kind.LITERAL, 3, 0), (Kind.OLD, 20, 113))
    assert reads(runs) == [(100, 33, 2)]


def test_a_longer_gap_or_a_step_back_begins_another_read() -> None:
    runs = runs_of((Kind.OLD, 4, 100), (Kind.OLD, 4, 109), (Kind.OLD, 4, 50))
    assert reads(runs) == [(100, 4, 0), (109, 4, 0), (50, 4, 0)]


def test_chunks_that_are_right_already_are_not_read() -> None:
    runs = runs_of((Kind.OLD, 3 * PER_CHUNK, 0))
    assert reads(runs, bytearray([1, 0, 1])) == [(0, 16, 0), (32, 16, 2)]


@settings(max_examples=200, deadline=None)
@given(
    copied=st.lists(
        st.tuples(st.sampled_from([Kind.OLD, Kind.LITERAL, Kind.ZERO]), st.integers(1, 200), st.integers(0, 999)),
        max_size=12,
    ),
    data=st.data(),
)  # fmt: skip
def test_every_copied_block_is_foreseen_in_order_and_no_read_is_too_large(
    copied: list[tuple[Kind, int, int]], data: st.DataObject
) -> None:
    runs = runs_of(*copied)
    chunks = sum(run.blocks for run in runs) // PER_CHUNK + 1
    wanted = bytearray(data.draw(st.lists(st.integers(0, 1), min_size=chunks, max_size=chunks)))
    found = reads(runs, wanted)
    assert all(0 < blocks * BLOCK <= PIECE_BYTES for _, blocks, _ in found)
    at = 0
    for run in runs:
        for number in range(run.blocks if run.kind is Kind.OLD else 0):
            block, chunk = run.source + number, (run.target + number) // PER_CHUNK
            if wanted[chunk]:
                # A piece is dropped when its last chunk is passed.
                while not (found[at][0] <= block < found[at][0] + found[at][1] and found[at][2] >= chunk):
                    at += 1
