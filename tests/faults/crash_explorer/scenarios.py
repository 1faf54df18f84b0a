"""The stories that are cut short at every step (update-engine.md section 17.1).

A scenario says what storage holds at first, what happens, and how it ends however often the power fails. Stories whose code does
not exist yet belong here when it does: a data migration (issue 3 item 8), a firmware step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import BootEnv
from tidewaiter_updater.phases import Phase

from tests.faults.crash_explorer.backends import BACKENDS, SIMULATED, Backend
from tests.faults.crash_explorer.invariants import End
from tests.faults.crash_explorer.releases import Made, made
from tests.faults.crash_explorer.watch import DEVICES
from tests.faults.crash_explorer.world import STATE, Circumstances, Parts, World
from tests.sim.storage import Content
from tests.sim.storage.content import content_of

Change = Callable[[Content], Content]


def _unchanged(content: Content) -> Content:
    return content


def without_state(content: Content) -> Content:
    """The state directory is lost as a whole."""
    return {key: value for key, value in content.items() if key[0] not in ("file", "directory")}


def without_journal(content: Content) -> Content:
    """Only the journal is lost."""
    return {key: value for key, value in content.items() if key != ("file", f"{STATE}/journal.json")}


def with_garbage(content: Content) -> Content:
    """Every file of the state directory keeps its length and nothing else."""
    return {key: b"\xa5" * len(value) if key[0] == "file" else value for key, value in content.items()}


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
        return replace(kind, **extra)  # type: ignore[arg-type]

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


def _after_first_update(backend: Backend) -> Content:
    """A device that was updated once: 2.0 runs in slot B, records and hash tables exist."""
    story = Scenario(name="first update", end=End.COMMITS, backend=backend)
    world = story.world(factory(backend), parts=Parts())
    world.live()
    return world.storage.content()


def _half_written(backend: Backend) -> Content:
    """A device whose power went in the middle of the transfer, two of four chunks on storage."""
    story = Scenario(name="cut", end=End.COMMITS, backend=backend)
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


def _staged_and_canceled(backend: Backend) -> Content:
    """A device whose other slot already holds the image that will be offered."""
    story = Scenario(name="canceled", end=End.COMMITS, backend=backend, at_first={"cancel_in": Phase.STAGED})
    world = story.world(factory(backend), parts=Parts(), is_first=True)
    until_canceled(world)
    world.work()
    return world.storage.content()


SICK = {"is_sick": True}
HANGS = {"hangs": True}


def _scenarios() -> tuple[Scenario, ...]:
    def raised() -> Made:
        return made("2.0", 2, security_epoch=1)

    listed = [
        Scenario(name="full", end=End.COMMITS),
        Scenario(name="epoch raise", end=End.COMMITS, offered=raised),
        Scenario(name="irreversible data", end=End.COMMITS, offered=lambda: made("2.0", 2, reversible=False)),
        Scenario(
            name="second update",
            end=End.COMMITS,
            offered=lambda: made("3.0", 3),
            known=lambda: (made("2.0", 2), made("1.0", 1)),
            base=_after_first_update,
            home=SlotName.B,
        ),
        Scenario(
            name="patch",
            end=End.COMMITS,
            offered=lambda: made("3.0", 3, patch_from=("2.0", 2)),
            known=lambda: (made("2.0", 2), made("1.0", 1)),
            base=_after_first_update,
            home=SlotName.B,
        ),
        Scenario(name="resume", end=End.COMMITS, base=_half_written, given={"faulty_answers": 1}),
        Scenario(name="equal image", end=End.COMMITS, base=_staged_and_canceled),
        Scenario(name="failing health", end=End.ROLLS_BACK, given=SICK, offered=raised),
        Scenario(name="hanging trial", end=End.ROLLS_BACK, given=HANGS),
        Scenario(name="trial that does not load", end=End.ROLLS_BACK, given={"does_not_load": True}),
        Scenario(name="lost state directory", end=End.COMMITS, after_cut=without_state, offered=raised),
        Scenario(
            name="lost state directory, failing health",
            end=End.ROLLS_BACK,
            given=SICK,
            after_cut=without_state,
        ),
        Scenario(name="lost journal", end=End.COMMITS, after_cut=without_journal, offered=raised),
        Scenario(
            name="lost journal, irreversible data",
            end=End.COMMITS,
            offered=lambda: made("2.0", 2, reversible=False),
            after_cut=without_journal,
        ),
        Scenario(
            name="lost journal, failing health", end=End.ROLLS_BACK, given=SICK, after_cut=without_journal
        ),
        Scenario(name="garbage in the state directory", end=End.COMMITS, after_cut=with_garbage),
    ]
    listed += [
        Scenario(
            name=f"cancel in {phase}", end=End.COMMITS, play=until_canceled, at_first={"cancel_in": phase}
        )
        for phase in (
            Phase.WAIT_CONSENT,
            Phase.PREPARE,
            Phase.TRANSFER,
            Phase.VERIFY,
            Phase.STAGED,
            Phase.WAIT_WINDOW,
            Phase.ARMED,
        )
    ]
    listed += [
        Scenario(
            name=f"slot loses a sector at sync {number}",
            end=End.COMMITS,
            at_first={"slot_lies": frozenset({number})},
        )
        for number in range(3)
    ]
    listed += [
        Scenario(
            name=f"environment loses write {number}",
            end=End.COMMITS,
            at_first={"env_lies": frozenset({number})},
            play=with_daily_restarts,
            offered=raised,
        )
        for number in range(5)
    ]
    for backend in BACKENDS[1:]:
        listed += _on_backend(backend)
    return tuple(listed)


def _on_backend(backend: Backend) -> list[Scenario]:
    """The stories in which a boot loader has a part, on another one."""
    name = backend.name
    return [
        Scenario(
            name=f"{name}: full",
            end=End.COMMITS,
            backend=backend,
            offered=lambda: made("2.0", 2, security_epoch=1),
        ),
        Scenario(name=f"{name}: failing health", end=End.ROLLS_BACK, backend=backend, given=SICK),
        Scenario(
            name=f"{name}: hanging trial",
            end=End.ROLLS_BACK,
            backend=backend,
            given=HANGS,
            # A rename that was cut may leave both names, and systemd-boot takes the one that has more tries.
            extra_tries=1 if name == "systemd-boot" else 0,
        ),
        Scenario(
            name=f"{name}: cancel in ARMED",
            end=End.COMMITS,
            backend=backend,
            play=until_canceled,
            at_first={"cancel_in": Phase.ARMED},
        ),
    ]


SCENARIOS = _scenarios()
