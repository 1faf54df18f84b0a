"""The redundant environment and its decisions."""

from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater import decision
from tidewaiter_updater.boot import BootEnvError, SlotMismatchError
from tidewaiter_updater.boot.envcopy import (
    COPY_BYTES,
    COPY_OFFSETS,
    EnvCopy,
    decode,
    encode,
    from_variables,
    newest,
    to_variables,
)
from tidewaiter_updater.boot.medium import FileMedium
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.model import BootEnv

from tests.sim.boot import BootScript, choose, format_environment

A, B = SlotName.A, SlotName.B
ENV = BootEnv(committed=A, ok_a=True, ok_b=True, epoch=7)
TXN = "00112233445566aa"
BOOT = "c0ffee00" * 4


class Memory:
    """EnvMedium whose writes can be torn or swallowed."""

    name = "env"

    def __init__(self) -> None:
        self.data = bytearray(COPY_OFFSETS[1] + COPY_BYTES)
        self.keeps = COPY_BYTES
        """How many bytes of the next writes reach the medium."""

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + self.keeps] = data[: self.keeps]


def control(medium: Memory, cmdline: str = "ro tidewaiter.slot=A") -> SimulatedBoot:
    return SimulatedBoot(medium, cmdline=lambda: cmdline)


def test_a_record_survives_the_codec() -> None:
    env = decision.arm(ENV, B, tries=3, txn=TXN, boot_id=BOOT)
    copy = decode(encode(to_variables(env), flag=5))
    assert copy is not None
    assert copy.flag == 5
    assert from_variables(copy.variables) == env


def test_variables_have_a_fixed_width() -> None:
    armed = decision.arm(ENV, B, tries=9, txn=TXN, boot_id=BOOT)
    widths = [[len(value) for value in to_variables(env).values()] for env in (ENV, armed)]
    assert widths[0] == widths[1]


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(1, 2, 1), (2, 1, 0), (255, 0, 1), (0, 255, 0), (4, 4, 0)]
)
def test_flag_255_to_0_wraps(first: int, second: int, expected: int) -> None:
    assert newest((EnvCopy(first, {}), EnvCopy(second, {}))) == expected


def test_every_flag_is_followed_by_a_newer_one() -> None:
    medium = Memory()
    boot = control(medium)
    env = ENV
    for number in range(600):
        env = replace(env, epoch=number)
        boot.write(env)
        assert boot.read() == env


def test_torn_newer_copy_falls_back() -> None:
    medium = Memory()
    boot = control(medium)
    boot.write(ENV)
    boot.write(replace(ENV, epoch=8))
    for keep in (0, 1, 5, 60):
        medium.keeps = keep
        with pytest.raises(BootEnvError, match="does not read back"):
            boot.write(replace(ENV, epoch=9))
        assert boot.read() == replace(ENV, epoch=8)


