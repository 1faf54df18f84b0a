"""Which data set a boot uses, makes or leaves alone: the rules without any file system."""

from collections.abc import Mapping
from datetime import timedelta
from itertools import product

import pytest
from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data
from tidewaiter_updater.dataset import (
    Action,
    Arming,
    Live,
    Present,
    Role,
    SetRecord,
    expendable,
    is_settled,
    may_mark_live,
    plan,
    role_of,
)
from tidewaiter_updater.model import NO_TXN, BootEnv

from tests.sim.clock import START_UTC

KEEP = timedelta(days=30)
DATA = Data(writes=2, reads_min=1, reads_max=2, reversible=True)
THIS = Arming(txn="a" * 16, armboot="1" * 8)
OTHER = Arming(txn="b" * 16, armboot="2" * 8)
LATER = Arming(txn=THIS.txn, armboot="3" * 8)
NONE = Arming(txn=NO_TXN)
LONG_AGO = format_utc(START_UTC - timedelta(days=31))
LATELY = format_utc(START_UTC - timedelta(days=29))


def record(schema: int, arming: Arming = NONE, *, made_from: int | None = None) -> SetRecord:
    return SetRecord(schema=schema, made_from=made_from, arming=arming, made_utc=LONG_AGO)


def present(
    *records: SetRecord, live: int | None = 1, since: str = LONG_AGO, more: tuple[str, ...] = ()
) -> Present:
    sets: Mapping[int, SetRecord] = {one.schema: one for one in records}
    return Present(
        live=Live(schema=live, since_utc=since) if live is not None else None,
        sets=sets,
        names=(*map(str, sets), *more),
    )


def step(found: Present, *, role: Role = Role.TRIAL, data: Data = DATA) -> tuple[Action, int | None, bool]:
    decided = plan(found, data, role=role, arming=THIS)
    return decided.action, decided.source, decided.aside


def test_a_missing_set_is_made_from_the_live_one() -> None:
    assert step(present(record(1))) == (Action.MIGRATE, 1, False)


def test_a_set_of_this_very_trial_is_used_in_its_next_try() -> None:
    assert step(present(record(1), record(2, THIS, made_from=1))) == (Action.USE, None, False)


@pytest.mark.parametrize("arming", [OTHER, LATER, NONE], ids=["another release", "armed anew", "no trial"])
def test_a_set_of_another_trial_is_set_aside_and_made_again(arming: Arming) -> None:
    assert step(present(record(1), record(2, arming, made_from=1))) == (Action.MIGRATE, 1, True)


def test_a_directory_without_complete_is_set_aside_and_made_again() -> None:
    assert step(present(record(1), more=("2",))) == (Action.MIGRATE, 1, True)


def test_a_release_without_a_data_step_uses_the_live_set_whoever_made_it() -> None:
    assert step(present(record(1), record(2, OTHER, made_from=1), live=2)) == (Action.USE, None, False)


def test_a_live_set_that_is_gone_is_never_replaced_by_an_empty_one() -> None:
    for found in (present(live=1), present(live=2), present(record(1), live=2, more=("2",))):
        decided = plan(found, DATA, role=Role.COMMITTED, arming=THIS)
        assert (decided.action, decided.code) == (Action.REFUSE, "data.missing")


def test_a_device_without_any_set_gets_an_empty_one() -> None:
    for role in (Role.COMMITTED, Role.TRIAL):
        assert step(present(live=None), role=role) == (Action.NEW, None, False)


def test_sets_without_a_live_one_among_them_are_left_to_the_committed_release() -> None:
    found = present(record(1), live=None)
    assert plan(found, DATA, role=Role.TRIAL, arming=THIS).code == "data.live-lost"
    first = Data(writes=1, reads_min=1, reads_max=1, reversible=True)
    assert plan(found, first, role=Role.COMMITTED, arming=THIS).action is Action.USE


def test_what_a_rolled_back_first_release_with_data_left_is_set_aside() -> None:
    assert step(present(record(2, OTHER), live=None)) == (Action.NEW, None, True)


