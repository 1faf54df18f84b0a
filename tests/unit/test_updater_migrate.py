"""The data step on the real file system: what it makes, and that nothing it does touches the set it comes from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater.errors import DataStepError
from tidewaiter_updater.model import BootEnv

from tests.sim.data_sets import BOTH_OK, FIRST, SECOND, SetsWorld, snapshot, trial_env

COMMITTED = BootEnv(committed=SlotName.B, ok_a=True, ok_b=True, txn="a" * 16, armboot="1" * 8)


@pytest.fixture
def world(tmp_path: Path) -> SetsWorld:
    return SetsWorld(tmp_path / "sets").born()


def writes(text: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "settings").write_text(text)

    return change


def broken(folder: Path) -> None:
    (folder / "settings").unlink()
    raise DataStepError("2-1-x: failed with exit code 3", code="data.program")


def test_a_new_device_gets_an_empty_set_which_is_the_live_one(tmp_path: Path) -> None:
    world = SetsWorld(tmp_path / "sets")
    world.folder.mkdir()
    world.run(FIRST, BOTH_OK, SlotName.A).prepare()
    present = world.store.present()
    assert present.live is not None
    assert (present.live.schema, set(present.sets), list(world.data(1).iterdir())) == (1, {1}, [])
    assert world.programs.ran == [(None, 1)]


def test_the_step_is_made_on_a_copy_and_the_copy_is_whole(world: SetsWorld) -> None:
    before = snapshot(world.data(1), with_numbers=True)
    world.programs.change = writes("volume=one\n")
    world.try_second()
    assert snapshot(world.data(1), with_numbers=True) == before
    assert (world.data(2) / "settings").read_text() == "volume=one\n"
    assert (world.data(2) / "protocols/liver.json").read_text() == '{"flow": 3}'
    assert world.programs.ran[-1] == (1, 2)
    assert world.names() == {"1", "2"}


@pytest.mark.req("UP-20")
def test_failed_migration_leaves_the_old_set_bit_equal(world: SetsWorld) -> None:
    before = snapshot(world.data(1), with_numbers=True)
    world.programs.change = broken
    with pytest.raises(DataStepError, match="exit code 3"):
        world.try_second()
    assert snapshot(world.data(1), with_numbers=True) == before
    assert world.names() == {"1"}
    world.run(FIRST, trial_env(left=0), SlotName.A).prepare()  # the earlier release runs on it


@pytest.mark.req("UP-20")
@pytest.mark.parametrize("what", ["tmp", "no COMPLETE", "damaged COMPLETE", "COMPLETE of another set"])
def test_half_copied_set_is_made_again(world: SetsWorld, what: str) -> None:
    name = "2.tmp" if what == "tmp" else "2"
    (world.folder / name / "data/protocols").mkdir(parents=True)
    (world.folder / name / "data/settings").write_text("vol")
    if what == "damaged COMPLETE":
        (world.folder / name / "COMPLETE").write_bytes(bytes(100))
    if what == "COMPLETE of another set":
        (world.folder / name / "COMPLETE").write_bytes((world.folder / "1/COMPLETE").read_bytes())
    world.try_second()
    assert (world.data(2) / "settings").read_text() == "volume=1\n"
    assert world.names() == {"1", "2"} | (set() if what == "tmp" else {"2.stale-incomplete"})


def test_the_set_of_an_earlier_try_of_this_trial_is_not_made_again(world: SetsWorld) -> None:
    world.try_second()
    before = snapshot(world.data(2), with_numbers=True)
    world.try_second(trial_env(left=1))
    assert snapshot(world.data(2), with_numbers=True) == before
    assert world.programs.ran.count((1, 2)) == 1


@pytest.mark.parametrize(
    "next_trial", [trial_env(txn="b" * 16), trial_env(armboot="2" * 8)], ids=["newer release", "same release"]
)
def test_what_the_old_release_wrote_after_a_rollback_is_in_the_next_set(
    world: SetsWorld, next_trial: BootEnv
) -> None:
    world.try_second()
    world.run(FIRST, trial_env(left=0), SlotName.A).prepare()
    (world.data(1) / "settings").write_text("volume=7\n")
    world.try_second(next_trial)
    assert (world.data(2) / "settings").read_text() == "volume=7\n"
    assert world.names() == {"1", "2", f"2.stale-{'a' * 16}"}
    world.try_second(replace(next_trial, txn="c" * 16, armboot="3" * 8))
    world.try_second(replace(next_trial, txn="a" * 16, armboot="4" * 8))
    assert len(world.names()) == 5


def test_a_committed_set_is_the_live_one_and_the_old_one_goes_after_its_time(world: SetsWorld) -> None:
    world.try_second()
    settled = world.run(SECOND, COMMITTED, SlotName.B)
    settled.settle()
    present = world.store.present()
    assert present.live is not None
    assert present.live.schema == 2
    world.clock.advance(40 * 86_400)
    settled.settle()
    assert world.names() == {"1", "2"}  # the other slot may still boot
    world.run(SECOND, replace(COMMITTED, ok_a=False), SlotName.B).settle()
    assert world.names() == {"2"}


def test_an_old_set_is_kept_thirty_days_even_if_nothing_boots_from_it(world: SetsWorld) -> None:
    world.try_second()
    closed = world.run(SECOND, replace(COMMITTED, ok_a=False), SlotName.B)
    closed.settle()
    world.clock.advance(30 * 86_400 - 1)
    closed.settle()
    assert world.names() == {"1", "2"}
    world.clock.advance(1)
    closed.settle()
    assert world.names() == {"2"}


def test_a_committed_release_finds_its_set_even_if_nobody_named_it_before_the_cut(world: SetsWorld) -> None:
    world.try_second()
    (world.data(2) / "settings").write_text("written after the commit\n")
    world.run(SECOND, COMMITTED, SlotName.B).prepare()
    present = world.store.present()
    assert present.live is not None
    assert present.live.schema == 2
    assert (world.data(2) / "settings").read_text() == "written after the commit\n"


def test_a_program_that_writes_into_the_old_set_is_found_out(world: SetsWorld) -> None:
    world.programs.change = lambda folder: writes("oops\n")(world.data(1))
    with pytest.raises(DataStepError) as error:
        world.try_second()
    assert error.value.code == "data.old-set-changed"
    assert world.names() == {"1"}


def test_a_copy_that_would_not_fit_is_not_begun_but_sets_set_aside_make_room(world: SetsWorld) -> None:
    world.try_second()
    world.run(FIRST, trial_env(left=0), SlotName.A).prepare()
    world.try_second(trial_env(txn="b" * 16))
    world.reserve_bytes = 1 << 60
    before = snapshot(world.data(1), with_numbers=True)
    with pytest.raises(DataStepError) as error:
        world.try_second(trial_env(txn="c" * 16))
    assert error.value.code == "data.no-space"
    assert world.names() == {"1"}  # what was set aside was given up for it
    assert snapshot(world.data(1), with_numbers=True) == before


def test_a_medium_that_refuses_gives_the_copy_up(world: SetsWorld) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder))

    world.programs.change = refuse
    with pytest.raises(DataStepError, match="No space left") as error:
        world.try_second()
    assert error.value.code == "data.io"
    assert world.names() == {"1"}


def test_the_live_set_is_measured_for_the_next_offer(world: SetsWorld) -> None:
    live = world.store.present().live
    assert world.store.measured_bytes(live) is None
    (world.data(1) / "big").write_bytes(b"x" * 1_000_000)
    world.run(FIRST, BOTH_OK, SlotName.A).settle()
    measured = world.store.measured_bytes(live)
    assert measured is not None
    assert measured >= 100_000


def test_a_cut_in_the_middle_of_a_removal_leaves_no_half_set(world: SetsWorld) -> None:
    world.try_second()
    (world.folder / "1").rename(world.folder / "1.gone")
    closed = world.run(SECOND, replace(COMMITTED, ok_a=False), SlotName.B)
    closed.settle()
    assert world.names() == {"2"}
