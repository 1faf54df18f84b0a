"""Relays that lie and slots that cannot be written, against the real updater: its code, no harm, and the next attempt works."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tidewaiter_core.audit import verify
from tidewaiter_core.model import SlotName

from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator
from tests.sim.loop import loop_device, mounted, tool
from tests.sim.packs import random_image
from tests.sim.relay import Answer, Ask, Lie, Relay
from tests.sim.repository import MadeRelease
from tests.sim.updater_process import UpdaterProcess, updater_process

pytestmark = pytest.mark.integration

A, B = SlotName.A, SlotName.B
OLD = random_image(64, seed=1)
NEW = random_image(64, seed=2)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[tuple[UpdaterProcess, Relay]]:
    with updater_process(tmp_path / "d", tmp_path / "injector") as (updater, relay):
        updater.manufacture(OLD, "1.0", 1)
        updater.knows(NEW, "2.0", 2)
        yield updater, relay


def offered(updater: UpdaterProcess) -> MadeRelease:
    updater.boot()
    made = updater.repository.add_release(NEW, "2.0", 2)
    offer = updater.call("Check", source="relay", release=made.path)["offer"]
    assert offer["installable"], offer
    return made


def install(updater: UpdaterProcess, made: MadeRelease) -> None:
    updater.call("Install", digest=str(made.digest), consent=None)


def until_told(updater: UpdaterProcess, code: str) -> None:
    """It has ended, or waits, for this reason."""

    def told() -> bool:
        status = updater.status()
        assert status["phase"] != "STAGED"
        return code in status["waiting_for"] or (status["last"] or {}).get("code") == code

    updater.until(told, f"{code} is told")
    last = updater.status()["last"]
    assert last is None or last["what_to_do"], "a person is told what to do"


def then_it_works(updater: UpdaterProcess, made: MadeRelease) -> None:
    install(updater, made)
    status = updater.until_phase("STAGED", "FAILED")
    assert status["phase"] == "STAGED", status["last"]
    assert updater.slot(B).read_bytes() == NEW
    assert updater.slot(A).read_bytes() == OLD
    assert updater.env().committed is A
    assert updater.stop() == 0
    assert verify(updater.home / "audit/updater").intact


def whole_file_for_a_range(ask: Ask, honest: Answer, file: bytes) -> Answer:
    return Answer(offset=0, total=len(file), length=len(file), body=file)


def another_range(ask: Ask, honest: Answer, file: bytes) -> Answer:
    shifted = file[ask.offset + 4096 : ask.offset + 4096 + honest.length]
    return Answer(offset=ask.offset + 4096, total=len(file), length=len(shifted), body=shifted)


def endless_body(ask: Ask, honest: Answer, file: bytes) -> Answer:
    return Answer(offset=ask.offset, total=1 << 60, length=1 << 50, body=bytes(1 << 20))


def right_range_wrong_bytes(ask: Ask, honest: Answer, file: bytes) -> Answer:
    return Answer(offset=ask.offset, total=len(file), length=honest.length, body=bytes(honest.length))


def shorter_than_it_said(ask: Ask, honest: Answer, file: bytes) -> Answer:
    return Answer(offset=ask.offset, total=len(file), length=honest.length, body=honest.body[:-1])


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (whole_file_for_a_range, "source.bad-range"),
        (another_range, "source.bad-range"),
        (endless_body, "source.bad-range"),
        (right_range_wrong_bytes, "source.bad-bytes"),
        (shorter_than_it_said, "source.bad-range"),
    ],
)
def test_a_relay_that_lies_about_ranges_is_told_by_its_code_and_nothing_of_it_is_written(
    world: tuple[UpdaterProcess, Relay], answer: Callable[[Ask, Answer, bytes], Answer], code: str
) -> None:
    updater, relay = world
    made = offered(updater)
    relay.lie = lying(relay, answer)
    install(updater, made)
    until_told(updater, code)
    env = updater.env()
    assert (env.committed, env.trial, env.ok_b) == (A, None, False)
    assert_nothing_foreign(updater)
    relay.lie = lambda ask, honest: None
    then_it_works(updater, made)


def truncated(data: bytes) -> bytes:
    return data[:-1]


def oversized(data: bytes) -> bytes:
    return data + bytes(4096)


def flipped(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def reordered(data: bytes) -> bytes:
    half = len(data) // 2
    return data[half:] + data[:half]


def hostile(data: bytes) -> bytes:
    return data[:8] + b"\xff" * (len(data) - 8)


@pytest.mark.parametrize("part", [".index.twci", ".pack.twpk"])
@pytest.mark.parametrize("damage", [truncated, oversized, flipped, reordered, hostile])
def test_a_damaged_index_or_pack_is_told_by_a_code_and_nothing_of_it_is_written(
    world: tuple[UpdaterProcess, Relay], part: str, damage: Callable[[bytes], bytes]
) -> None:
    updater, relay = world
    made = offered(updater)

    def lie(ask: Ask, honest: Answer) -> Answer | None:
        if not ask.path.endswith(part):
            return None
        data = damage((relay.folder / ask.path).read_bytes())
        body = data[ask.offset : ask.offset + ask.max_bytes]
        return Answer(offset=ask.offset, total=len(data), length=len(body), body=body)

    relay.lie = lie
    install(updater, made)
    updater.until(lambda: bool(ended(updater)), "it ends, or waits for another answer")
    code = ended(updater)
    if damage is oversized and code == "update.staged":
        assert updater.slot(B).read_bytes() == NEW, "bytes behind what is signed were never asked for"
    else:
        assert code in ("source.bad-bytes", "source.bad-range"), code
        env = updater.env()
        assert (env.committed, env.trial, env.ok_b) == (A, None, False)
        assert_nothing_foreign(updater)
    relay.lie = lambda ask, honest: None
    then_it_works(updater, made)


def ended(updater: UpdaterProcess) -> str:
    """Why it stopped, empty while it goes on."""
    status = updater.status()
    if status["phase"] == "STAGED":
        return "update.staged"
    return next((code for code in status["waiting_for"] if code.startswith("source.")), "") or (
        (status["last"] or {}).get("code", "")
    )


def assert_nothing_foreign(updater: UpdaterProcess) -> None:
    """Each block of slot B is the old one, the right one or zero."""
    written, block = updater.slot(B).read_bytes(), 4096
    for at in range(0, len(written), block):
        piece = written[at : at + block]
        assert piece in (NEW[at : at + block], OLD[at : at + block], bytes(block)), f"byte {at}"


def lying(relay: Relay, answer: Callable[[Ask, Answer, bytes], Answer]) -> Lie:
    """About the middle of the pack, metadata and index are served truly."""

    def lie(ask: Ask, honest: Answer) -> Answer | None:
        if not ask.path.endswith(".pack.twpk"):
            return None
        return answer(ask, honest, (relay.folder / ask.path).read_bytes())

    return lie


# --- slots ---


@pytest.fixture
def on_loop(world: tuple[UpdaterProcess, Relay], tmp_path: Path) -> Iterator[tuple[UpdaterProcess, Path]]:
    """Slot B is a block device."""
    updater, _ = world
    backing = tmp_path / "backing"
    backing.write_bytes(OLD)
    with loop_device(backing) as device:
        put_slot_b(updater, device)
        yield updater, device


def put_slot_b(updater: UpdaterProcess, device: Path) -> None:
    updater.slot(B).unlink()
    updater.slot(B).symlink_to(device)


def refused_and_untouched(updater: UpdaterProcess, made: MadeRelease, code: str) -> None:
    install(updater, made)
    until_told(updater, code)
    assert updater.env().ok_b, "refused before DISARM: what was there may still be booted"


@pytest.mark.privileged
def test_a_read_only_slot_is_refused_before_disarm(on_loop: tuple[UpdaterProcess, Path]) -> None:
    updater, device = on_loop
    made = offered(updater)
    blockdev = tool("blockdev", "util-linux")
    subprocess.run([blockdev, "--setro", str(device)], check=True)
    refused_and_untouched(updater, made, "slot.read-only")
    assert device.read_bytes() == OLD
    subprocess.run([blockdev, "--setrw", str(device)], check=True)
    then_it_works(updater, made)


@pytest.mark.privileged
def test_a_mounted_slot_is_refused_before_disarm(
    on_loop: tuple[UpdaterProcess, Path], tmp_path: Path
) -> None:
    updater, device = on_loop
    made = offered(updater)
    subprocess.run([tool("mke2fs", "e2fsprogs"), "-q", "-F", "-t", "ext4", str(device)], check=True)
    with mounted(device, tmp_path / "point", "-o", "ro"):
        before = device.read_bytes()
        refused_and_untouched(updater, made, "slot.busy")
        assert device.read_bytes() == before
    then_it_works(updater, made)


@pytest.mark.privileged
def test_the_booted_slot_under_the_name_of_the_other_is_refused_before_disarm(
    world: tuple[UpdaterProcess, Relay],
) -> None:
    updater, _ = world
    made = offered(updater)
    updater.slot(B).rename(updater.home / "aside")
    put = updater.slot(B)
    put.symlink_to(updater.slot(A))
    refused_and_untouched(updater, made, "slot.booted")
    assert updater.slot(A).read_bytes() == OLD
    put.unlink()
    (updater.home / "aside").rename(put)
    then_it_works(updater, made)


@pytest.mark.privileged
def test_a_slot_that_vanished_is_an_error_with_a_code_and_works_once_it_is_back(
    on_loop: tuple[UpdaterProcess, Path],
) -> None:
    updater, device = on_loop
    made = offered(updater)
    updater.slot(B).unlink()
    install(updater, made)
    until_told(updater, "slot.io")
    assert updater.env().ok_b
    updater.slot(B).symlink_to(device)
    then_it_works(updater, made)


@pytest.mark.privileged
def test_a_medium_that_ends_in_the_middle_is_slot_io_and_the_next_attempt_works(
    world: tuple[UpdaterProcess, Relay], tmp_path: Path
) -> None:
    """A sparse file on a full file system: the block device reports EIO for what has no room."""
    updater, _ = world
    with ExitStack() as stack:
        store = stack.enter_context(
            mounted(Path("tmpfs"), tmp_path / "small", "-t", "tmpfs", "-o", "size=2m")
        )
        device = stack.enter_context(loop_device(store / "backing", size_bytes=len(OLD)))
        put_slot_b(updater, device)
        made = offered(updater)
        install(updater, made)
        until_told(updater, "slot.io")
        env = updater.env()
        assert (env.committed, env.trial, env.ok_b) == (A, None, False)
        subprocess.run(["mount", "-o", "remount,size=64m", str(store)], check=True)
        then_it_works(updater, made)


@pytest.mark.privileged
def test_medium_that_lies_after_fsync_is_caught_before_arm(
    on_loop: tuple[UpdaterProcess, Path], tmp_path: Path
) -> None:
    """The page cache of the block device still has what was written; the medium behind it has something else."""
    updater, device = on_loop
    with (
        InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim"),
        HalProcess(
            updater.home, tmp_path / "injector", hal={"bench": True, "quiet_after_injection_s": 1}
        ) as hal,
    ):
        made = offered(updater)
        install(updater, made)
        updater.until_phase("STAGED")
        with device.open("rb", buffering=0) as cached:  # an opener keeps the cache
            assert cached.read(len(NEW)) == NEW
            with (tmp_path / "backing").open("r+b") as medium:
                medium.seek(len(NEW) // 2)
                medium.write(bytes(4096))
            cached.seek(0)
            assert cached.read(len(NEW)) == NEW, "the cache does not know"
            activate(updater, hal, made)
        assert (tmp_path / "backing").read_bytes() == NEW, "not armed before the medium had the release"


def activate(updater: UpdaterProcess, hal: HalProcess, made: MadeRelease) -> None:
    """Ask again whenever it is staged, as the agent does."""
    hal.until_allowed("activate", timeout_s=60)

    def armed() -> bool:
        if updater.status()["phase"] == "STAGED":
            updater.call("Activate", digest=str(made.digest), window_open=True)
        return updater.env().trial is not None

    updater.until(armed, "it is armed")
    assert "slot content changed since it was staged" in (updater.home / "updater.log").read_text()
