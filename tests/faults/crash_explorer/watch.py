"""What must hold while a device runs, noted so that it can be demanded of every image a power cut may leave.

Two kinds of checks: at once (a slot write into a bootable slot, a decision that is none), and later (`Facts`): whatever a port
promised when it returned is part of each image from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.journal import Documents
from tidewaiter_updater.model import BootEnv, FloorValues
from tidewaiter_updater.ports import Floors

from tests.faults.crash_explorer.releases import CHUNKS, IMAGE_BYTES, Blocks
from tests.sim.device import Violation
from tests.sim.storage.units import BLOCK_BYTES, ZERO_BLOCK

DEVICES = {SlotName.A: "slot-a", SlotName.B: "slot-b"}
_SLOTS = {name: slot for slot, name in DEVICES.items()}


@dataclass(frozen=True, slots=True)
class Facts:
    """What each image from this moment on has to agree with."""

    records: tuple[BootEnv | None, ...] = ()
    """The boot environments that may be in force: one, two while one is being written, any while the script runs."""
    committed: SlotName | None = None
    floor_sequence: int = 0
    floor_epoch: int = 0
    quarantined: frozenset[str] = frozenset()
    failed: str = ""
    """The transaction whose trial is known to have failed: it must not be forgotten together with the trial."""
    notes: Mapping[int, int] = field(default_factory=dict)
    """How many notes the product has on storage, by the schema of the set that it wrote them into."""


@dataclass(frozen=True, slots=True)
class Moment:
    """One point of a log, as the explorer sees it."""

    facts: Facts
    phase: str
    """Of the updater, empty while it does not run."""


def slot_blocks(content: Mapping[tuple[Any, ...], Any], slot: SlotName) -> Blocks:
    """The image-sized beginning of a slot."""
    name = DEVICES[slot]
    return tuple(content.get(("block", name, number), ZERO_BLOCK) for number in range(CHUNKS))


def bootable(env: BootEnv) -> set[SlotName]:
    """The slots that the script may hand control to."""
    slots = {env.committed} | {slot for slot in SlotName if env.is_ok(slot)}
    return slots | ({env.trial} if env.trial is not None and env.left > 0 else set())


class Watch:
    """The observer of one device."""

    def __init__(self, images: set[Blocks], env: BootEnv | None, remembered: Facts) -> None:
        """
        Args:
            remembered: Floors and quarantine as storage has them; they are promises like those that come later.
        """
        self._images = images
        self.env = env
        """The record that was last promised."""
        self.facts = replace(remembered, records=(env,), committed=env.committed if env is not None else None)
        self._proven: dict[SlotName, set[int]] = {slot: set() for slot in SlotName}
        self._right: tuple[str, frozenset[int]] = ("", frozenset())

    # --- slots ---

    def slot_written(self, device: str, offset: int, data: bytes) -> None:
        """I1: only verified content or zeros; I2: only while nothing boots from it."""
        slot = _SLOTS[device]
        self._proven[slot].clear()
        for record in self.facts.records:
            if record is not None and slot in bootable(record):
                raise Violation(f"I2: slot {slot} is written while {record} lets it boot")
        for at in range(0, len(data), BLOCK_BYTES):
            number, block = (offset + at) // BLOCK_BYTES, data[at : at + BLOCK_BYTES]
            if device == self._right[0] and number in self._right[1]:
                raise Violation(f"resume: block {number} of slot {slot} is right and is written again")
            if block != ZERO_BLOCK and not any(image[number] == block for image in self._images):
                raise Violation(f"I1: block {number} of slot {slot} gets bytes that nobody signed")

    def must_not_rewrite(self, slot: SlotName, blocks: frozenset[int]) -> None:
        """These blocks are right, and a transfer that goes on must find that out by itself."""
        self._right = (DEVICES[slot], blocks)

    def slot_proven(self, device: str, offset: int, length: int) -> None:
        """A read past the cache."""
        self._proven[_SLOTS[device]].update(range(offset // BLOCK_BYTES, (offset + length) // BLOCK_BYTES))

    # --- decisions ---

    def decision_begins(self, target: BootEnv, state: Mapping[tuple[Any, ...], Any]) -> None:
        """I4 and I2: `target` follows from the record in force by one decision, and lets only proven slots boot."""
        before = self.env
        if before is not None and not _is_decision(before, target):
            raise Violation(f"I4: {before} -> {target} is no decision")
        new = bootable(target) - (bootable(before) if before is not None else {target.committed})
        for slot in new:
            if len(self._proven[slot]) * BLOCK_BYTES < IMAGE_BYTES:
                raise Violation(f"I2: slot {slot} may boot before it was read back from the medium")
            if slot_blocks(state, slot) not in self._images:
                raise Violation(f"I2: slot {slot} may boot, its medium does not hold a release")
        if before is not None and before.trial is None and target.trial is not None:
            self._require_not_quarantined(target)
        if before is not None and target.epoch < before.epoch:
            raise Violation(f"I6: the epoch sinks from {before.epoch} to {target.epoch}")
        self.facts = replace(self.facts, records=(before, target))

    def _require_not_quarantined(self, target: BootEnv) -> None:
        if target.txn in self.facts.quarantined:
            raise Violation(f"a release that is in quarantine is tried again: {target}")

    def decision_made(self, target: BootEnv) -> None:
        """The write returned: from now on only `target` may be in force."""
        if target.trial is not None and target.left == 0:  # FAIL
            self.facts = replace(self.facts, failed=target.txn)
        self.env = target
        self.facts = replace(self.facts, records=(target,), committed=target.committed)

    def script_runs(self) -> None:
        """The boot loader decides for itself; of its counter only the consequences are judged."""
        self.facts = replace(self.facts, records=())

    def booted(self, slot: SlotName | None, env: BootEnv | None) -> None:
        """A new start: what the script left is in force."""
        self.env = env
        self.facts = replace(self.facts, records=(env,))
        if env is not None and env.trial is not None and env.left == 0 and slot is env.committed:
            self.facts = replace(self.facts, failed=env.txn)
        for proven in self._proven.values():
            proven.clear()

    def floors_raised(self, floors: FloorValues) -> None:
        self.facts = replace(
            self.facts,
            floor_sequence=max(self.facts.floor_sequence, floors.sequence),
            floor_epoch=max(self.facts.floor_epoch, floors.security_epoch),
        )

    def noted(self, schema: int, number: int) -> None:
        """The product synced a note."""
        self.facts = replace(self.facts, notes={**self.facts.notes, schema: number})

    def quarantined(self, txns: list[str]) -> None:
        self.facts = replace(self.facts, quarantined=frozenset(txns))


class WatchedBoot:
    """BootControl that tells the watch."""

    def __init__(
        self, inner: BootControl, watch: Watch, state: Callable[[], Mapping[tuple[Any, ...], Any]]
    ) -> None:
        self._inner = inner
        self._watch = watch
        self._state = state
        self.read = inner.read
        self.booted = inner.booted

    def write(self, env: BootEnv) -> None:
        self._watch.decision_begins(env, self._state())
        self._inner.write(env)
        self._watch.decision_made(env)


class WatchedFloors:
    """Floors that tell the watch what they promised."""

    def __init__(self, inner: Floors, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch
        self.effective = inner.effective

    def raise_committed(self, release: FloorValues) -> None:
        self._inner.raise_committed(release)
        self._watch.floors_raised(release)


class WatchedDocuments:
    """Documents that tell the watch about the quarantine."""

    def __init__(self, inner: Documents, watch: Watch) -> None:
        self._inner = inner
        self._watch = watch
        self.load = inner.load
        self.read_blob = inner.read_blob
        self.write_blob = inner.write_blob
        self.free_bytes = inner.free_bytes

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        self._inner.save(name, document)
        if name == "quarantine":
            self._watch.quarantined(list(document["order"]))


def _is_decision(before: BootEnv, after: BootEnv) -> bool:
    """Whether one of the decisions of update-engine.md section 8 makes `after` of `before`."""
    target = before.committed.other
    shut = _with_ok(before, target, ok=False)
    choices = [
        before,
        replace(shut, trial=None, left=0),  # DISARM, CLEAR
        replace(before, trial=None, left=0),  # CLEAR of a trial that is the committed slot
        replace(before, left=0),  # FAIL
        replace(before, left=before.left + 1, refunds=before.refunds + 1),  # REFUND
        replace(before, epoch=after.epoch),  # RAISE
        replace(shut, epoch=after.epoch),
    ]
    if before.trial is target:
        choices.append(replace(before, committed=target, trial=None, left=0))  # COMMIT
    if before.trial is None and after.trial is target:  # ARM
        armed = replace(
            before, trial=target, left=after.left, refunds=0, txn=after.txn, armboot=after.armboot
        )
        choices.append(_with_ok(armed, target, ok=True))
    return after in choices


def _with_ok(env: BootEnv, slot: SlotName, *, ok: bool) -> BootEnv:
    return replace(env, ok_a=ok) if slot is SlotName.A else replace(env, ok_b=ok)
