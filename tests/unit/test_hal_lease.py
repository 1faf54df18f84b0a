"""The inhibit lease against the simulated injector: order, renewal, loss, seal, and what a restart finds."""

import contextlib
import shutil
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.audit import Actor, AuditUnavailableError, Outcome
from tidewaiter_hal.errors import DeniedError, LeaseBusyError, LeaseLostError, NotSupportedError
from tidewaiter_hal.interlock import Policy, Purpose
from tidewaiter_hal.lease import LeaseKeeper
from tidewaiter_hal.model import Lease
from tidewaiter_hal.state_file import StateFile, StoredLease

from tests.sim.injector_bench import POLICY, Bench

UPDATER = Actor(kind="component", id="uid:985")


class Records:
    """An audit log in memory."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        self.is_full = False
        self.meanwhile: Callable[[], None] = lambda: None

    def append(
        self,
        kind: str,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        fields: Mapping[str, Any] | None = None,
    ) -> int:
        if self.is_full:
            raise AuditUnavailableError("audit: full")
        self.kinds.append(kind)
        self.meanwhile()
        return len(self.kinds)


class Holder:
    """A keeper on a bench, and a client that holds through it."""

    def __init__(
        self,
        path: Path,
        bench: Bench | None = None,
        *,
        host_boot: str = "a" * 32,
        state: StateFile | None = None,
    ) -> None:
        self.bench = bench or Bench().settled()
        self.records = Records()
        self.path = path
        self.state = state or StateFile(path / "state.json")
        self.keeper = self._keeper(host_boot)
        self.connected = True
        self.streams: list[Generator[Lease, None, None]] = []

    def _keeper(self, host_boot: str) -> LeaseKeeper:
        keeper = LeaseKeeper(
            self.bench,
            state=self.state,
            policy=Policy(
                idle_pressure_limit_kpa=POLICY.idle_pressure_limit_kpa,
                quiet_after_injection_s=POLICY.quiet_after_injection_s,
                bench=False,
            ),
            clock=self.bench.clock,
            recorder=self.records,
            host_boot=host_boot,
            random_bytes=lambda count: bytes(range(count)),
        )
        self.bench.run(5.5)
        return keeper

    def restart(self, *, host_boot: str = "a" * 32) -> "Holder":
        """Another HAL process on the same state and injector."""
        self.bench.run(0.5)
        return Holder(self.path, self.bench, host_boot=host_boot)

    def hold(self, purpose: Purpose = Purpose.REBOOT, ttl_ms: int = 60_000) -> Generator[Lease, None, None]:
        stream = self.keeper.hold(purpose, ttl_ms, actor=UPDATER, wait_closed=self._wait_closed)
        self.streams.append(stream)  # a stream that is collected ends its lease
        return stream

    def _wait_closed(self, timeout_s: float) -> bool:
        self.bench.run(timeout_s)
        return not self.connected

    @property
    def is_locked(self) -> bool:
        """What the injector itself says."""
        return self.bench.sim.injector.lease is not None


@pytest.fixture
def holder(tmp_path: Path) -> Holder:
    return Holder(tmp_path)


def test_a_held_lease_locks_the_injector_and_is_recorded(holder: Holder) -> None:
    lease = next(holder.hold())
    assert holder.is_locked
    assert holder.bench.snapshot().lockouts.value == 15
    assert holder.records.kinds == ["interlock.held"]
    assert lease.remaining_ms > 50_000
    assert not lease.from_previous_boot


def test_the_token_is_on_disk_before_the_injector_knows_it(holder: Holder) -> None:
    stored: list[bool] = []

    def look(data: bytes) -> bytes:
        stored.append((holder.path / "state.json").exists())
        return data

    stream = holder.hold()
    holder.bench.to_device = look
    next(stream)
    assert stored[0]


def test_the_lease_handle_does_not_reveal_the_token(holder: Holder) -> None:
    assert bytes(range(8)).hex() not in next(holder.hold()).lease_id


def test_lease_ends_when_the_updater_disconnects(holder: Holder) -> None:
    stream = holder.hold()
    next(stream)
    holder.connected = False
    with pytest.raises(StopIteration):
        next(stream)
    assert not holder.is_locked
    assert holder.keeper.current() is None


def test_lease_ends_when_the_connection_thread_drops_the_stream(holder: Holder) -> None:
    stream = holder.hold()
    next(stream)
    stream.close()
    assert not holder.is_locked


def test_a_held_lease_is_renewed_for_as_long_as_it_is_wanted(holder: Holder) -> None:
    stream = holder.hold(ttl_ms=6_000)
    end_s = holder.bench.now_s + 40
    while holder.bench.now_s < end_s:
        assert next(stream).remaining_ms > 1_500
        assert holder.is_locked


def test_lost_acquire_reply_is_retried_with_the_same_token(holder: Holder) -> None:
    lost: list[bytes] = []

    def lose_once(data: bytes) -> bytes:
        if data and holder.is_locked and not lost:
            lost.append(data)
            return b""
        return data

    holder.bench.to_host = lose_once
    next(holder.hold())
    assert lost
    assert holder.bench.sim.server.monitor.by_command[2, 0x5458, 1] == 2
    assert holder.is_locked


def test_arm_after_check_before_lease_aborts_activation(holder: Holder) -> None:
    assert holder.keeper.check(Purpose.ACTIVATE).allow
    holder.bench.do("arm")
    with pytest.raises(DeniedError) as denied:
        next(holder.hold(Purpose.ACTIVATE))
    assert denied.value.reasons == ("state-not-idle",)
    assert holder.records.kinds == ["interlock.denied"]
    assert holder.keeper.current() is None


def test_a_held_lease_keeps_the_operator_from_arming(holder: Holder) -> None:
    next(holder.hold())
    with pytest.raises(ValueError, match="locked"):
        holder.bench.do("arm")


def test_operator_cancel_aborts_activation(holder: Holder) -> None:
    stream = holder.hold()
    next(stream)
    holder.bench.do("cancel_lease")
    with pytest.raises(LeaseLostError, match="operator"):
        for _ in range(20):
            next(stream)
    assert "interlock.lost" in holder.records.kinds
    with pytest.raises(DeniedError) as denied:
        next(holder.hold())
    assert "operator-refused" in denied.value.reasons


def test_a_reboot_of_the_injector_ends_the_lease(holder: Holder) -> None:
    stream = holder.hold()
    next(stream)
    holder.bench.do("power_cut")
    with pytest.raises(LeaseLostError):
        for _ in range(20):
            next(stream)


def test_a_lease_that_cannot_be_renewed_is_lost_when_it_expires(holder: Holder) -> None:
    stream = holder.hold(ttl_ms=9_000)
    next(stream)
    holder.bench.to_host = lambda data: b""
    start_s = holder.bench.now_s
    with pytest.raises(LeaseLostError, match="expired"):
        for _ in range(20):
            next(stream)
    assert holder.bench.now_s - start_s <= 12


def test_a_second_holder_is_refused(holder: Holder) -> None:
    stream = holder.hold()
    next(stream)
    with pytest.raises(LeaseBusyError):
        next(holder.hold())
    assert holder.is_locked


def test_an_injector_that_refuses_the_lease_denies(holder: Holder) -> None:
    holder.bench.fault("lease_refuse")
    with pytest.raises(DeniedError) as denied:
        next(holder.hold())
    assert denied.value.reasons == ("operator-refused",)


def test_driver_without_lease_needs_consent_and_a_late_check(holder: Holder) -> None:
    bench = holder.bench
    bench.sim.server.bodies.features = ("pressure", "plunger", "channels")
    bench.do("power_cut")
    bench.up()
    bench.sim.injector.jump_uptime(4_000_000)
    bench.run(75.0)
    decision = holder.keeper.check(Purpose.REBOOT)
    assert dict(decision.evidence)["lease"] == "absent"
    with pytest.raises(NotSupportedError):
        next(holder.hold())


def test_a_lease_that_cannot_be_recorded_is_not_given(holder: Holder) -> None:
    holder.records.is_full = True
    with pytest.raises(DeniedError) as denied:
        next(holder.hold())
    assert denied.value.reasons == ("audit.unavailable",)
    assert not holder.is_locked


def test_sealed_lease_survives_the_shutdown_and_is_released_after_commit(holder: Holder) -> None:
    stream = holder.hold()
    lease = next(stream)
    sealed = holder.keeper.seal(lease.lease_id, 180_000, actor=UPDATER)
    assert sealed.sealed
    stream.close()
    assert holder.is_locked
    after = holder.restart(host_boot="b" * 32)
    found = after.keeper.current()
    assert found is not None
    assert found.from_previous_boot
    assert 100_000 < found.remaining_ms < 180_000
    after.keeper.tick()
    assert after.is_locked
    after.keeper.release(found.lease_id)
    assert not after.is_locked
    assert StateFile(after.path / "state.json").lease is None


def test_a_sealed_lease_that_nobody_releases_expires_on_the_injector(holder: Holder) -> None:
    stream = holder.hold()
    holder.keeper.seal(next(stream).lease_id, 30_000, actor=UPDATER)
    stream.close()
    after = holder.restart(host_boot="b" * 32)
    after.bench.run(40.0)
    assert not after.is_locked
    after.keeper.tick()
    assert after.keeper.current() is None


def test_seal_without_reboot_is_released_after_60_s(holder: Holder) -> None:
    stream = holder.hold()
    holder.keeper.seal(next(stream).lease_id, 180_000, actor=UPDATER)
    stream.close()
    holder.bench.run(58.0)
    holder.keeper.tick()
    assert holder.is_locked
    holder.bench.run(3.0)
    holder.keeper.tick()
    assert not holder.is_locked
    assert holder.records.kinds[-1] == "interlock.lost"


def test_a_seal_without_confirmation_must_not_be_relied_on(holder: Holder) -> None:
    stream = holder.hold()
    lease = next(stream)
    holder.bench.to_host = lambda data: b""
    with pytest.raises(LeaseLostError, match="do not reboot"):
        holder.keeper.seal(lease.lease_id, 180_000, actor=UPDATER)


def test_a_seal_that_the_injector_cuts_short_must_not_be_relied_on(holder: Holder) -> None:
    stream = holder.hold()
    lease = next(stream)
    holder.bench.fault("lease_short", ms=30_000)
    with pytest.raises(LeaseLostError, match="30000 ms"):
        holder.keeper.seal(lease.lease_id, 180_000, actor=UPDATER)


def test_a_seal_that_is_overtaken_by_a_release_must_not_be_relied_on(holder: Holder) -> None:
    stream = holder.hold()
    lease = next(stream)
    holder.records.meanwhile = lambda: holder.keeper.release(lease.lease_id)
    with pytest.raises(LeaseLostError, match="do not reboot"):
        holder.keeper.seal(lease.lease_id, 180_000, actor=UPDATER)


def test_a_lease_that_the_injector_cuts_short_is_not_reported_as_longer(holder: Holder) -> None:
    holder.bench.fault("lease_short", ms=20_000)
    assert next(holder.hold(ttl_ms=60_000)).remaining_ms <= 20_000


def test_an_ended_lease_leaves_the_disk_before_the_next_one_can_be_claimed(tmp_path: Path) -> None:
    class Watched(StateFile):
        was_held: bool | None = None

        def store_lease(self, lease: StoredLease | None) -> None:
            if lease is None:
                self.was_held = kept[0].keeper.current() is not None
            super().store_lease(lease)

    state = Watched(tmp_path / "state.json")
    kept = [Holder(tmp_path, state=state)]
    stream = kept[0].hold()
    next(stream)
    stream.close()
    assert state.was_held is True


def test_seal_of_an_unknown_lease_is_refused(holder: Holder) -> None:
    with pytest.raises(LeaseLostError):
        holder.keeper.seal("0" * 16, 180_000, actor=UPDATER)


def test_lease_of_a_hal_that_died_is_released_by_the_next_one(holder: Holder) -> None:
    next(holder.hold())
    after = holder.restart()
    found = after.keeper.current()
    assert found is not None
    assert not found.from_previous_boot
    after.keeper.tick()
    assert not after.is_locked
    assert after.keeper.current() is None


def test_lease_expires_on_the_device_when_hal_is_killed(holder: Holder) -> None:
    next(holder.hold(ttl_ms=5_000))
    holder.bench.run(6.0)
    assert not holder.is_locked


def test_a_token_that_cannot_be_stored_is_never_sent(holder: Holder) -> None:
    shutil.rmtree(holder.path)
    with pytest.raises(DeniedError) as denied:
        next(holder.hold())
    assert denied.value.reasons == ("state-not-writable",)
    assert (2, 0x5458, 1) not in holder.bench.sim.server.monitor.by_command


def test_a_state_file_of_a_newer_schema_gives_no_lease_and_is_left_alone(tmp_path: Path) -> None:
    text = '{"schema": 99, "future": true}'
    (tmp_path / "state.json").write_text(text)
    holder = Holder(tmp_path)
    with pytest.raises(DeniedError) as denied:
        next(holder.hold())
    assert denied.value.reasons == ("state-not-writable",)
    assert (tmp_path / "state.json").read_text() == text


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"schema": 1, "lease": {"token": "xx"}}',
        '{"schema": 1, "lease": 5}',
        '{"schema": 1, "lease": {"token": "0001020304050607", "purpose": "other", "host_boot": "a",'
        ' "sealed": false, "sealed_s": 0}}',
    ],
)
def test_an_unreadable_state_file_gives_no_lease_and_is_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    state = StateFile(tmp_path / "state.json")
    assert not state.is_writable
    assert (tmp_path / "state.json").read_text() == content


def test_the_simulator_saw_no_forbidden_frame(holder: Holder) -> None:
    stream = holder.hold()
    with contextlib.suppress(StopIteration):
        holder.keeper.seal(next(stream).lease_id, 180_000, actor=UPDATER)
        stream.close()
    assert holder.bench.sim.server.monitor.violations == []
