"""What a benchmark says: figures, the bounds they are held to, and how they were made. Written as out/bench/NAME.json."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

RSS_BUDGET_BYTES: Final = 64 << 20


class Verdict(StrEnum):
    """How a figure stands to its bound."""

    HELD = "held"
    MISSED = "missed"
    NOT_BINDING = "not binding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """One bound of update-engine.md 17.3 and the figure beside it."""

    what: str
    value: float
    bound: float
    is_minimum: bool
    """The figure must be at least the bound; else at most."""
    unit: str = "x"
    not_binding: str = ""
    """Why the bound does not apply to this run."""

    @property
    def verdict(self) -> Verdict:
        if self.not_binding:
            return Verdict.NOT_BINDING
        holds = self.value >= self.bound if self.is_minimum else self.value <= self.bound
        return Verdict.HELD if holds else Verdict.MISSED

    def as_text(self) -> str:
        """Figure and bound with their unit."""
        return f"{self._number(self.value)} ({'>=' if self.is_minimum else '<='} {self._number(self.bound)})"

    def _number(self, value: float) -> str:
        if self.unit == "bytes":
            return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value:,.0f} bytes"
        return f"{value:.2f} {self.unit}"


@dataclass(slots=True, kw_only=True)
class Result:
    """One benchmark."""

    name: str
    title: str
    commands: list[str] = field(default_factory=list)
    """What was run, with PLACES in capitals: enough to run it by hand."""
    peers: dict[str, str] = field(default_factory=dict)
    """Program and version."""
    pairs: list[dict[str, Any]] = field(default_factory=list)
    """Each alternating run, raw."""
    medians: dict[str, dict[str, float]] = field(default_factory=dict)
    """What was compared, by peer: {"min": , "median": , "max": }."""
    bars: dict[str, float] = field(default_factory=dict)
    """For the picture: one number per competitor."""
    bars_unit: str = "MB/s"
    stage_shares: dict[str, float] = field(default_factory=dict)
    """Share of each kind of work in the time of all threads, of 1."""
    stage_seconds: dict[str, float] = field(default_factory=dict)
    budgets: list[Budget] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What was not measured, and what is missing for it."""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def is_held(self) -> bool:
        return all(budget.verdict is not Verdict.MISSED for budget in self.budgets)

    def write(self, folder: Path) -> None:
        """out/bench/NAME.json"""
        document = asdict(self)
        document["budgets"] = [{**asdict(budget), "verdict": budget.verdict.value} for budget in self.budgets]
        document["verdict"] = "not measured" if not self.budgets else "held" if self.is_held else "missed"
        (folder / f"{self.name}.json").write_text(json.dumps(document, indent=2) + "\n")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Smallest, middle and largest of some runs."""
    return {
        "min": round(min(values), 3),
        "median": round(statistics.median(values), 3),
        "max": round(max(values), 3),
    }
