"""Devices that have a past: what storage holds when a story begins."""

from __future__ import annotations

from collections.abc import Callable

from tidewaiter_core.model import SlotName
from tidewaiter_updater.phases import Phase

from tests.faults.crash_explorer.backends import Backend
from tests.faults.crash_explorer.invariants import End
from tests.faults.crash_explorer.releases import Made, made
from tests.faults.crash_explorer.scenario import Scenario, factory, until_canceled
from tests.faults.crash_explorer.watch import DEVICES
from tests.faults.crash_explorer.world import Parts
from tests.sim.storage import Content
from tests.sim.storage.content import content_of


def after_first_update(backend: Backend, offered: Callable[[], Made] = lambda: made("2.0", 2)) -> Content:
    """A device that was updated once: 2.0 runs in slot B, records and hash tables exist."""
    story = Scenario(name="first update", tells="", end=End.COMMITS, backend=backend, offered=offered)
    world = story.world(factory(backend), parts=Parts())
    world.live()
    return world.storage.content()


def half_written(backend: Backend) -> Content:
    """A device whose power went in the middle of the transfer, two of four chunks on storage."""
    story = Scenario(name="cut", tells="", end=End.COMMITS, backend=backend)
    world = story.world(factory(backend), parts=Parts())
    world.live()
    target = DEVICES[SlotName.B]
    writes = [point for point in world.storage.points if point.label == f"write {target}"]
    point = writes[1]
    state = dict(point.state)
    own = [unit for unit in point.pending if getattr(unit, "device", "") == target]
    for unit in own[: len(own) // 2]:
        unit.apply(state)
    return content_of(state)


def staged_and_canceled(backend: Backend) -> Content:
    """A device whose other slot already holds the image that will be offered."""
    story = Scenario(
        name="canceled",
        tells="",
        end=End.COMMITS,
        backend=backend,
        at_first={"cancel_in": Phase.STAGED},
    )
    world = story.world(factory(backend), parts=Parts(), is_first=True)
    until_canceled(world)
    world.work()
    return world.storage.content()


def rolled_back(backend: Backend) -> Content:
    """A device on which 2.0 failed."""
    story = Scenario(name="failed", tells="", end=End.ROLLS_BACK, backend=backend, given={"is_sick": True})
    world = story.world(factory(backend), parts=Parts())
    world.live()
    return world.storage.content()
