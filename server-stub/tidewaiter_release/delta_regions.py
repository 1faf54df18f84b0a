"""Which regions of the old image are most like a segment of literals: the prefix that the segment is compressed behind.

Both images are sampled by content: the 8-byte values, at every byte offset, whose product with a constant has its top bits
zero (one in 256). A value that few old regions share votes for them, and so does the neighborhood: what is between two copied
runs mostly was between them before (5 % off the patches of real images). The regions with most votes, in image order, are the
prefix. A region has the size of a block: with large ones a segment of many small changes fills its prefix with what merely lies
beside (such segments are up to 60 % smaller now).

Two more come along while there is room. The rest of areas that have many votes in all, but few in each region: there code was
compiled anew (2 % of a patch). And what lies in a narrow gap between two chosen runs: a device reads one run faster than two.

Memory is about 12 bytes per sample, 50 MiB for 1 GiB; above 4 GiB samples get rarer, so that it stays under 256 MiB.

Source: update-engine.md section 4.4, encoder; docs/adr/0013.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tidewaiter_release.image import ImageFile

_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_VALUE_BYTES = 8
_SAMPLE_BITS = 8
_FULL_RATE_BYTES = 4 * 1024**3
_WINDOW_BYTES = 8 * 1024**2
_MOST_REGIONS = 8
"""A value in more regions than this says nothing about any of them."""
_AREA = 16
"""Regions; 64 KiB."""
_WIDEST_BRIDGE = 8
"""By measurement it halves the reads of a device; wider ones only fill its memory."""

Values = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class RegionIndex:
    """The sampled values of an image: each pair of a value and a region that holds it, sorted."""

    values: Values
    regions: NDArray[np.uint32]
    bits: int
    whole_regions: int

    def best(
        self,
        data: bytes,
        guesses: Sequence[int] = (),
        *,
        most: int,
        least: float = 0.0,
        least_around: float = math.inf,
    ) -> tuple[int, ...]:
        """The up to `most` regions that share most with `data`, ascending.

        Args:
            guesses: Regions that are likely for another reason; each has the weight of one rare value.
            least: Regions with no more votes are left out at first: reading them costs a device more than they save.
            least_around: While there is room they come along where sixteen neighbors together have more votes than this.
        """
        votes = self._votes(data, guesses)
        ranked = np.lexsort((np.arange(len(votes)), -votes))[:most]
        chosen = {int(region) for region in ranked if votes[region] > max(0.0, least)}
        for first in _areas(votes, least_around):
            if len(chosen) == most:
                break
            others = [
                region for region in range(first, min(first + _AREA, len(votes))) if region not in chosen
            ]
            chosen.update(others[: most - len(chosen)])
        return _bridged(sorted(chosen), room=most - len(chosen))

    def _votes(self, data: bytes, guesses: Sequence[int]) -> NDArray[np.float64]:
        """For each region how much of `data` is likely in it."""
        votes = np.zeros(self.whole_regions)
        wanted = np.unique(sample(data, bits=self.bits)[0])
        low = np.searchsorted(self.values, wanted, side="left")
        counts = np.searchsorted(self.values, wanted, side="right") - low
        low, counts = low[counts > 0], counts[counts > 0]
        if len(low):
            # Every place of every run [low, low + count): the run's start, repeated, plus 0, 1, 2 ... within it.
            ends = np.cumsum(counts)
            places = np.repeat(low - (ends - counts), counts) + np.arange(ends[-1])
            votes += np.bincount(
                self.regions[places], weights=np.repeat(1.0 / counts, counts), minlength=self.whole_regions
            )
        likely = [region for region in guesses if region < self.whole_regions]
        if likely:
            votes += np.bincount(np.array(likely), minlength=self.whole_regions)
        return votes


def _areas(votes: NDArray[np.float64], least: float) -> Iterator[int]:
    """The first region of each area with more than `least` votes, most votes first."""
    if not len(votes):
        return
    sums = np.add.reduceat(votes, np.arange(0, len(votes), _AREA))
    for area in np.argsort(-sums, kind="stable"):
        if sums[area] <= least:
            return
        yield int(area) * _AREA


def _bridged(chosen: Sequence[int], *, room: int) -> tuple[int, ...]:
    """The chosen regions and the narrow gaps between them, the narrowest first."""
    gaps = sorted((after - before - 1, before) for before, after in pairwise(chosen))
    added: list[int] = []
    for width, before in gaps:
        if width > min(_WIDEST_BRIDGE, room - len(added)):
            break
        added += range(before + 1, before + 1 + width)
    return tuple(sorted([*chosen, *added]))


def index_regions(image: ImageFile, *, progress: Callable[[int], None] = lambda done: None) -> RegionIndex:
    """Sample a whole image.

    Args:
        progress: Called with the bytes done.
    """
    region_bytes = image.limits.region_bytes
    whole = image.image_bytes // region_bytes * region_bytes
    bits = sample_bits(image.image_bytes)
    parts: list[tuple[Values, NDArray[np.uint32]]] = []
    for start in range(0, whole, _WINDOW_BYTES):
        # Values that begin in this window and end in the next belong here, too.
        length = min(_WINDOW_BYTES + _VALUE_BYTES - 1, whole - start)
        values, places = sample(image.read(start, length), bits=bits)
        regions = ((places + start) // region_bytes).astype(np.uint32)
        parts.append(_distinct(values, regions))
        progress(min(start + _WINDOW_BYTES, whole))
    if not parts:
        return RegionIndex(np.empty(0, np.uint64), np.empty(0, np.uint32), bits, whole // region_bytes)
    values, regions = _distinct(
        np.concatenate([values for values, _ in parts]), np.concatenate([regions for _, regions in parts])
    )
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    rare = counts[inverse] <= _MOST_REGIONS
    return RegionIndex(values[rare], regions[rare], bits, whole // region_bytes)


def sample_bits(image_bytes: int) -> int:
    """How many top bits must be zero, so that samples of an image of this size fit in memory."""
    bits = _SAMPLE_BITS
    while image_bytes > _FULL_RATE_BYTES << (bits - _SAMPLE_BITS):
        bits += 1
    return bits


def sample(data: bytes, *, bits: int) -> tuple[Values, NDArray[np.int64]]:
    """The sampled values of `data` and the byte offsets where they begin."""
    values: list[Values] = []
    places: list[NDArray[np.int64]] = []
    for shift in range(min(_VALUE_BYTES, max(0, len(data) - _VALUE_BYTES + 1))):
        count = (len(data) - shift) // _VALUE_BYTES
        here = np.frombuffer(data, dtype="<u8", count=count, offset=shift)
        chosen = np.nonzero((here * _FACTOR >> np.uint64(64 - bits)) == 0)[0]
        chosen = chosen[here[chosen] != 0]
        values.append(here[chosen])
        places.append(chosen * _VALUE_BYTES + shift)
    if not values:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.concatenate(values), np.concatenate(places)


def _distinct(values: Values, regions: NDArray[np.uint32]) -> tuple[Values, NDArray[np.uint32]]:
    """Each pair once, sorted by value, then region."""
    order = np.lexsort((regions, values))
    values, regions = values[order], regions[order]
    fresh = np.ones(len(values), dtype=bool)
    fresh[1:] = (values[1:] != values[:-1]) | (regions[1:] != regions[:-1])
    return values[fresh], regions[fresh]
