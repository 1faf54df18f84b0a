"""The regions section of a patch: which regions of the old image are in front of a segment, as runs, both ways.

Per segment, pairs of unsigned LEB128 numbers: regions left out since the end of the run before, regions in this run. A prefix
follows the content of the old image, so a run of a hundred regions and one of a single region both cost two or three bytes.
Canonical, so that one prefix has one spelling: no run is empty, and only the first may start where the one before it ends.

Source: update-engine.md section 4.4, docs/adr/0013.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from tidewaiter_core.payload.errors import PayloadMapError
from tidewaiter_core.payload.patchmap import decode_numbers, encode_number

MAX_RUN_BYTES = 10
"""Two numbers of five bytes."""
_WHAT = "patch: regions"


class RegionRun(NamedTuple):
    """Neighboring regions of the old image."""

    first: int
    regions: int


def region_runs(numbers: Sequence[int]) -> Iterator[RegionRun]:
    """Region numbers that strictly ascend, neighbors together."""
    at = 0
    while at < len(numbers):
        stop = at + 1
        while stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1:
            stop += 1
        yield RegionRun(numbers[at], stop - at)
        at = stop


def encode_regions(runs: Iterable[RegionRun]) -> bytes:
    """The section's bytes for one segment."""
    out = bytearray()
    end = 0
    for run in runs:
        out += encode_number(run.first - end) + encode_number(run.regions)
        end = run.first + run.regions
    return bytes(out)


def decode_regions(data: bytes, *, count: int, whole: int) -> tuple[RegionRun, ...]:
    """The runs of one segment, which have `count` regions in all.

    Args:
        whole: Regions that the old image has; a part of one at its end does not count.

    Raises:
        PayloadMapError: A run is empty, touches the one before it, or leaves the image; or they have another number of regions.
    """
    runs: list[RegionRun] = []
    end = found = 0
    numbers = decode_numbers((data,), what=_WHAT)
    for gap in numbers:
        length = next(numbers, 0)
        first = end + gap
        end = first + length
        found += length
        if not length or (runs and not gap) or end > whole or found > count:
            raise PayloadMapError(
                f"{_WHAT}: {length} from region {first} on, of {whole} whole ones, {found} of {count} so far; refused"
            )
        runs.append(RegionRun(first, length))
    if found != count:
        raise PayloadMapError(f"{_WHAT}: {found} regions, the segment says {count}; the release is refused")
    return tuple(runs)
