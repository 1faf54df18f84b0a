"""All targets, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tests.fuzz.target import Target, require
from tests.fuzz.targets import boot, patches, payload, replies, state

TARGETS: Final[Mapping[str, Target]] = MappingProxyType(
    {
        target.name: target
        for target in (
            *payload.TARGETS,
            *patches.TARGETS,
            *boot.TARGETS,
            *state.TARGETS,
            *replies.TARGETS,
        )
    }
)


def _defect(data: bytes) -> bool:
    require(data[:1] != b"W", "the seeded defect")
    return True


SEEDED_DEFECT: Final = Target(
    name="seeded-defect",
    what="proves that a finding is found",
    run=_defect,
    refusals=(),
    seeds=lambda: [b"V"],
    max_bytes=4,
)
"""Not among the targets: a test attacks it, to see the fuzzer notice."""


def by_name(name: str) -> Target:
    """A target; KeyError if there is none."""
    return SEEDED_DEFECT if name == SEEDED_DEFECT.name else TARGETS[name]
