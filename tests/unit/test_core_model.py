"""Slot names and digests."""

from __future__ import annotations

import pytest
from tidewaiter_core.model import Sha256, SlotName

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_other_slot_of_a_is_b_and_back() -> None:
    assert SlotName.A.other is SlotName.B
    assert SlotName.B.other is SlotName.A


def test_a_digest_equals_its_text() -> None:
    assert Sha256.of(b"") == EMPTY
    assert Sha256.parse(EMPTY) == EMPTY
    assert {Sha256.of(b""): 1}[EMPTY] == 1  # type: ignore[index]


def test_raw_and_text_are_the_same_digest() -> None:
    assert len(Sha256.of(b"x").raw) == 32
    assert Sha256.from_raw(Sha256.of(b"x").raw) == Sha256.of(b"x")


@pytest.mark.parametrize(
    "text", ["", EMPTY[:-1], EMPTY + "0", EMPTY.upper(), EMPTY[:-1] + "g", EMPTY + "\n", "٣" * 64]
)
def test_another_spelling_is_no_digest(text: str) -> None:
    with pytest.raises(ValueError, match="expected 64 lower-case hexadecimal digits"):
        Sha256.parse(text)


def test_the_message_about_a_bad_digest_has_one_line() -> None:
    with pytest.raises(ValueError) as caught:
        Sha256.parse("a\nb\x1b[2J" + "x" * 1000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250
