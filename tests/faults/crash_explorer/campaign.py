"""All scenarios on all processors, and the mutations after them."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.faults.crash_explorer.explorer import Effort, Explorer, Figures
from tests.faults.crash_explorer.mutations import MUTATIONS, find
from tests.faults.crash_explorer.scenarios import SCENARIOS, Scenario
from tests.faults.crash_explorer.seen import Seen

SHARES = 4
SAY_EVERY_S = 2.0

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
    processor_seconds: float
    """Of all processes: on a busy machine the time that says something."""
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
    progress = Progress(say)
    mutations = [mutation.name for mutation in MUTATIONS] if with_mutations else []
    shares = [
        _Task(scenario.name, replace(effort, share=share, shares=SHARES))
        for scenario in scenarios
        for share in range(SHARES)
    ]
    Random(1).shuffle(shares)  # so that the time that is left can be told from the time that has passed
    tasks: list[_Task | str] = [*mutations, *shares]
    figures = {scenario.name: Figures() for scenario in scenarios}
    shown: dict[str, str | None] = {}
    for scenario in scenarios:
        scenario.circumstances(is_first=True)  # builds its releases, for all processes
    gc.collect()
    gc.freeze()
    with multiprocessing.get_context("fork").Pool(processes, initializer=_be_quiet) as pool:
        for done in pool.imap_unordered(_done, tasks):
            if isinstance(done, _Shown):
                shown[done.mutation] = done.how
            else:
                figures[done.scenario].add(done.figures)
            progress.tell(done.text, of=len(tasks), images=sum(one.booted for one in figures.values()))
        pool.close()
        pool.join()
    return Result(
        images=len(_seen),
        scenarios=figures,
        mutations={name: shown[name] for name in mutations},
        seconds=progress.seconds,
        processor_seconds=_processor_seconds(),
        processes=processes,
    )


def _processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def named(words: Iterable[str]) -> list[Scenario]:
    """The scenarios whose name contains one of `words`; all of them without any."""
    wanted = list(words)
    return [one for one in SCENARIOS if not wanted or any(word in one.name for word in wanted)]


class Progress:
    """Says how far the campaign is and how long it will still take."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._began = time.monotonic()
        self._done = 0
        self._said_s = 0.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def tell(self, text: str, *, of: int, images: int) -> None:
        """One more piece is done; said about once a second, and whenever there is bad news."""
        self._done += 1
        is_bad = text.endswith("!")
        if not is_bad and self._done < of and self.seconds - self._said_s < SAY_EVERY_S:
            return
        self._said_s = self.seconds
        left_s = self.seconds / self._done * (of - self._done)
        self._say(
            f"{self._done:4} of {of}, {images:6} images, {self.seconds:4.0f} s, about {left_s:3.0f} s left: {text}"
        )


@dataclass(frozen=True)
class _Explored:
    scenario: str
    figures: Figures

    @property
    def text(self) -> str:
        bad = self.figures.violations
        return f"{self.scenario}: {bad} VIOLATIONS!" if bad else self.scenario


@dataclass(frozen=True)
class _Shown:
    mutation: str
    how: str | None

    @property
    def text(self) -> str:
        return f"mutation {self.mutation} found" if self.how else f"mutation {self.mutation} NOT FOUND!"


def _be_quiet() -> None:
    """The updater says much about broken storage, and here all storage is broken."""
    logging.disable(logging.CRITICAL)
    gc.disable()  # each task cleans up once, at its end


def _done(task: _Task | str) -> _Explored | _Shown:
    try:
        if isinstance(task, str):
            return _Shown(task, find(next(mutation for mutation in MUTATIONS if mutation.name == task)))
        scenario = next(one for one in SCENARIOS if one.name == task.scenario)
        return _Explored(task.scenario, Explorer(scenario, seen=_seen, effort=task.effort).run())
    finally:
        gc.collect()
