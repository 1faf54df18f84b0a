"""Every code that the updater can show has advice for the person who reads it."""

import re
from pathlib import Path

import tidewaiter_updater
from tidewaiter_updater.advice import WHAT_TO_DO, what_to_do

FAMILIES = "source|trust|release|slot|boot|update|health"
LITERAL = re.compile(rf"code(?:: ClassVar\[str\])? ?= ?\"((?:{FAMILIES})\.[a-z-]+)\"")


def codes_in_the_source() -> set[str]:
    files = Path(tidewaiter_updater.__file__).parent.rglob("*.py")
    return {code for file in files for code in LITERAL.findall(file.read_text(encoding="utf-8"))}


def test_every_code_has_advice() -> None:
    codes = codes_in_the_source()
    assert len(codes) > 25
    assert codes - set(WHAT_TO_DO) == set()


def test_advice_is_a_sentence_for_a_person() -> None:
    for code, text in WHAT_TO_DO.items():
        assert text.endswith("."), code
        assert len(text) <= 140, code


def test_a_code_of_another_component_gets_a_neutral_sentence() -> None:
    assert what_to_do("net.tls-verify") == "Try again. If it repeats, report the code to service."
