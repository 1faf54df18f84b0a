"""What a story is: what storage holds at first, what happens, and how it ends however often the power fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import BootEnv, is_medium

from tests.faults.crash_explorer.backends import SIMULATED, Backend
from tests.faults.crash_explorer.invariants import End
from tests.faults.crash_explorer.releases import Made, made
from tests.faults.crash_explorer.stick import stick_folder
from tests.faults.crash_explorer.watch import DEVICES
from tests.faults.crash_explorer.world import STATE, Circumstances, Parts, World
from tests.sim.storage import Content

Change = Callable[[Content], Content]


def _unchanged(content: Content) -> Content:
    return content


def without_state(content: Content) -> Content:
    """The state directory is lost as a whole."""
    return {key: value for key, value in content.items() if not _is_state(key)}


def without_floors(content: Content) -> Content:
    """Only the floors are lost."""
    return {key: value for key, value in content.items() if key != ("file", f"{STATE}/floor.json")}


def without_journal(content: Content) -> Content:
    """Only the journal is lost."""
    return {key: value for key, value in content.items() if key != ("file", f"{STATE}/journal.json")}


def with_garbage(content: Content) -> Content:
    """Every file of the state directory keeps its length and nothing else."""
    return {
        key: b"\xa5" * len(value) if key[0] == "file" and _is_state(key) else value
        for key, value in content.items()
    }


def _is_state(key: tuple[Any, ...]) -> bool:
    """Whether it belongs to the state directory; the product's data are somebody else's."""
    return key[0] in ("file", "directory") and Path(key[1]).is_relative_to(STATE)


def live(world: World) -> None:
    """Days of a device until it is at rest."""
    world.live()


def until_canceled(world: World) -> None:
    """A person cancels; then nobody offers anything."""
    for _ in range(8):
        world.session()
        if world.is_canceled:
            return
    raise RuntimeError("the story never came to the phase in which it is canceled")


def with_daily_restarts(world: World) -> None:
    """A medium that loses a write degrades the updater until the next start."""
    for _ in range(8):
        world.session()
        if world.engine is not None and world.is_settled():
            return
        world.power_cycle(orderly=True)
    world.live()


def factory(backend: Backend) -> Content:
    """A new device: both slots hold the first release, the state directory does not exist."""
    content = backend.factory(BootEnv(committed=SlotName.A, ok_a=True, ok_b=True))
    for device in DEVICES.values():
        for number, block in enumerate(made("1.0", 1).blocks):
            content["block", device, number] = block
    return content


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One story."""

    name: str
    tells: str
    """The story in one sentence, for the report."""
    end: End
    offered: Callable[[], Made] = lambda: made("2.0", 2)
    known: Callable[[], tuple[Made, ...]] = lambda: (made("1.0", 1),)
    """What slots may hold besides; the first one is what runs at the beginning."""
    base: Callable[[Backend], Content] = factory
    play: Callable[[World], None] = live
    given: Mapping[str, object] = field(default_factory=dict)
    """Circumstances that last."""
    at_first: Mapping[str, object] = field(default_factory=dict)
    """Circumstances of the story only; after the cut the world is kind."""
    after_cut: Change = _unchanged
    backend: Backend = SIMULATED
    home: SlotName = SlotName.A
    extra_tries: int = 0
    """How many tries a cut may give back because the loader's counter is not atomic."""

    def circumstances(self, *, is_first: bool) -> Circumstances:
        offered, known = self.offered(), self.known()
        extra = {**self.given, **(self.at_first if is_first else {})}
        kind = Circumstances(offered=offered, known=(*known, offered))
        given = replace(kind, **extra)  # type: ignore[arg-type]
        if is_medium(given.source):
            stick_folder(given.known)  # made in the process that will remove it
        return given

    def world(
        self, content: Content, *, parts: Parts, is_first: bool = False, is_recorded: bool = True
    ) -> World:
        """The device of this story with `content` on its storage."""
        given = self.circumstances(is_first=is_first)
        return World(content, self.backend, given, parts=parts, is_recorded=is_recorded)

    @property
    def aftermath(self) -> str:
        """Names everything but the image that a recovery depends on: stories that share it share their recoveries."""
        given = sorted(self.given.items())
        return f"{self.backend.name} {self.offered().txn} {given} {self.end} {self.home} {self.has_journal}"

    @property
    def has_journal(self) -> bool:
        """Whether a cut leaves the state directory alone."""
        return self.after_cut is _unchanged

    @property
    def keeps_promises(self) -> bool:
        """Whether a cut leaves floors and quarantine alone."""
        return self.after_cut in (_unchanged, without_journal)
