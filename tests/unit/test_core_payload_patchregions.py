"""Region runs of a patch: one spelling for each prefix, and nothing outside the old image."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core.payload.errors import PayloadError
from tidewaiter_core.payload.patchmap import encode_number
from tidewaiter_core.payload.patchregions import MAX_RUN_BYTES, decode_regions, encode_regions, region_runs


@given(st.sets(st.integers(0, 300)))
def test_region_numbers_round_trip_as_runs(numbers: set[int]) -> None:
    data = encode_regions(region_runs(sorted(numbers)))
    runs = decode_regions(data, count=len(numbers), whole=301)
    assert [run.first + number for run in runs for number in range(run.regions)] == sorted(numbers)
    assert len(data) <= MAX_RUN_BYTES * len(numbers)
    assert all(two.first > one.first + one.regions for one, two in pairwise(runs))


def test_a_run_costs_two_bytes_whatever_its_length() -> None:
    assert len(encode_regions(region_runs(range(100, 200)))) == 2
    assert len(encode_regions(region_runs([100, 201]))) == 4


@pytest.mark.parametrize(
    "numbers",
    [
        (0, 0),  # empty
        (3, 0),  # empty, behind a gap
        (0, 2, 0, 1),  # touches the run before it
        (8, 3),  # leaves the image
        (2**34, 3),
        (0, 4),  # one too many
        (0, 2),  # one too few
        (0, 3, 1),  # half a run
    ],
)
def test_runs_that_are_not_canonical_or_not_in_the_image_are_refused(numbers: tuple[int, ...]) -> None:
    data = b"".join(map(encode_number, numbers))
    with pytest.raises(PayloadError) as caught:
        decode_regions(data, count=3, whole=10)
    assert caught.value.code == "payload.map"


@given(st.binary(max_size=24), st.integers(0, 8))
def test_whatever_is_accepted_is_what_the_encoder_writes(data: bytes, count: int) -> None:
    try:
        runs = decode_regions(data, count=count, whole=40)
    except PayloadError as err:
        assert err.code == "payload.map"
    else:
        numbers = [run.first + number for run in runs for number in range(run.regions)]
        assert len(numbers) == count
        assert encode_regions(runs) == encode_regions(region_runs(numbers)) == data
