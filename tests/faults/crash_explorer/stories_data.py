"""The stories of a release whose data have another schema: the step, its failures, what becomes of the earlier set."""

from __future__ import annotations

from tests.faults.crash_explorer.backends import Backend
from tests.faults.crash_explorer.data import empty_partition
from tests.faults.crash_explorer.invariants import End
from tests.faults.crash_explorer.releases import Made, made
from tests.faults.crash_explorer.scenario import Scenario, factory, without_state
from tests.faults.crash_explorer.world import Parts, World
from tests.sim.storage import Content

MONTH_S = 31 * 86_400.0
WITH_DATA = {"keeps_data": True}


def step() -> Made:
    """A release whose data have the next schema."""
    return made("2.0", 2, writes=2)


def last_step() -> Made:
    """The same, and the earlier release cannot come back."""
    return made("2.0", 2, writes=2, reversible=False)


def with_data(backend: Backend) -> Content:
    """A device in use: it made its set when it was new, and the product wrote into it."""
    story = Scenario(name="in use", tells="", end=End.COMMITS, backend=backend, given=WITH_DATA)
    world = story.world(empty_partition(factory(backend)), parts=Parts())
    world.power_on()
    world.work()
    world.power_cycle(orderly=True)
    return world.storage.content()


def forgiven(backend: Backend) -> Content:
    """A device on which the release with the next schema hung; the product went on, and service cleared the quarantine."""
    story = Scenario(
        name="hung",
        tells="",
        end=End.ROLLS_BACK,
        backend=backend,
        offered=step,
        given={**WITH_DATA, "hangs": True},
    )
    world = story.world(with_data(backend), parts=Parts())
    world.live()
    if world.data is not None:
        world.data.write()
    world.running().clear_quarantine(step().release.digest)
    world.work()
    world.power_cycle(orderly=True)
    return world.storage.content()


def and_a_month(world: World) -> None:
    """The update, and the days after which its earlier set is not needed any more."""
    world.live()
    world.clock.advance(MONTH_S)
    world.work()


def first_boot(world: World) -> None:
    """A new device is switched on for the first time, then it is updated."""
    world.power_on()
    world.work()
    world.live()


DATA_STORIES: tuple[Scenario, ...] = (
    Scenario(
        name="data step",
        tells="The new release has another data schema: the device copies its data, migrates the copy and starts with it.",
        end=End.COMMITS,
        offered=step,
        base=with_data,
        given=WITH_DATA,
    ),
    Scenario(
        name="data step on a new device",
        tells="A device makes its first data set, and is updated to a release with another schema on the same day.",
        end=End.COMMITS,
        offered=step,
        base=lambda backend: empty_partition(factory(backend)),
        play=first_boot,
        given=WITH_DATA,
    ),
    Scenario(
        name="data step that cannot be undone",
        tells="The earlier release cannot read the new data; a month after the update the earlier set is removed.",
        end=End.COMMITS,
        offered=last_step,
        base=with_data,
        play=and_a_month,
        given=WITH_DATA,
    ),
    Scenario(
        name="data step that fails",
        tells="The migration program fails: the device goes back to the earlier release and to untouched data.",
        end=End.ROLLS_BACK,
        offered=step,
        base=with_data,
        given={**WITH_DATA, "migration_fails": True},
    ),
    Scenario(
        name="data step, hanging trial",
        tells="The data are migrated, then the new release hangs: the earlier one goes on with its own data.",
        end=End.ROLLS_BACK,
        offered=step,
        base=with_data,
        given={**WITH_DATA, "hangs": True},
    ),
    Scenario(
        name="data step, second attempt",
        tells="The release hung once and was rolled back. Its second attempt must not use the copy of the first.",
        end=End.COMMITS,
        offered=step,
        base=forgiven,
        given=WITH_DATA,
    ),
    Scenario(
        name="data step that cannot be undone, lost state directory",
        tells="The updater forgets everything in the cut, and still never lets the release boot that cannot read the data.",
        end=End.COMMITS,
        offered=last_step,
        base=with_data,
        given=WITH_DATA,
        after_cut=without_state,
    ),
)
