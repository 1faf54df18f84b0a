"""The strict JSON reader: each thing the standard parser lets through is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_core import strictjson
from tidewaiter_core.strictjson import StrictJsonError


def read(data: bytes) -> object:
    return strictjson.loads(data, limit_bytes=100_000, depth=8)


def test_ordinary_json_is_read() -> None:
    assert read('{"a":[1,2.5,null,true,"ü"]}'.encode()) == {"a": [1, 2.5, None, True, "ü"]}


@pytest.mark.parametrize(
    ("data", "finding"),
    [
        (b'{"a":1,"a":2}', "stands twice"),
        (b'[{"x":{"a":1,"a":1}}]', "stands twice"),
        (b"NaN", "NaN is not JSON"),
        (b'{"a":-Infinity}', "-Infinity is not JSON"),
        (b"[1e999]", "not finite"),
        (b'"\\ud800"', "surrogate"),
        (b'{"\\udfff":1}', "surrogate"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"{", "not JSON at character 1"),
        (b"", "not JSON"),
        (b"[[[[[[[[[1]]]]]]]]]", "deeper than 8"),
        (b"[" * 90_000, "deeper than 8"),
        (b"1" * 5000, "not usable JSON"),
        (b" " * 100_001, "100001 bytes, the limit is 100000"),
    ],
)
def test_what_has_no_single_meaning_is_refused_with_its_reason(data: bytes, finding: str) -> None:
    with pytest.raises(StrictJsonError, match=finding):
        read(data)


def test_nesting_up_to_the_depth_is_read() -> None:
    assert read(b"[[[[[[[[1]]]]]]]]") == [[[[[[[[1]]]]]]]]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_but_nothing_else_happens(data: bytes) -> None:
    try:
        read(data)
    except StrictJsonError:
        return
