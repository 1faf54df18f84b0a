"""All scenarios on all processors, and the mutations after them."""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from tests.faults.crash_explorer.explorer import Effort, Explorer, Figures
from tests.faults.crash_explorer.mutations import MUTATIONS, find
from tests.faults.crash_explorer.scenarios import SCENARIOS, Scenario
from tests.faults.crash_explorer.seen import Seen

SHARES = 4

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a campaign found."""

    images: int
    """Distinct pairs of circumstances and image that were booted."""
    scenarios: dict[str, Figures]
    mutations: dict[str, str | None]
    """How each mistake was shown, None if it was not."""
    seconds: float
    processes: int

    @property
    def violations(self) -> int:
        return sum(figures.violations for figures in self.scenarios.values())


@dataclass(frozen=True)
class _Task:
    scenario: str
    effort: Effort


_seen = Seen()
"""Made before the processes fork, so that they share it."""


def run(
    scenarios: Sequence[Scenario],
    *,
    effort: Effort,
    processes: int,
    with_mutations: bool,
    say: Say = lambda text: None,
) -> Result:
    """Explore `scenarios`; one campaign per process of the interpreter, because what was seen is remembered."""
    began = time.monotonic()
    tasks = [
        _Task(scenario.name, replace(effort, share=share, shares=SHARES))
        for scenario in scenarios
        for share in range(SHARES)
    ]
    mutations = [mutation.name for mutation in MUTATIONS] if with_mutations else []
    figures = {scenario.name: Figures() for scenario in scenarios}
    shown: dict[str, str | None] = {}
    for scenario in scenarios:
        scenario.circumstances(is_first=True)  # builds its releases, for all processes
    with multiprocessing.get_context("fork").Pool(processes, initializer=_be_quiet) as pool:
        for number, (name, part) in enumerate(pool.imap_unordered(_explored, tasks), start=1):
            figures[name].add(part)
            say(_line(number, len(tasks), name, part))
        for name, how in pool.imap_unordered(_mutated, mutations):
            shown[name] = how
            say(f"mutation {name}: {how or 'NOT FOUND'}")
    return Result(
        images=len(_seen),
        scenarios=figures,
        mutations={name: shown[name] for name in mutations},
        seconds=time.monotonic() - began,
        processes=processes,
    )


def named(words: Iterable[str]) -> list[Scenario]:
    """The scenarios whose name contains one of `words`; all of them without any."""
    wanted = list(words)
    return [one for one in SCENARIOS if not wanted or any(word in one.name for word in wanted)]


def _be_quiet() -> None:
    """The updater says much about broken storage, and here all storage is broken."""
    logging.disable(logging.CRITICAL)


def _explored(task: _Task) -> tuple[str, Figures]:
    scenario = next(one for one in SCENARIOS if one.name == task.scenario)
    return task.scenario, Explorer(scenario, seen=_seen, effort=task.effort).run()


def _mutated(name: str) -> tuple[str, str | None]:
    return name, find(next(mutation for mutation in MUTATIONS if mutation.name == name))


def _line(number: int, count: int, name: str, part: Figures) -> str:
    found = f", {part.violations} VIOLATIONS" if part.violations else ""
    return f"{number:3}/{count} {name}: {part.first_cuts} + {part.second_cuts} images, {part.seconds:.1f} s{found}"