class UnreadableCopy(Memory):
    """A power cut left a sector of one copy that gives an I/O error until it is written again."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.bad: int | None = offset

    def read(self, offset: int, length: int) -> bytes:
        if offset == self.bad:
            raise BootEnvError("env: Input/output error")
        return super().read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        super().write(offset, data)
        self.bad = None if offset == self.bad else self.bad


@pytest.mark.parametrize("offset", COPY_OFFSETS)
def test_a_copy_that_cannot_be_read_counts_as_torn_and_is_written_next(offset: int) -> None:
    medium = UnreadableCopy(offset)
    for place in COPY_OFFSETS:
        Memory.write(medium, place, encode(to_variables(ENV), flag=1))
    boot = control(medium)
    assert boot.read() == ENV
    boot.write(replace(ENV, epoch=8))
    assert medium.bad is None
    assert boot.read() == replace(ENV, epoch=8)


def test_write_that_does_not_read_back_is_an_error() -> None:
    medium = Memory()
    boot = control(medium)
    boot.write(ENV)
    medium.keeps = 0
    with pytest.raises(BootEnvError) as caught:
        boot.write(decision.disarm(ENV, B))
    assert caught.value.code == "boot.env-write"
    assert boot.read() == ENV


def test_unknown_variables_survive_our_write() -> None:
    medium = Memory()
    medium.write(0, encode({"bootcmd": "run tw_boot", **to_variables(ENV)}, flag=1))
    control(medium).write(replace(ENV, epoch=8))
    copy = decode(medium.read(COPY_OFFSETS[1], COPY_BYTES))
    assert copy is not None
    assert copy.variables["bootcmd"] == "run tw_boot"


@pytest.mark.parametrize(
    "broken",
    [
        {"tw_left": "12"},
        {"tw_committed": "-"},
        {"tw_trial": "C"},
        {"tw_epoch": "x"},
        {"tw_txn": "zz"},
        {"tw_ok_a": "2"},
    ],
)
def test_a_record_with_a_foreign_value_counts_as_none(broken: dict[str, str]) -> None:
    assert from_variables({**to_variables(ENV), **broken}) is None


def test_an_empty_medium_has_no_record() -> None:
    assert control(Memory()).read() is None


@pytest.mark.parametrize("cmdline", ["ro", "tidewaiter.slot=C", "tidewaiter.slot=A tidewaiter.slot=B"])
def test_a_command_line_that_does_not_name_one_slot_is_a_mismatch(cmdline: str) -> None:
    with pytest.raises(SlotMismatchError):
        control(Memory(), cmdline).booted()


def test_single_copy_environment_is_refused_at_start(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes(bytes(COPY_BYTES))
    with pytest.raises(BootEnvError) as caught:
        FileMedium(path).check_layout()
    assert caught.value.code == "boot.env-layout"


def test_the_real_file_keeps_a_decision(tmp_path: Path) -> None:
    path = tmp_path / "env"
    format_environment(path)
    boot = SimulatedBoot(FileMedium(path), cmdline=lambda: "tidewaiter.slot=A")
    boot.write(decision.disarm(ENV, B))
    assert SimulatedBoot(FileMedium(path), cmdline=lambda: "").read() == decision.disarm(ENV, B)


# --- decisions ---


def test_disarm_forbids_the_target_and_nothing_else() -> None:
    assert decision.disarm(ENV, B) == replace(ENV, ok_b=False)


def test_the_committed_slot_is_never_disarmed_and_never_a_trial() -> None:
    with pytest.raises(ValueError, match="committed"):
        decision.disarm(ENV, A)
    with pytest.raises(ValueError, match="committed"):
        decision.arm(ENV, A, tries=3, txn=TXN, boot_id=BOOT)


@pytest.mark.parametrize("tries", [0, 10])
def test_tries_fit_one_digit(tries: int) -> None:
    with pytest.raises(ValueError, match="tries"):
        decision.arm(ENV, B, tries=tries, txn=TXN, boot_id=BOOT)


def test_commit_clears_the_trial_and_leaves_the_fallback() -> None:
    armed = decision.arm(ENV, B, tries=3, txn=TXN, boot_id=BOOT)
    committed = decision.commit(armed, B)
    assert (committed.committed, committed.trial, committed.left, committed.ok_a) == (B, None, 0, True)


def test_clear_forbids_the_trial_slot() -> None:
    armed = decision.arm(ENV, B, tries=3, txn=TXN, boot_id=BOOT)
    assert decision.clear(armed).is_ok(B) is False
    assert decision.clear(ENV) == ENV


def test_an_epoch_never_sinks() -> None:
    assert decision.raise_epoch(ENV, 3, close_other=False).epoch == 7


def test_refunds_are_limited() -> None:
    env = decision.arm(ENV, B, tries=1, txn=TXN, boot_id=BOOT)
    for _ in range(20):
        env = decision.refund(env)
    assert (env.left, env.refunds) == (6, 5)


def test_repair_trusts_only_the_slot_that_runs() -> None:
    assert decision.repair(B, epoch=4) == BootEnv(committed=B, ok_a=False, ok_b=True, epoch=4)


# --- the boot script of the tests ---


def boots(path: Path, **probe: bool) -> SlotName | None:
    return choose(path, probe=lambda slot: probe.get(slot.value, True))


@pytest.fixture
def env_file(tmp_path: Path) -> Path:
    format_environment(tmp_path / "env")
    return tmp_path / "env"


def write(path: Path, env: BootEnv) -> None:
    SimulatedBoot(FileMedium(path), cmdline=lambda: "").write(env)


def read(path: Path) -> BootEnv:
    env = SimulatedBoot(FileMedium(path), cmdline=lambda: "").read()
    assert env is not None
    return env


def test_fifty_power_cycles_never_change_the_slot(env_file: Path) -> None:
    before = env_file.read_bytes()
    assert {boots(env_file) for _ in range(50)} == {A}
    assert env_file.read_bytes() == before


def test_a_trial_spends_its_tries_and_then_the_committed_slot_boots(env_file: Path) -> None:
    write(env_file, decision.arm(ENV, B, tries=2, txn=TXN, boot_id=BOOT))
    assert [boots(env_file) for _ in range(4)] == [B, B, A, A]
    assert read(env_file).trial is B, "the script never clears a trial"


def test_a_try_is_spent_before_the_trial_is_loaded(env_file: Path) -> None:
    write(env_file, decision.arm(ENV, B, tries=1, txn=TXN, boot_id=BOOT))
    assert boots(env_file, B=False) is None
    assert boots(env_file, B=False) is A


def test_a_committed_slot_that_does_not_load_falls_back_only_where_allowed(env_file: Path) -> None:
    assert boots(env_file, A=False) is B
    write(env_file, decision.disarm(ENV, B))
    assert boots(env_file, A=False) is None


def test_without_a_valid_copy_the_first_slot_that_loads_boots(env_file: Path) -> None:
    env_file.write_bytes(bytes(env_file.stat().st_size))
    assert boots(env_file, A=False) is B


def test_a_counter_that_cannot_be_written_boots_the_committed_slot() -> None:
    medium = Memory()
    medium.write(0, encode(to_variables(decision.arm(ENV, B, tries=3, txn=TXN, boot_id=BOOT)), flag=1))
    medium.keeps = 0
    assert BootScript(medium).run(lambda slot: True) is A
