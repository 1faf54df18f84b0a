"""Ranges, strict bodies and rates, without a network."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_server.artifacts import choose_span
from tidewaiter_server.errors import Refusal
from tidewaiter_server.limits import Buckets, read_json

from tests.sim.clock import FakeClock


@given(first=st.integers(0, 2000), length=st.integers(1, 2000), size=st.integers(1, 1000))
def test_a_range_is_always_inside_the_file_or_416(first: int, length: int, size: int) -> None:
    try:
        span = choose_span(f"bytes={first}-{first + length - 1}", size)
    except Refusal as refusal:
        assert refusal.status == 416
        assert first >= size
        return
    assert span is not None
    assert span.first == first
    assert span.last == min(first + length - 1, size - 1)


@given(text=st.text(max_size=40))
def test_any_range_header_is_a_span_the_whole_file_or_a_refusal(text: str) -> None:
    try:
        span = choose_span(text, 100)
    except Refusal as refusal:
        assert refusal.status in (400, 416)
        return
    assert span is None or 0 <= span.first <= span.last < 100


def test_a_body_with_too_many_keys_is_refused() -> None:
    body = b"{" + b",".join(b'"k%d":1' % number for number in range(1001)) + b"}"
    with pytest.raises(Refusal, match="1000 keys"):
        read_json(body)


def test_a_nul_in_a_key_is_refused() -> None:
    with pytest.raises(Refusal, match="NUL"):
        read_json(b'{"a\\u0000":1}')


@given(data=st.binary(max_size=200))
def test_no_body_raises_anything_but_a_refusal(data: bytes) -> None:
    try:
        read_json(data)
    except Refusal as refusal:
        assert refusal.status == 400


def test_a_bucket_refills_with_time() -> None:
    clock = FakeClock()
    buckets = Buckets(clock, rate_per_s=10, burst=3)
    for _ in range(3):
        buckets.take("a")
    with pytest.raises(Refusal) as refused:
        buckets.take("a")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})
    buckets.take("b")
    clock.advance(0.1)
    buckets.take("a")
