"""Which versioned data set a boot uses, makes, or must leave alone. Pure.

`/data/sets/<schema>/` holds one set: `COMPLETE`, which says how it was made, and `data/`, which the image's mount unit binds to
where the product expects it. `LIVE` beside the sets names the one of the committed release. Nothing is switched at commit: the
running release selects its set by its own schema, so the boot environment stays the only decision.

Invariants:
1. A set without COMPLETE is never used. Neither is one that another trial made, unless it became the live one: what the earlier
   release wrote in the meantime would be missing from it.
2. The set of a slot that may boot is never removed, and one that was replaced is kept for at least 30 days.
3. The live set is never renamed, changed or removed; a step works on a copy.

Source: update-engine.md section 12, docs/adr/0012-data-sets.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from tidewaiter_core.clock import parse_utc
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data

from tidewaiter_updater.model import NO_BOOT, NO_TXN, BootEnv

TEMPORARY = ".tmp"
STALE = ".stale-"
GONE = ".gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arming:
    """What tells one trial from another, also from one of the same release: the transaction, and the boot that armed it."""

    txn: str = NO_TXN
    armboot: str = NO_BOOT

    @classmethod
    def of(cls, env: BootEnv | None) -> Arming:
        """The arming that `env` names; after a commit that is the trial that was committed."""
        return cls(txn=env.txn, armboot=env.armboot) if env is not None else cls()


@dataclass(frozen=True, slots=True, kw_only=True)
class SetRecord:
    """COMPLETE: the set holds everything it was meant to hold, on storage."""

    schema: int
    made_from: int | None
    """Schema of the set it was made from; None for a new one."""
    arming: Arming
    made_utc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """Which set belongs to the committed release."""

    schema: int
    since_utc: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """What lies in the directory of the sets."""

    live: Live | None = None
    sets: Mapping[int, SetRecord] = field(default_factory=dict)
    """Complete ones only."""
    names: tuple[str, ...] = ()
    """All directories, whatever they are."""
    stale: Mapping[str, str] = field(default_factory=dict)
    """Sets that were set aside, by name, with the time when they were made; empty for one that was never complete."""


class Role(StrEnum):
    """What the running slot is to the boot environment."""

    TRIAL = "trial"
    COMMITTED = "committed"
    FALLBACK = "fallback"
    """Neither: the loader had to take the other slot, or the environment is not readable."""


def role_of(env: BootEnv | None, booted: SlotName | None) -> Role:
    """The role of `booted`."""
    if env is None or booted is None:
        return Role.FALLBACK
    if booted is env.committed:
        return Role.COMMITTED
    return Role.TRIAL if env.trial is booted else Role.FALLBACK


class Action(StrEnum):
    """What has to be done before the product may start."""

    USE = "use"
    NEW = "new"
    """Make an empty set: this device has none yet."""
    MIGRATE = "migrate"
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One answer of `plan`."""

    action: Action
    schema: int
    source: int | None = None
    """Schema of the set to copy."""
    aside: bool = False
    """Something else has the name of the set and has to be set aside first."""
    code: str = ""
    detail: str = ""


def plan(present: Present, data: Data, *, role: Role, arming: Arming) -> Step:
    """What the release with `data` needs in this boot.

    Args:
        arming: The one that the boot environment names.
    """
    schema, live = data.writes, present.live
    record = present.sets.get(schema)
    if record is not None and _belongs(record, present, role=role, arming=arming):
        return Step(action=Action.USE, schema=schema)
    if role is Role.FALLBACK:
        return _refusal(schema, "data.missing", f"set {schema} is missing, and this boot may not make one")
    aside = str(schema) in present.names
    if live is None:
        if all(_is_relic(one) for one in present.sets.values()):
            return Step(action=Action.NEW, schema=schema, aside=aside)
        found = ", ".join(map(str, sorted(present.sets)))
        return _refusal(schema, "data.live-lost", f"sets {found} exist, none is named as the live one")
    if live.schema == schema or live.schema not in present.sets:
        return _refusal(schema, "data.missing", f"the live set {live.schema} is missing or has no COMPLETE")
    if not data.reads_min <= live.schema <= data.reads_max:
        reads = f"{data.reads_min} to {data.reads_max}"
        return _refusal(
            schema,
            "release.data-schema",
            f"the live set has schema {live.schema}, this release reads {reads}",
        )
    return Step(action=Action.MIGRATE, schema=schema, source=live.schema, aside=aside)


def may_mark_live(present: Present, data: Data, *, role: Role, arming: Arming) -> bool:
    """Whether LIVE is to name the set of the running release from now on."""
    if role is not Role.COMMITTED or (present.live is not None and present.live.schema == data.writes):
        return False
    return plan(present, data, role=role, arming=arming).action is Action.USE


def is_settled(present: Present, data: Data) -> bool:
    """Whether LIVE names the set of the committed release, which `data` is about: before that nothing may be armed."""
    return present.live is not None and present.live.schema == data.writes and data.writes in present.sets


def expendable(
    present: Present, data: Data, env: BootEnv | None, *, role: Role, now: datetime, keep: timedelta
) -> tuple[str, ...]:
    """Names of what nobody can need any more: leftovers, and sets whose time is over.

    A replaced set goes only when the other slot cannot boot: neither as a fallback nor as a trial. Which schema that slot
    reads is not asked, because nothing but a signed image could tell.
    """
    names = [name for name in present.names if name.endswith((TEMPORARY, GONE))]
    names += [
        name for name, made_utc in present.stale.items() if not made_utc or _is_over(made_utc, now, keep)
    ]
    if role is not Role.COMMITTED or env is None or env.trial is not None or env.is_ok(env.committed.other):
        return tuple(names)
    if (
        not is_settled(present, data)
        or present.live is None
        or not _is_over(present.live.since_utc, now, keep)
    ):
        return tuple(names)
    return (*names, *(name for name in present.names if name.isdecimal() and int(name) != data.writes))


def made_by_a_trial(record: SetRecord) -> bool:
    """Whether it came with an update."""
    return record.arming.txn != NO_TXN


def _belongs(record: SetRecord, present: Present, *, role: Role, arming: Arming) -> bool:
    if role is Role.FALLBACK:
        return True  # whatever it is, it is the only one this release can read
    if present.live is not None and present.live.schema == record.schema:
        return True
    if present.live is None and role is Role.COMMITTED:
        return True  # the mark is lost: the committed release is the one that knows
    return record.arming == arming


def _is_relic(record: SetRecord) -> bool:
    """Made new by a trial: without a LIVE beside it that trial was never committed."""
    return record.made_from is None and made_by_a_trial(record)


def _refusal(schema: int, code: str, detail: str) -> Step:
    return Step(action=Action.REFUSE, schema=schema, code=code, detail=detail)


def _is_over(since_utc: str, now: datetime, keep: timedelta) -> bool:
    """Whether the time since then is long enough. Nobody knows how old something without a date is: it stays."""
    try:
        return now - parse_utc(since_utc) >= keep
    except ValueError:
        return False
