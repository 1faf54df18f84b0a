"""out/faults/crash-explorer.json, and what a person reads of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.faults.crash_explorer.campaign import Result
from tests.faults.crash_explorer.explorer import Figures

IMAGES_AT_LEAST = 20_000
SECONDS_AT_MOST = 180


def document(result: Result) -> dict[str, Any]:
    """The report as JSON values."""
    seconds = round(result.seconds, 1)
    return {
        "images": result.images,
        "violations": result.violations,
        "mutations": {name: how is not None for name, how in result.mutations.items()},
        "seconds": seconds,
        "processes": result.processes,
        "processor_seconds": round(result.processor_seconds, 1),
        "images_per_s": round(result.images / max(result.seconds, 0.001)),
        "budget": {
            "images_at_least": IMAGES_AT_LEAST,
            "seconds_at_most": SECONDS_AT_MOST,
            "is_met": result.images >= IMAGES_AT_LEAST and result.seconds <= SECONDS_AT_MOST,
        },
        "scenarios": {name: _scenario(figures) for name, figures in result.scenarios.items()},
        "shown_by": {name: how for name, how in result.mutations.items() if how is not None},
    }


def table(result: Result) -> str:
    """One line per story, for a terminal."""
    head = ("story", "operations", "images", "second cuts", "violations", "s")
    rows = [
        (
            name,
            str(one.points),
            str(one.first_cuts),
            str(one.second_cuts),
            str(one.violations),
            f"{one.seconds:.1f}",
        )
        for name, one in result.scenarios.items()
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    )


def _scenario(figures: Figures) -> dict[str, Any]:
    return {
        "steps": figures.points,
        "first_cut_images": figures.first_cuts,
        "second_cut_images": figures.second_cuts,
        "violations": figures.violations,
        "outcomes": dict(sum((one.outcomes for one in figures.operations), Counter())),
        "processor_seconds": round(figures.seconds, 1),
        "findings": [
            {"cut_after": list(finding.cuts), "image": finding.image, "text": finding.text}
            for finding in figures.findings
        ],
    }


def complaints(result: Result, *, is_whole: bool) -> list[str]:
    """Why this is no pass; empty if it is one.

    Args:
        is_whole: All scenarios were explored, so the number of images is a budget too.
    """
    found = [
        f"{finding.scenario}, power cut after {' and '.join(finding.cuts)}: {finding.text}"
        for figures in result.scenarios.values()
        for finding in figures.findings[:3]
    ]
    found += [f"mutation {name} was not found" for name, how in result.mutations.items() if how is None]
    if is_whole and result.images < IMAGES_AT_LEAST:
        found.append(f"{result.images} distinct images, at least {IMAGES_AT_LEAST} are wanted")
    return found
