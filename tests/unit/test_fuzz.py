"""The fuzz targets without the fuzzer: kept inputs are replayed, seeds mean something, and a defect is noticed."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fuzz import __main__ as fuzz
from tests.fuzz.corpus import kept
from tests.fuzz.target import FindingError, Target, require
from tests.fuzz.targets import SEEDED_DEFECT, TARGETS

_EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))


@_EACH
def test_every_kept_input_is_accepted_or_refused_in_the_right_way(target: Target) -> None:
    for path in kept(target):
        target.accepts(path.read_bytes())


@_EACH
def test_each_target_accepts_one_of_its_seeds_at_least(target: Target) -> None:
    assert any(target.accepts(data) for data in target.seeds())


@_EACH
def test_seeds_with_changed_bytes_are_accepted_or_refused_in_the_right_way(target: Target) -> None:
    rng = random.Random(target.name)
    seeds = list(target.seeds())
    for _ in range(150):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        target.accepts(bytes(data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.2 else data))


@_EACH
def test_every_target_has_a_kept_corpus(target: Target) -> None:
    assert list(kept(target)), "make fuzz ARGS='--keep' makes it"


def test_an_exception_that_is_no_refusal_is_a_finding() -> None:
    broken = replace(TARGETS["pack"], run=lambda data: bool(data[99]))
    with pytest.raises(IndexError):
        broken.accepts(b"short")


def test_a_broken_property_is_a_finding_even_where_any_refusal_would_do() -> None:
    def run(data: bytes) -> bool:
        require(len(data) == 0, "too long")
        return True

    with pytest.raises(FindingError, match="too long"):
        replace(TARGETS["trust-reply"], run=run).accepts(b"x")


@pytest.mark.integration
@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris has no build for this Python"
)
def test_the_fuzzer_finds_a_seeded_defect_and_keeps_the_input(tmp_path: Path) -> None:
    result = fuzz.attack(SEEDED_DEFECT, seconds=30, seed=1, out=tmp_path)
    assert "FindingError" in result.finding
    assert Path(result.input).read_bytes()[:1] == b"W"
