"""What must hold of every image, and of every device that has come to rest (update-engine.md sections 1 and 17.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any

from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import BootEnv

from tests.faults.crash_explorer import remembered
from tests.faults.crash_explorer.backends import Backend
from tests.faults.crash_explorer.data import check_data
from tests.faults.crash_explorer.releases import Blocks, Made
from tests.faults.crash_explorer.watch import Facts, bootable, slot_blocks
from tests.faults.crash_explorer.world import STATE, World
from tests.sim.device import Violation
from tests.sim.storage import Content

POWER_CYCLES = 3


class End(StrEnum):
    """How a story ends, wherever the power was cut."""

    COMMITS = "keeps the new release"
    ROLLS_BACK = "is back on the earlier release and never tries that one again"
    COMMITS_IF_TRIED = "keeps the new release, unless the cut fell into its last try"


def document(content: Content, name: str) -> Mapping[str, Any]:
    """A state document, empty when absent or damaged."""
    return remembered.document(content, STATE, name)


def check_image(
    content: Content, facts: Facts, *, backend: Backend, images: Mapping[Blocks, Made], keeps_promises: bool
) -> None:
    """What storage holds right after a cut.

    Args:
        keeps_promises: False when floors and quarantine are lost on purpose.

    Raises:
        Violation: An invariant is broken.
    """
    env = backend.in_force(content)
    _check_record(env, facts)
    if env is None:
        raise Violation("I4: no copy of the boot environment is valid")
    held = {slot: images.get(slot_blocks(content, slot)) for slot in SlotName}
    for slot in bootable(env):
        made = held[slot]
        if made is None:
            raise Violation(f"I2: {env} lets slot {slot} boot, it does not hold a signed image")
        if made.identity.security_epoch < env.epoch:
            raise Violation(f"I6: slot {slot} is below epoch {env.epoch} and may boot")
    check_data(content, env, held, facts.notes)
    running = held[env.committed]
    floors = document(content, "floor")
    sequence, epoch = floors.get("sequence", 0), floors.get("security_epoch", 0)
    if running is None or sequence > running.identity.sequence or epoch > running.identity.security_epoch:
        raise Violation(
            f"I6: floors {sequence}/{epoch} are above the committed release, going back is forbidden"
        )
    if keeps_promises and (sequence < facts.floor_sequence or epoch < facts.floor_epoch):
        raise Violation(
            f"I6: floors {sequence}/{epoch} are below {facts.floor_sequence}/{facts.floor_epoch}, which were promised"
        )
    known = set(document(content, "quarantine").get("order", []))
    missing = facts.quarantined - known
    if keeps_promises and missing:
        raise Violation(f"quarantine of {', '.join(sorted(missing))} was promised and is gone")
    if keeps_promises and facts.failed and env.trial is None and facts.failed not in known:
        raise Violation(f"{facts.failed} failed, its trial is cleared and nothing remembers that: {env}")


def _check_record(env: BootEnv | None, facts: Facts) -> None:
    if facts.records:
        if env not in facts.records and not any(_is_same_arm(env, record) for record in facts.records):
            expected = " or ".join(map(str, facts.records))
            raise Violation(f"I4: {env} is in force, expected {expected}")
    elif env is None or env.committed is not facts.committed:
        raise Violation(f"I5: {env} is in force after the boot script, expected {facts.committed} committed")


def _is_same_arm(env: BootEnv | None, record: BootEnv | None) -> bool:
    """Whether both arm the same trial.

    The sectors of one that a cut kept may complete another one that an earlier cut tore: they differ only in the boot that
    armed. Then the record of the earlier boot comes into force, which had proved the slot as well.
    """
    if env is None or record is None or env.trial is None:
        return False
    return env == replace(record, armboot=env.armboot)


def check_end(world: World, end: End, *, home: SlotName, has_journal: bool, extra_tries: int = 0) -> None:
    """A device at rest.

    Args:
        home: The slot that was committed when the story began.
        has_journal: Nothing was taken from the state directory, so the outcome must be in the audit log.
        extra_tries: See `Scenario.extra_tries`.

    Raises:
        Violation: It rests in the wrong place, or not at all.
    """
    env, offered = world.in_force(), world.given.offered
    if env is None or env.trial is not None or env.committed is not world.booted:
        raise Violation(f"not at rest: slot {world.booted} runs, {env} is in force")
    content = world.storage.content()
    end = expected(end, world)
    quarantined = document(content, "quarantine").get("order", [])
    if end is End.COMMITS:
        _check_committed(world, env, content, home)
        if offered.txn in quarantined:
            raise Violation("a healthy release is in quarantine")
    else:
        _check_rolled_back(world, env, content, home)
        check_tries(world, extra_tries)
        if offered.txn not in quarantined:
            raise Violation("a release that failed is not in quarantine")
    if has_journal:
        kind = "update.committed" if end is End.COMMITS else "update.rolled_back"
        if ("record", kind, str(offered.release.digest)) not in content:
            raise Violation(f"{kind} is not in the audit log")
    _check_power_cycles(world, env)


def expected(end: End, world: World) -> End:
    """How a life ends that began like this one: a cut in the last try is no refund, and no second chance."""
    if end is not End.COMMITS_IF_TRIED:
        return end
    began = world.began_with
    is_spent = began is not None and began.trial is not None and began.left == 0
    return End.ROLLS_BACK if is_spent or world.given.offered.txn in world.began_quarantined else End.COMMITS


def _check_committed(world: World, env: BootEnv, content: Content, home: SlotName) -> None:
    offered = world.given.offered
    if env.committed is home or not world.runs_offered():
        raise Violation(f"a healthy release was abandoned: {env}")
    floors = document(content, "floor")
    if floors.get("sequence") != offered.identity.sequence:
        raise Violation(f"the sequence floor is {floors.get('sequence')} after the commit")
    if env.epoch != offered.identity.security_epoch:
        raise Violation(f"the epoch is {env.epoch} after the commit")
    is_open = env.is_ok(home)
    must_close = offered.identity.security_epoch > 0 or not offered.release.data.reversible
    if must_close and is_open:
        raise Violation(f"slot {home} must not boot any more after this commit: {env}")
    if document(content, "journal").get("closed") is False:
        raise Violation("the journal is still open")


def _check_rolled_back(world: World, env: BootEnv, content: Content, home: SlotName) -> None:
    given = world.given
    if env.committed is not home or world.runs_offered():
        raise Violation(f"a release that failed is in force: {env}")
    if env.is_ok(home.other):
        raise Violation(f"the slot of a failed release may boot: {env}")
    if document(content, "floor").get("sequence", 0) >= given.offered.identity.sequence:
        raise Violation("a release that failed raised the floors")


def check_tries(world: World, extra_tries: int, *, to_come: int = 0) -> None:
    """No more trial boots than were left when this device came to life.

    Args:
        to_come: Trial boots that were not played, because they are known from another device.
    """
    began, given = world.began_with, world.given
    was_in_trial = began is not None and began.trial is not None
    allowed = given.offered.release.policy.tries
    if began is not None and was_in_trial:
        allowed = began.left
    if given.is_sick:
        allowed = min(1, allowed)
    tried = world.trial_boots + to_come
    if tried > allowed + extra_tries:
        raise Violation(f"a release that failed was tried {tried} times, {allowed} were left")


def tries_to_come(world: World) -> int | None:
    """How many trial boots a device that is switched off may still need, None when that is not known from its storage."""
    env = world.in_force()
    if env is None:
        return None
    if env.trial is not None:
        return min(1, env.left) if world.given.is_sick else env.left
    return (
        0
        if world.given.offered.txn in document(world.storage.content(), "quarantine").get("order", [])
        else None
    )


def _check_power_cycles(world: World, env: BootEnv) -> None:
    """I5: a device at rest boots the same slot for ever, and nothing is written."""
    booted, steps = world.booted, world.storage.steps
    for _ in range(POWER_CYCLES):
        if world.parts.script(world.backend, world.storage).run(lambda slot: True) is not booted:
            raise Violation("I5: a power cycle of a device at rest changes the slot")
    if world.storage.steps != steps or world.in_force() != env:
        raise Violation("I5: a power cycle of a device at rest changes the environment")