def test_a_live_set_that_this_release_cannot_read_is_refused() -> None:
    data = Data(writes=9, reads_min=8, reads_max=9, reversible=True)
    assert plan(present(record(1)), data, role=Role.TRIAL, arming=THIS).code == "release.data-schema"


def test_a_fallback_boot_uses_its_old_set_and_makes_none() -> None:
    assert step(present(record(1), record(2, OTHER)), role=Role.FALLBACK) == (Action.USE, None, False)
    assert step(present(record(1)), role=Role.FALLBACK)[0] is Action.REFUSE


def test_only_the_committed_release_names_its_set_as_the_live_one() -> None:
    found = present(record(1), record(2, THIS, made_from=1))
    marks = {role: may_mark_live(found, DATA, role=role, arming=THIS) for role in Role}
    assert marks == {Role.TRIAL: False, Role.COMMITTED: True, Role.FALLBACK: False}
    assert not may_mark_live(
        present(record(1), record(2, OTHER, made_from=1)), DATA, role=Role.COMMITTED, arming=THIS
    )
    assert not is_settled(found, DATA)
    assert is_settled(present(record(2, THIS), live=2), DATA)


def test_roles() -> None:
    env = BootEnv(committed=SlotName.A, ok_a=True, ok_b=True, trial=SlotName.B, left=2)
    assert role_of(env, SlotName.A) is Role.COMMITTED
    assert role_of(env, SlotName.B) is Role.TRIAL
    assert role_of(BootEnv(committed=SlotName.A, ok_a=True, ok_b=True), SlotName.B) is Role.FALLBACK
    assert role_of(None, SlotName.A) is Role.FALLBACK
    assert role_of(env, None) is Role.FALLBACK


@pytest.mark.req("UP-20")
def test_old_set_outlives_every_bootable_reader() -> None:
    """Over all environments: as long as the other slot may boot, or the 30 days are not over, the old set stays."""
    found = {
        since: present(record(1), record(2, THIS, made_from=1), live=2, since=since)
        for since in (LONG_AGO, LATELY, "", "yesterday")
    }
    removed = set()
    for committed, ok, trial, left, booted, since in product(
        SlotName, (False, True), (None, *SlotName), (0, 3), (None, *SlotName), found
    ):
        env = BootEnv(
            committed=committed,
            ok_a=ok or committed is SlotName.A,
            ok_b=ok or committed is SlotName.B,
            trial=trial,
            left=left,
        )
        role = role_of(env, booted)
        names = expendable(found[since], DATA, env, role=role, now=START_UTC, keep=KEEP)
        may_boot = env.is_ok(committed.other) or trial is not None
        if may_boot or since != LONG_AGO or booted is not committed:
            assert names == ()
        else:
            assert names == ("1",)
            removed.add(committed)
    assert removed == set(SlotName)
    assert expendable(found[LONG_AGO], DATA, None, role=Role.COMMITTED, now=START_UTC, keep=KEEP) == ()


def test_the_old_set_stays_until_the_new_one_is_known_as_the_live_one() -> None:
    env = BootEnv(committed=SlotName.B, ok_a=False, ok_b=True)
    found = present(record(1), record(2, THIS, made_from=1), live=1)
    assert expendable(found, DATA, env, role=Role.COMMITTED, now=START_UTC, keep=KEEP) == ()


def test_what_was_set_aside_goes_after_its_time_and_leftovers_at_once() -> None:
    found = Present(
        live=Live(schema=2, since_utc=LATELY),
        sets={2: record(2)},
        names=("2", "3.tmp", "1.gone", "2.stale-x", "2.stale-y", "2.stale-incomplete"),
        stale={"2.stale-x": LONG_AGO, "2.stale-y": LATELY, "2.stale-incomplete": ""},
    )
    names = expendable(found, DATA, None, role=Role.FALLBACK, now=START_UTC, keep=KEEP)
    assert set(names) == {"3.tmp", "1.gone", "2.stale-x", "2.stale-incomplete"}
