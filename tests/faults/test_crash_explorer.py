"""A short walk through every story of the crash explorer, and each seeded mistake; `make faults` walks all of it."""

import logging
from collections.abc import Iterator

import pytest

from tests.faults.crash_explorer.data import sets_in
from tests.faults.crash_explorer.explorer import Effort, Explorer
from tests.faults.crash_explorer.mutations import MUTATIONS, Mutation, find
from tests.faults.crash_explorer.scenarios import SCENARIOS, Scenario
from tests.faults.crash_explorer.seen import Seen
from tests.faults.crash_explorer.world import SOUND

SHORT = Effort(first_in=16, second_in=0)
DEEP = Effort(first_in=64, second_in=32)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The updater says much about broken storage."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@pytest.mark.req("UP-16")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_power_cut_at_any_storage_operation_is_survived(scenario: Scenario) -> None:
    figures = Explorer(scenario, seen=Seen(), effort=SHORT).run()
    assert figures.findings == []
    assert figures.points > 30


@pytest.mark.req("UP-16")
@pytest.mark.parametrize("name", ["epoch raise", "failing health", "lost journal"])
def test_a_second_power_cut_during_the_recovery_is_survived(name: str) -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == name)
    figures = Explorer(scenario, seen=Seen(), effort=DEEP).run()
    assert figures.findings == []
    assert figures.second_cuts > 0


def test_the_story_of_a_patch_goes_by_the_patch() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario.name == "patch")
    world = scenario.world(scenario.base(scenario.backend), parts=SOUND, is_first=True)
    scenario.play(world)
    kept = [key[1] for key in world.storage.content() if key[0] == "file"]
    assert any(name.endswith(".twph") for name in kept)


def test_the_story_of_a_data_step_that_cannot_be_undone_ends_without_the_earlier_set() -> None:
    scenario = next(one for one in SCENARIOS if one.name == "data step that cannot be undone")
    world = scenario.world(scenario.base(scenario.backend), parts=SOUND, is_first=True)
    scenario.play(world)
    world.power_cycle(orderly=True)
    assert sets_in(world.storage.content()) == ["2"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_seeded_mistake_is_found(mutation: Mutation) -> None:
    assert find(mutation) is not None
