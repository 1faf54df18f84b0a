"""What storage may hold after a power cut: the images of one point of a log.

Up to 8 pending units: every subset. More: all prefixes, all but one, only one, and 64 seeded subsets. On top of that each unit
(at most 8 of them) may be torn, garbage or unreadable, behind those that were issued before it or among all others.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from tests.sim.storage import Content, Point, Unit
from tests.sim.storage.content import content_of

ALL_SUBSETS_UNITS = 8
SEEDED_SUBSETS = 64
SPOILED_UNITS = 8


def images(point: Point) -> Iterator[Content]:
    """Every content that a cut at `point` may leave; some may be equal."""
    for kept in subsets(point.pending):
        state = dict(point.state)
        for unit in kept:
            unit.apply(state)
        yield content_of(state)


def subsets(pending: tuple[Unit, ...]) -> Iterator[Iterable[Unit]]:
    """The units that happened to become durable, in the order in which they are applied."""
    if not pending:
        yield ()
        return
    count = len(pending)
    if count <= ALL_SUBSETS_UNITS:
        for mask in range(1 << count):
            yield [unit for number, unit in enumerate(pending) if mask >> number & 1]
    else:
        yield from _some_subsets(pending)
    yield from _spoiled(pending)


def _some_subsets(pending: tuple[Unit, ...]) -> Iterator[Iterable[Unit]]:
    count = len(pending)
    for length in range(count + 1):
        yield pending[:length]
    for number in range(count):
        yield pending[:number] + pending[number + 1 :]
        yield pending[number : number + 1]
    rng = random.Random(count)
    for _ in range(SEEDED_SUBSETS):
        mask = rng.getrandbits(count)
        yield [unit for number, unit in enumerate(pending) if mask >> number & 1]


def _spoiled(pending: tuple[Unit, ...]) -> Iterator[Iterable[Unit]]:
    numbers: Iterable[int] = range(len(pending))
    if len(pending) > SPOILED_UNITS:
        numbers = sorted(random.Random(len(pending)).sample(range(len(pending)), SPOILED_UNITS))
    for number in numbers:
        for spoiled in pending[number].spoiled():
            yield (*pending[:number], spoiled)
            if number + 1 < len(pending):
                yield (*pending[:number], spoiled, *pending[number + 1 :])
