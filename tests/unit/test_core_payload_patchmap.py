"""The map of a patch: what it can say, and everything it must not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core.payload.errors import PayloadError, PayloadMapError
from tidewaiter_core.payload.patchmap import (
    Kind,
    MapEncoder,
    Run,
    decode_numbers,
    decode_runs,
    encode_number,
)

OLD_BLOCKS = 32


def runs(raw: bytes, *, new: int, old: int = OLD_BLOCKS, literals: int = 0) -> list[Run]:
    return list(decode_runs([raw], old_blocks=old, new_blocks=new, literal_blocks=literals))


def item(kind: Kind, count: int, operand: int | None = None) -> bytes:
    return encode_number(count << 2 | kind) + (b"" if operand is None else encode_number(operand))


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[Kind, int]]:
    plan: list[tuple[Kind, int]] = []
    for place in range(draw(st.integers(1, 60))):
        kinds = [Kind.ZERO, Kind.OLD, Kind.LITERAL] + [Kind.NEW] * (place > 0)
        kind = draw(st.sampled_from(kinds))
        high = {Kind.OLD: OLD_BLOCKS - 1, Kind.NEW: place - 1}.get(kind, 0)
        plan.append((kind, draw(st.integers(0, high))))
    return plan


@given(plans(), st.integers(1, 7))
def test_a_map_gives_back_what_was_put_in_however_it_is_cut_into_pieces(
    plan: list[tuple[Kind, int]], piece: int
) -> None:
    encoder = MapEncoder()
    for kind, source in plan:
        encoder.add(kind, source)
    raw = encoder.finish()
    pieces = [raw[at : at + piece] for at in range(0, len(raw), piece)]
    found: list[tuple[Kind, int]] = []
    literal = 0
    for run in decode_runs(
        pieces, old_blocks=OLD_BLOCKS, new_blocks=len(plan), literal_blocks=encoder.literal_blocks
    ):
        assert run.target == len(found)
        if run.kind == Kind.LITERAL:
            assert run.source == literal
            literal += run.blocks
        for number in range(run.blocks):
            has_source = run.kind in (Kind.OLD, Kind.NEW)
            found.append((Kind(run.kind), run.source + number if has_source else 0))
    assert found == [(kind, source if kind in (Kind.OLD, Kind.NEW) else 0) for kind, source in plan]


def test_continued_runs_cost_one_item() -> None:
    encoder = MapEncoder()
    for block in range(30):
        encoder.add(Kind.OLD, block)
    assert encoder.finish() == item(Kind.OLD, 30, 0)


@pytest.mark.parametrize(
    ("raw", "new"),
    [
        (item(Kind.OLD, 1, 2 * OLD_BLOCKS), 1),  # the block behind the last
        (item(Kind.OLD, OLD_BLOCKS + 1, 0), OLD_BLOCKS + 1),  # one block more than there are
        (item(Kind.OLD, 1, 1), 1),  # before the first
        (item(Kind.OLD, 2, 0) + item(Kind.OLD, 1, 2 * (OLD_BLOCKS - 2)), 3),  # relative to the run before
        (item(Kind.NEW, 1, 1), 1),  # nothing was made yet
        (item(Kind.ZERO, 1) + item(Kind.NEW, 1, 0), 2),  # itself
        (item(Kind.ZERO, 1) + item(Kind.NEW, 1, 2), 2),  # before the image
    ],
)
def test_map_that_reads_past_old_or_ahead_in_new_is_refused(raw: bytes, new: int) -> None:
    with pytest.raises(PayloadMapError):
        runs(raw, new=new)


@pytest.mark.parametrize(
    ("raw", "new", "literals"),
    [
        (b"", 1, 0),  # too short
        (item(Kind.ZERO, 2), 1, 0),  # too long
        (item(Kind.ZERO, 1) * 2, 1, 0),
        (item(Kind.ZERO, 0) + item(Kind.ZERO, 1), 1, 0),  # a run of nothing
        (item(Kind.LITERAL, 1), 1, 0),  # a literal that no segment has
        (item(Kind.LITERAL, 1), 1, 2),  # a literal that is left over
        (item(Kind.OLD, 1), 1, 0),  # no operand
        (b"\x84", 1, 0),  # cut off inside a number
        (b"\x84\x00", 1, 0),  # a padded number
        (b"\x84\x80\x80\x80\x80\x00", 1, 0),  # six bytes
        (item(Kind.ZERO, 2**30), 1, 0),
    ],
)
def test_a_map_that_does_not_fit_image_or_literals_is_refused(raw: bytes, new: int, literals: int) -> None:
    with pytest.raises(PayloadMapError):
        runs(raw, new=new, literals=literals)


def test_a_new_run_may_overlap_its_own_source() -> None:
    raw = item(Kind.LITERAL, 1) + item(Kind.NEW, 5, 1)
    assert runs(raw, new=6, literals=1)[1] == Run(Kind.NEW, 1, 5, 0)


@given(st.binary(max_size=80), st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_random_maps_raise_only_payload_errors_and_never_leave_their_images(
    raw: bytes, old: int, new: int, literals: int
) -> None:
    try:
        for run in decode_runs([raw], old_blocks=old, new_blocks=new, literal_blocks=literals):
            assert run.blocks > 0
            assert run.target + run.blocks <= new
            bound = {Kind.OLD: old, Kind.LITERAL: literals, Kind.NEW: run.target + run.blocks - 1}
            assert 0 <= run.source <= bound.get(Kind(run.kind), run.blocks) - run.blocks
    except PayloadError:
        pass


@given(st.integers(0, 2**35 - 1))
def test_numbers_round_trip(value: int) -> None:
    assert list(decode_numbers([encode_number(value)], what="test")) == [value]
