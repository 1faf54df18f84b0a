"""What a fuzz target is, and the properties they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


class FindingError(Exception):
    """A property that must hold for every input does not: the fuzzer keeps the input that shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser under attack."""

    name: str
    what: str
    """In a few words, for the table."""
    run: Callable[[bytes], bool]
    """Feed one input; True if accepted. Raises one of `refusals` for bytes it rightly refuses; any other error is a finding."""
    refusals: tuple[type[Exception], ...]
    """How this parser says no."""
    seeds: Callable[[], Iterable[bytes]]
    """Sound inputs, made by the product's own builders; at least one is accepted."""
    max_bytes: int = 4096
    """Longest input that is tried."""
    modules: tuple[str, ...] = field(default=())
    """Modules whose branches guide the fuzzer."""

    def accepts(self, data: bytes) -> bool:
        """Run one input; True accepted, False refused in the right way. Everything else leaves as an exception."""
        try:
            return self.run(data)
        except self.refusals:
            return False


def require(holds: bool, finding: str) -> None:
    """Raise FindingError unless a property holds."""
    if not holds:
        raise FindingError(finding)
