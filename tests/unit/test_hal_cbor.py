"""The strict CBOR subset, also against cbor2 as an independent implementation."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tidewaiter_hal import cbor

LEAVES = st.one_of(
    st.integers(-(1 << 64), (1 << 64) - 1),
    st.binary(max_size=40),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.booleans(),
    st.none(),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(st.characters(codec="ascii"), max_size=6), inner, max_size=4),
    ),
    max_leaves=12,
)


def _depth(value: object) -> int:
    if isinstance(value, list):
        return 1 + max((_depth(item) for item in value), default=0)
    if isinstance(value, dict):
        return 1 + max((_depth(item) for item in value.values()), default=1)
    return 1


@given(VALUES.filter(lambda value: _depth(value) <= cbor.MAX_DEPTH))
def test_cbor_agrees_with_cbor2_on_the_subset(value: cbor.Encodable) -> None:
    encoded = cbor.encode(value)
    assert cbor2.loads(encoded) == value
    assert cbor.decode(encoded) == value
    assert cbor.decode(cbor2.dumps(value)) == value


@pytest.mark.parametrize(
    ("hex_bytes", "what"),
    [
        ("c074", "tag"),
        ("f97e00", "half float"),
        ("fb3ff0000000000000", "double"),
        ("f7", "undefined"),
        ("a2616101616102", "duplicate key"),
        ("a10102", "integer key"),
        ("0000", "trailing byte"),
        ("8181818100", "depth 5"),
        ("5f4101ff", "indefinite bytes"),
        ("7f6161ff", "indefinite text"),
        ("1c", "reserved length"),
        ("61ff", "no UTF-8"),
        ("9affffffff", "four billion elements"),
        ("5b7fffffffffffffff", "a string longer than memory"),
        ("", "nothing"),
        ("ff", "lonely break"),
        ("a1616e", "key without value"),
    ],
)
def test_cbor_refuses_tags_floats_duplicates_trailing_and_depth(hex_bytes: str, what: str) -> None:
    with pytest.raises(cbor.CborError):
        cbor.decode(bytes.fromhex(hex_bytes))


def test_cbor_accepts_indefinite_maps() -> None:
    assert cbor.decode(bytes.fromhex("bf616101616283ff")[:-2] + bytes.fromhex("9f0102ffff")) == {
        "a": 1,
        "b": [1, 2],
    }


@pytest.mark.parametrize(("size", "ok"), [(64, True), (65, False)])
def test_a_text_over_64_bytes_is_refused(size: int, ok: bool) -> None:
    encoded = cbor.encode("x" * size)
    if ok:
        assert cbor.decode(encoded) == "x" * size
    else:
        with pytest.raises(cbor.CborError):
            cbor.decode(encoded)


def test_more_than_256_items_are_refused() -> None:
    with pytest.raises(cbor.CborError):
        cbor.decode(cbor.encode([0] * 256))


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_raise_cbor_error_and_nothing_else(data: bytes) -> None:
    try:
        cbor.decode(data)
    except cbor.CborError:
        return
