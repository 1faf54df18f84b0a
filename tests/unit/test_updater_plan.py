"""Which ranges of a pack are fetched, and where copies are looked for."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import Method, Unit
from tidewaiter_updater.plan import GAP_LIMIT_BYTES, HashLookup, Span, spans

SHA = bytes(32)


def units(*placed: tuple[int, int]) -> list[tuple[int, Unit]]:
    return [(chunk, Unit(offset, length, Method.ZSTD, SHA)) for chunk, (offset, length) in enumerate(placed)]


def joined(*placed: tuple[int, int], span_bytes: int = 10**6) -> list[tuple[int, int]]:
    return [(span.offset, span.length) for span in spans(units(*placed), span_bytes=span_bytes)]


def test_neighbors_are_fetched_together() -> None:
    assert joined((64, 100), (164, 50), (214, 1)) == [(64, 151)]


def test_a_gap_of_32_kib_is_fetched_and_one_byte_more_is_not() -> None:
    assert joined((0, 10), (10 + GAP_LIMIT_BYTES, 5)) == [(0, 15 + GAP_LIMIT_BYTES)]
    assert joined((0, 10), (11 + GAP_LIMIT_BYTES, 5)) == [(0, 10), (11 + GAP_LIMIT_BYTES, 5)]


def test_a_span_never_exceeds_its_limit() -> None:
    assert joined((0, 60), (60, 40), (100, 1), span_bytes=100) == [(0, 100), (100, 1)]


def test_nothing_wrong_needs_no_span() -> None:
    assert joined() == []


@given(st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 70_000)), max_size=60))
def test_every_unit_lies_whole_in_exactly_one_span(steps: list[tuple[int, int]]) -> None:
    placed = []
    end = 64
    for gap, length in steps:
        placed.append((end + gap, length))
        end += gap + length
    found = list(spans(units(*placed), span_bytes=200_000))
    assert [chunk for span in found for chunk in span.chunks] == list(range(len(placed)))
    for span in found:
        assert_holds(span, placed)


def assert_holds(span: Span, placed: list[tuple[int, int]]) -> None:
    assert span.length <= 200_000
    for chunk in span.chunks:
        offset, length = placed[chunk]
        assert span.offset <= offset and offset + length <= span.offset + span.length


@dataclass
class Table:
    hashes: list[bytes]
    image_root: Sha256 = field(default_factory=lambda: Sha256.of(b""))
    image_bytes: int = 0
    chunk_bytes: int = 4096
    chunk_count: int = field(init=False)

    def __post_init__(self) -> None:
        self.chunk_count = len(self.hashes)

    def chunk_hash(self, chunk: int) -> bytes:
        return self.hashes[chunk]


def digest(number: int) -> bytes:
    return hashlib.sha256(bytes([number])).digest()


def test_a_copy_is_looked_for_from_the_same_position_on() -> None:
    lookup = HashLookup(Table([digest(n) for n in (1, 2, 1, 3, 1)]))
    assert [lookup.first_at_or_after(digest(1), at) for at in range(6)] == [0, 2, 2, 4, 4, None]
    assert lookup.first_at_or_after(digest(9), 0) is None
