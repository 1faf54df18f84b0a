"""Cuts a story at every step, boots what is left, cuts the recovery again, and says what went wrong."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tidewaiter_updater.journal import Journal
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.state_files import StateFiles

from tests.faults.crash_explorer.cuts import images
from tests.faults.crash_explorer.invariants import (
    End,
    check_end,
    check_image,
    check_tries,
    expected,
    tries_to_come,
)
from tests.faults.crash_explorer.outcome import Outcome
from tests.faults.crash_explorer.scenarios import Scenario
from tests.faults.crash_explorer.seen import Seen
from tests.faults.crash_explorer.watch import DEVICES, Facts, slot_blocks
from tests.faults.crash_explorer.world import BOOT_LIMIT, SOUND, STATE, Parts, World
from tests.sim.device import Violation
from tests.sim.storage import Content, Point, SimDisk, Storage, fingerprint

FINDINGS_KEPT = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A violation, and where the power went."""

    scenario: str
    cuts: tuple[str, ...]
    """The step after which the power went, once per cut."""
    text: str
    image: str = ""


@dataclass(kw_only=True)
class Operation:
    """One step of a story: what devices did whose power went right after it."""

    label: str
    phase: str
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    """Images that were first possible here."""
    second_cuts: int = 0


@dataclass(kw_only=True)
class Figures:
    """What the exploration of one scenario did."""

    operations: list[Operation] = field(default_factory=list)
    first_cuts: int = 0
    """Distinct images of the story; other stories may have led to them as well."""
    second_cuts: int = 0
    """Images that were first met in a recovery of this story."""
    booted: int = 0
    """Distinct images that nobody had booted before, in the story or in a recovery."""
    violations: int = 0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def points(self) -> int:
        return len(self.operations)

    def add(self, other: Figures) -> None:
        """Take in what another share of the same scenario did."""
        if not self.operations:
            self.operations = other.operations
        else:
            for own, more in zip(self.operations, other.operations, strict=True):
                own.outcomes += more.outcomes
                own.second_cuts += more.second_cuts
        self.first_cuts += other.first_cuts
        self.second_cuts += other.second_cuts
        self.booted += other.booted
        self.violations += other.violations
        self.findings = (self.findings + other.findings)[:FINDINGS_KEPT]
        self.seconds += other.seconds


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much of a scenario is explored."""

    share: int = 0
    shares: int = 1
    """Images whose fingerprint falls to this share, of so many."""
    first_in: int = 1
    """One of so many images of the story is booted."""
    second_in: int = 4
    """One of so many steps of each recovery is cut, other steps for other images; 0 for none."""
    stop_at_first: bool = False


@dataclass(frozen=True)
class _Image:
    """A distinct content that a cut left."""

    content: Content
    mark: int
    facts: Facts
    label: str
    number: int
    """Of the step in its log."""


class Explorer:
    """One scenario with one make of updater."""

    def __init__(
        self, scenario: Scenario, *, seen: Seen, parts: Parts = SOUND, effort: Effort | None = None
    ) -> None:
        self._scenario = scenario
        self._seen = seen
        self._parts = parts
        self._effort = effort or Effort()
        self._figures = Figures()
        self._aftermath = scenario.aftermath
        given = scenario.circumstances(is_first=False)
        self._known = {made.blocks: made for made in given.known}

    def run(self) -> Figures:
        """Explore; never raises for what the updater does."""
        began = time.process_time()
        with contextlib.suppress(_Found):
            self._explore()
        self._figures.seconds = time.process_time() - began
        return self._figures

    def _explore(self) -> None:
        story = self._told()
        first = {image.mark: image for image in self._images(story)}
        self._figures.operations = [Operation(label=point.label, phase=point.facts.phase) for point in story]
        own = [image for image in first.values() if self._is_own(image.mark)]
        for image in own:  # cheap, and it is what most mistakes show in: before anything is booted
            with self._noting((image.label,), image.mark):
                self._check(image)
        for image in own:
            self._cut_once(image)

    def _is_own(self, mark: int) -> bool:
        effort = self._effort
        return mark % effort.first_in == 0 and mark // effort.first_in % effort.shares == effort.share

    def _cut_once(self, image: _Image) -> None:
        """Boot an image unless another story led to it, and cut its recovery."""
        cuts, before = (image.label,), self._figures.violations
        is_new = self._seen.boots(self._aftermath, image.mark)
        self._figures.first_cuts += 1
        self._figures.booted += is_new
        if self._effort.second_in == 0:
            if is_new:
                self._recovered(image, cuts, is_recorded=False)
        elif self._seen.cuts(self._aftermath, image.mark):
            self._cut_again(self._recovered(image, cuts, is_recorded=True), cuts, image)
        outcome = self._seen.outcome_of(self._aftermath, image.mark)
        if self._figures.violations > before:
            outcome = Outcome.WRONG
        if outcome is not None:  # None: another process is at work on the same image
            self._figures.operations[image.number].outcomes[outcome] += 1

    def _told(self) -> list[Point]:
        """The story without a cut; what it recorded even if it went wrong."""
        world = self._scenario.world(
            self._scenario.base(self._scenario.backend), parts=self._parts, is_first=True
        )
        with self._noting(("no cut",)):
            self._scenario.play(world)
        return world.storage.points

    def _images(self, points: list[Point]) -> Iterator[_Image]:
        """Every image of a log that is distinct within it, changed as the scenario asks."""
        marks: set[int] = set()
        for number, point in enumerate(points):
            for left in images(point):
                content = self._scenario.after_cut(left)
                mark = fingerprint(content)
                if mark not in marks:
                    marks.add(mark)
                    yield _Image(content, mark, point.facts.facts, point.label, number)

    def _cut_again(self, points: list[Point], cuts: tuple[str, ...], first: _Image) -> None:
        every = self._effort.second_in
        chosen = [point for number, point in enumerate(points) if (first.mark + number) % every == 0]
        for image in self._images(chosen):
            if self._seen.boots(self._aftermath, image.mark):
                self._figures.second_cuts += 1
                self._figures.booted += 1
                self._figures.operations[first.number].second_cuts += 1
                both = (*cuts, image.label)
                with self._noting(both, image.mark):
                    self._check(image)
                self._recovered(image, both, is_recorded=False)

    def _check(self, image: _Image) -> None:
        check_image(
            image.content,
            image.facts,
            backend=self._scenario.backend,
            images=self._known,
            keeps_promises=self._scenario.keeps_promises,
        )

    def _recovered(self, image: _Image, cuts: tuple[str, ...], *, is_recorded: bool) -> list[Point]:
        """Boot an image and let it live; returns the log of that."""
        scenario = self._scenario
        points: list[Point] = []
        with self._noting(cuts, image.mark):
            world = scenario.world(image.content, parts=self._parts, is_recorded=is_recorded)
            points = world.storage.points
            _expect_resumption(world, image.content)
            self._live(world, image.mark)
        return points

    def _live(self, world: World, mark: int) -> None:
        """To a good end, or to a power-on from which another device came to its good end; remembered for the next one."""
        scenario = self._scenario
        passed: list[tuple[int, int]] = []
        known: list[int] = []

        def is_known() -> bool:
            content = world.storage.content()
            now = fingerprint(content)
            boots = self._seen.boots_from(self._aftermath, now)
            passed.append((now, world.boots))
            self._check_passed(world, content)
            if boots is None or not self._has_tries(world):
                return False
            known.append(boots)
            return True

        if world.live(is_known=is_known):
            check_end(
                world,
                scenario.end,
                home=scenario.home,
                has_journal=scenario.has_journal,
                extra_tries=scenario.extra_tries,
            )
        boots = world.boots + sum(known)
        if boots > BOOT_LIMIT:
            raise Violation(f"not at rest after {BOOT_LIMIT} boots: {world.in_force()}")
        self._seen.prove(self._aftermath, mark, boots=boots, outcome=world.first_act)
        for content_mark, before in passed:
            self._seen.prove(self._aftermath, content_mark, boots=boots - before)
            # What a device was switched on with in between is an image as well, whoever cut the power there.
            self._figures.booted += self._seen.boots(self._aftermath, content_mark)

    def _check_passed(self, world: World, content: Content) -> None:
        """What storage holds between two boots of one life keeps all that was promised before."""
        facts, backend = world.watch.facts, self._scenario.backend
        check_image(content, facts, backend=backend, images=self._known, keeps_promises=True)

    def _has_tries(self, world: World) -> bool:
        """Whether the boots that another life took from here are allowed in this one; False if that is not known."""
        if expected(self._scenario.end, world) is End.COMMITS:
            return True
        to_come = tries_to_come(world)
        if to_come is None:
            return False
        check_tries(world, self._scenario.extra_tries, to_come=to_come)
        return True

    def _noting(self, cuts: tuple[str, ...], mark: int = 0) -> _Noting:
        return _Noting(self, cuts, mark)

    def note(self, cuts: tuple[str, ...], mark: int, text: str) -> None:
        """Keep a violation."""
        self._figures.violations += 1
        if len(self._figures.findings) < FINDINGS_KEPT:
            self._figures.findings.append(
                Finding(scenario=self._scenario.name, cuts=cuts, text=text, image=f"{mark:032x}")
            )
        if self._effort.stop_at_first:
            raise _Found


class _Found(Exception):
    """One violation is enough."""


class _Noting:
    """Context in which whatever goes wrong is a violation."""

    def __init__(self, explorer: Explorer, cuts: tuple[str, ...], mark: int) -> None:
        self._explorer = explorer
        self._cuts = cuts
        self._mark = mark

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None or not isinstance(error, Exception) or isinstance(error, _Found):
            return False
        text = str(error)
        if not isinstance(error, Violation):
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"the updater died: {type(error).__name__}: {error} ({where.filename.rpartition('/')[2]}:{where.lineno})"
        self._explorer.note(self._cuts, self._mark, text)
        return True


def _expect_resumption(world: World, content: Content) -> None:
    """Interrupted work resumes: a block that is right is not written again, if the journal says what it is part of."""
    journal = Journal(StateFiles(STATE, disk=SimDisk(Storage(content, is_recorded=False))))
    entry, env = journal.entry(), world.began_with
    if entry is None or entry.closed or env is None or env.is_ok(entry.target) or env.trial is not None:
        return
    if entry.phase in (Phase.OFFERED, Phase.WAIT_CONSENT) or entry.target is env.committed:
        return
    made = world.given.offered
    if entry.digest != made.release.digest or journal.release_bytes(entry.digest) is None:
        return
    found = slot_blocks(content, entry.target)
    bad = {key[2] for key in content if key[0] == "bad" and key[1] == DEVICES[entry.target]}
    if bad:
        return
    right = frozenset(
        number for number, block in enumerate(made.blocks) if number > 0 and found[number] == block
    )
    world.watch.must_not_rewrite(entry.target, right)
