"""The engine when something under it fails at a bad moment: medium, state directory, a pause, a command too many."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tidewaiter_core.clock import format_utc
from tidewaiter_core.errors import SecondInstanceError, StateWriteError
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release
from tidewaiter_updater.consent import SitePolicy
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import BudgetError, EngineBusyError, InstallCancelledError, SlotError
from tidewaiter_updater.journal import Journal
from tidewaiter_updater.model import BootEnv, Channel, Consent, Held, Scope
from tidewaiter_updater.ports import Control, Report

from tests.sim.device import Device, Made, Power, StateDisk, ToyInjector, ToySlots

LOCAL_CONSENT = {
    "consent": "local",
    "risk": "routine",
    "tries": 3,
    "activation": "any",
    "max_fetch_bytes": 10**6,
}


class Hooked(ToySlots):
    """Slots that let a test do something in the middle of a read."""

    during_read: Callable[[Control], None] = staticmethod(lambda control: None)

    def read_back(
        self, slot: SlotName, release: Release, source: str, *, report: Report, control: Control
    ) -> int:
        self.during_read(control)
        return super().read_back(slot, release, source, report=report, control=control)

    def holds(self, slot: SlotName, release: Release, *, control: Control, beats: bool = True) -> bool:
        self.during_read(control)
        return super().holds(slot, release, control=control, beats=beats)


class FullDisk(StateDisk):
    """A state directory without room for some documents."""

    refused: frozenset[str] = frozenset()

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        if name in self.refused:
            raise StateWriteError(f"{name}.json: no space left; its previous content is unchanged")
        super().save(name, document)


def fit(device: Device) -> tuple[Hooked, FullDisk]:
    """Give the device, which is off, slots and a state directory that can fail."""
    slots = Hooked(device.storage, device.power, device.images)
    documents = FullDisk(device.storage, device.power)
    device.slots, device.documents = slots, documents
    return slots, documents


def staged() -> tuple[Device, Made, Engine, Hooked, FullDisk]:
    device = Device()
    made = device.make("2.0", 2)
    slots, documents = fit(device)
    engine = device.power_on()
    device.work()
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    assert engine.transaction.phase.value == "STAGED"
    return device, made, engine, slots, documents


def in_trial() -> tuple[Device, Made, Engine, FullDisk]:
    device, made, engine, _, _ = staged()
    engine.activate(made.release.digest, window_open=True)
    device.work()
    device.power_off()
    _, documents = fit(device)
    engine = device.power_on()
    assert engine.transaction.phase.value == "TRIAL"
    return device, made, engine, documents


def env_of(device: Device) -> BootEnv:
    env = device.storage.boot_env()
    assert env is not None
    return env


# --- between permission and ARM ---


def test_a_slot_that_cannot_be_read_before_arm_gives_the_lease_back_and_is_tried_again() -> None:
    device, made, engine, slots, _ = staged()
    faults = [SlotError("slot B: read failed", code="slot.io", retryable=True)]

    def fail(control: Control) -> None:
        if faults:
            raise faults.pop()

    slots.during_read = fail
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.injector.held is None
    assert env_of(device).trial is None
    assert engine.transaction.phase.value == "STAGED", "it was read again, and is right"
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.reboot.requested


def test_a_window_that_closes_while_the_slot_is_read_is_closed() -> None:
    device, made, engine, slots, _ = staged()
    slots.during_read = lambda control: engine.activate(made.release.digest, window_open=False)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert env_of(device).trial is None
    assert device.injector.held is None
    assert engine.transaction.waiting_for == ("update.window",)


def test_a_pause_while_the_slot_is_read_does_not_keep_the_injector_locked() -> None:
    device, made, engine, slots, _ = staged()

    def pause(control: Control) -> None:
        engine.set_paused(True)
        assert not control.paused(), "waiting here would keep the lease for as long as the pause lasts"
        assert control.cancelled()
        raise InstallCancelledError("reading ended")

    slots.during_read = pause
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.injector.held is None
    device.work()
    assert engine.transaction.waiting_for == ("paused",)
    assert env_of(device).trial is None


# --- one transaction after another ---


def test_a_window_opened_for_one_release_is_closed_for_the_next() -> None:
    device, made, engine, _, _ = staged()
    device.injector.reasons = ("alarm",)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    engine.cancel(made.release.digest)
    device.work()
    device.injector.reasons = ()
    other = device.make("3.0", 3)
    engine.check("relay", other.path)
    engine.install(other.release.digest)
    device.work()
    assert engine.transaction.phase.value == "STAGED"
    assert not engine.transaction.window_open, "nobody has opened a window for this release"


def test_a_download_over_the_limit_does_not_pause_the_next_release() -> None:
    device = Device()
    made, small = device.make("2.0", 2), device.make("3.0", 3)
    slots, _ = fit(device)
    engine = device.power_on()
    device.work()
    slots.faults = [BudgetError("needs 9, allowed 1")]
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    engine.cancel(made.release.digest)
    device.work()
    engine.check("relay", small.path)
    engine.install(small.release.digest)
    device.work()
    assert engine.transaction.phase.value == "STAGED"


def test_a_cancel_that_cannot_be_remembered_is_not_reported_as_done() -> None:
    device, made, engine, _, documents = staged()
    documents.refused = frozenset({"journal"})
    engine.cancel(made.release.digest)
    device.work()
    assert engine.transaction.is_cancel_requested()
    documents.refused = frozenset()
    device.work()
    assert not engine.transaction.is_cancel_requested()
    engine = device.restart_service()
    device.work()
    assert engine.transaction.phase.value == "IDLE"


def test_a_check_during_another_session_is_busy_and_not_the_end_of_a_deployment() -> None:
    device, made, engine, _, _ = staged()
    device.trust.error = SecondInstanceError("trust.lock: held by process 7")
    with pytest.raises(EngineBusyError):
        engine.check("relay", made.path)


# --- what changed while a consent was awaited ---


def waiting() -> tuple[Device, Made, Engine]:
    device = Device()
    made = device.make("2.0", 2, policy=LOCAL_CONSENT)
    engine = device.power_on()
    device.work()
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    assert engine.transaction.phase.value == "WAIT_CONSENT"
    return device, made, engine


def agree(device: Device, made: Made, engine: Engine) -> None:
    now = device.clock.now_utc()
    engine.consent(
        Consent(
            digest=made.release.digest,
            scope=(Scope.INSTALL, Scope.ACTIVATE),
            channel=Channel.LOCAL,
            who="uid:1000",
            given_utc=format_utc(now),
            expires_utc=format_utc(now + timedelta(hours=1)),
        )
    )
    device.work()


@pytest.mark.parametrize("forbids", [{"updates": False}, {"consent": SitePolicy.DENY}])
def test_a_site_that_forbade_updates_while_a_consent_was_awaited_is_obeyed(forbids: dict[str, Any]) -> None:
    device, made, _ = waiting()
    device.site = replace(device.site, **forbids)
    engine = device.restart_service()
    agree(device, made, engine)
    assert env_of(device).ok_b, "nothing was disarmed"
    assert engine.transaction.last is not None
    assert (engine.transaction.phase.value, engine.transaction.last.code) == ("FAILED", "update.disabled")


def test_a_state_directory_that_filled_up_while_a_consent_was_awaited_refuses_before_disarm() -> None:
    device, made, engine = waiting()
    device.documents.free = 1000
    agree(device, made, engine)
    assert env_of(device).ok_b, "nothing was disarmed"
    assert engine.transaction.last is not None
    assert engine.transaction.last.code == "update.no-space"


# --- trial ---


def test_a_full_state_directory_does_not_keep_a_failed_verdict_out_of_the_environment() -> None:
    device, made, engine, documents = in_trial()
    documents.refused = frozenset({"journal"})
    device.health.sick = lambda identity: identity.version == "2.0"
    verdict = engine.health(given_up=lambda: False)
    assert verdict is not None
    assert not verdict.healthy
    assert env_of(device).left == 0, "each further try would meet the same verdict"
    device.work()
    assert device.reboot.requested
    assert made.release.digest == engine.transaction.open_digest()


class SlowInjector(ToyInjector):
    """An injector that lets one thread wait for the answer about the lease."""

    def __init__(self, power: Power) -> None:
        super().__init__(power)
        self.asked_by: str = ""
        self.reached, self.go_on = threading.Event(), threading.Event()

    def lease(self) -> Held | None:
        if threading.current_thread().name == self.asked_by:
            self.reached.set()
            self.go_on.wait(1)
        return super().lease()


def test_a_second_health_call_does_not_undo_a_commit() -> None:
    device, _, engine, _ = in_trial()
    slow = SlowInjector(device.power)
    device.injector, slow.asked_by = slow, "second"
    engine = device.restart_service()
    second = threading.Thread(target=engine.health, kwargs={"given_up": lambda: False}, name="second")
    second.start()
    assert slow.reached.wait(10)
    assert engine.health(given_up=lambda: False) is not None
    assert engine.commit()
    slow.go_on.set()
    second.join(10)
    assert engine.transaction.phase.value == "COMMITTED"
    assert slow.held is None, "nobody would give this lease back"


# --- degraded ---


def test_a_repair_whose_slot_cannot_be_read_leaves_the_device_degraded_and_the_process_alive() -> None:
    device = Device()
    made = device.make("2.0", 2)
    device.live(made)
    device.power_off()
    slots, _ = fit(device)
    device.storage.env[:] = bytes(len(device.storage.env))

    def fail(control: Control) -> None:
        raise SlotError("slot B: read failed", code="slot.io", retryable=True)

    slots.during_read = fail
    engine = device.start_updater(SlotName.B)
    device.work()
    assert engine.transaction.degraded == "boot.env-invalid"
    assert device.storage.boot_env() is None


def test_a_repair_that_the_end_of_the_process_interrupts_decides_nothing() -> None:
    device = Device()
    made = device.make("2.0", 2)
    device.live(made)
    device.power_off()
    slots, _ = fit(device)
    device.storage.env[:] = bytes(len(device.storage.env))

    def end(control: Control) -> None:
        raise InstallCancelledError("the service stops")

    slots.during_read = end
    engine = device.start_updater(SlotName.B)
    device.work()
    assert device.storage.boot_env() is None
    assert engine.transaction.degraded == "boot.env-invalid"


# --- two threads and one document ---


class Rendezvous(StateDisk):
    """A state directory whose readers of one document meet before either writes it."""

    def __init__(self, device: Device) -> None:
        super().__init__(device.storage, device.power)
        self.barrier = threading.Barrier(2)

    def load(self, name: str) -> dict[str, Any] | None:
        found = super().load(name)
        if name == "quarantine":
            with contextlib.suppress(
                threading.BrokenBarrierError
            ):  # the other one waits its turn, as it should
                self.barrier.wait(0.3)
        return found


def test_a_quarantine_is_not_lost_to_a_clearing_at_the_same_time() -> None:
    device = Device()
    journal = Journal(StateDisk(device.storage, device.power))
    journal.quarantine("a" * 16, "health.hal")
    journal = Journal(Rendezvous(device))
    threads = [
        threading.Thread(target=journal.clear_quarantine, args=("a" * 16,)),
        threading.Thread(target=journal.quarantine, args=("b" * 16, "health.hal")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert set(Journal(StateDisk(device.storage, device.power)).quarantined()) == {"b" * 16}
