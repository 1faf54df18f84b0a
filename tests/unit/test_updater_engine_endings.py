"""How a trial ends when storage or the injector is in the way, and who may take over a transfer that waits."""

import pytest
from tidewaiter_core.errors import StateWriteError
from tidewaiter_core.model import SlotName
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import EngineBusyError, SourceError
from tidewaiter_updater.model import FloorValues, source_name
from tidewaiter_updater.unwritten import VERDICT_WAITS

from tests.sim.device import Device, Made, Storage, ToyFloors

STICK = source_name("/media/stick")


def trial(*, sick: bool = False) -> tuple[Device, Made, Engine]:
    """A device in its first trial boot of 2.0."""
    device = Device()
    made = device.make("2.0", 2)
    device.power_on()
    device.work()
    device.offer(made)
    assert device.reboot.requested
    device.power_off()
    engine = device.power_on()
    device.work()
    assert engine.transaction.phase.value == "TRIAL"
    if sick:
        device.health.sick = lambda identity: identity.version == "2.0"
    return device, made, engine


def env_of(storage: Storage) -> tuple[SlotName, bool, int]:
    """Committed slot, whether a trial is set, tries left."""
    env = storage.boot_env()
    assert env is not None
    return env.committed, env.trial is not None, env.left


# --- the injector's lease ---


def test_the_lease_is_kept_while_a_failed_trial_waits_for_its_reboot() -> None:
    device, _, engine = trial(sick=True)
    engine.health(given_up=lambda: False)
    device.injector.reasons = ("alarm",)
    device.injector.asked.clear()
    for _ in range(5):
        device.work()
        device.clock.advance(10)
    assert not device.reboot.requested
    assert device.injector.held is not None, "the injector would inject under a release that failed"
    assert "release" not in device.injector.asked


def test_the_lease_is_kept_between_two_tries_of_that_reboot() -> None:
    device, _, engine = trial(sick=True)
    engine.health(given_up=lambda: False)
    device.work()
    assert device.reboot.requested
    device.injector.asked.clear()
    device.clock.advance(61)
    engine.step()
    assert device.reboot.requested
    assert "seal" in device.injector.asked
    assert "release" not in device.injector.asked
    assert device.injector.held is not None
    assert device.injector.held.sealed, (
        "sealed again: the HAL unlocks a minute after a seal without a shutdown"
    )


def test_a_lease_that_the_operator_took_back_is_asked_for_again_before_the_reboot() -> None:
    device, _, engine = trial(sick=True)
    engine.health(given_up=lambda: False)
    device.injector.held = None
    device.injector.asked.clear()
    device.work()
    assert device.reboot.requested
    assert "hold" in device.injector.asked


class FullFloors(ToyFloors):
    """A state directory without room for the floors."""

    is_full = True

    def raise_committed(self, release: FloorValues) -> None:
        if self.is_full:
            raise StateWriteError("floor.json: no space left; its previous content is unchanged")
        super().raise_committed(release)


def test_a_committed_release_gives_the_lease_back_although_the_floors_cannot_be_written() -> None:
    device, _, engine = trial()
    floors = FullFloors(device.storage, device.power)
    object.__setattr__(engine.transaction.ports, "floors", floors)
    engine.health(given_up=lambda: False)
    with pytest.raises(StateWriteError):
        engine.commit()
    assert env_of(device.storage) == (SlotName.B, False, 0)
    assert device.injector.held is None, "a full disk would keep the injector from its patients"
    device.work()
    assert engine.transaction.pending
    floors.is_full = False
    device.clock.advance(61)
    device.work()
    assert not engine.transaction.pending
    assert device.storage.floors.sequence == 2


# --- a boot environment that refuses ---


def test_a_commit_that_cannot_be_written_is_tried_again_while_the_device_runs() -> None:
    device, _, engine = trial()
    engine.health(given_up=lambda: False)
    device.env_disk.broken = True
    with pytest.raises(BootEnvError):
        engine.commit()
    device.work()
    assert engine.transaction.waiting_for == ("boot.env-write",)
    assert engine.transaction.degraded is None
    assert env_of(device.storage)[0] is SlotName.A
    assert device.injector.held is not None, "nothing is committed, so the injector stays locked"
    device.env_disk.broken = False
    device.clock.advance(3600)
    device.work()
    assert env_of(device.storage) == (SlotName.B, False, 0)
    assert engine.transaction.phase.value == "COMMITTED"
    assert not engine.transaction.pending
    assert not engine.transaction.waiting_for


def test_the_tries_of_a_commit_grow_apart() -> None:
    device, _, engine = trial()
    engine.health(given_up=lambda: False)
    device.env_disk.broken = True
    with pytest.raises(BootEnvError):
        engine.commit()
    waits_s = []
    for _ in range(12):
        wait_s = engine.step()
        waits_s.append(wait_s)
        assert wait_s > 0
        device.clock.advance(wait_s)
    assert max(waits_s) <= 600
    assert sum(waits_s) > 600, "a medium that is worn out is not written every second"


def test_a_second_commit_while_the_first_one_waits_is_tried_at_once() -> None:
    device, _, engine = trial()
    engine.health(given_up=lambda: False)
    device.env_disk.broken = True
    with pytest.raises(BootEnvError):
        engine.commit()
    device.work()
    device.env_disk.broken = False
    assert engine.commit()
    assert env_of(device.storage) == (SlotName.B, False, 0)


def test_a_verdict_that_cannot_be_written_is_written_again_before_the_reboot() -> None:
    device, _, engine = trial(sick=True)
    device.env_disk.broken = True
    with pytest.raises(BootEnvError):
        engine.health(given_up=lambda: False)
    device.work()
    assert not device.reboot.requested
    device.env_disk.broken = False
    device.clock.advance(3600)
    device.work()
    assert env_of(device.storage)[2] == 0
    assert device.reboot.requested


def given_up() -> tuple[Device, Made, float]:
    """A device that could not write FAIL until it asked for the reboot without, and how long that took."""
    device, made, engine = trial(sick=True)
    device.env_disk.broken = True
    with pytest.raises(BootEnvError):
        engine.health(given_up=lambda: False)
    waited_s = 0.0
    while engine.transaction.pending:
        assert not device.reboot.requested
        assert device.injector.held is not None
        wait_s = engine.step()
        waited_s += wait_s
        device.clock.advance(wait_s)
    device.work()
    return device, made, waited_s


def test_a_verdict_that_is_never_written_is_left_to_the_tries_after_five_waits() -> None:
    device, _, waited_s = given_up()
    tried = [name for phase, name in device.power.log if name == "FAIL"]
    assert len(tried) == 2 + VERDICT_WAITS, "when health said no, at once by the worker, and after each wait"
    assert waited_s <= 160, "the injector is locked as long as that"
    assert device.reboot.requested
    assert device.injector.held is not None
    assert device.injector.held.sealed


def test_a_verdict_that_was_not_written_ends_the_trial_although_no_boot_was_counted() -> None:
    """The loader cannot write either and starts the committed slot: that is no trial that never ran."""
    device, made, _ = given_up()
    device.power_off()
    device.env_disk.broken = False
    engine = device.start_updater(SlotName.A, boot_id="f" * 32)
    device.work()
    assert engine.transaction.phase.value == "ROLLED_BACK"
    assert made.release.txn in engine.transaction.journal.quarantined()
    assert env_of(device.storage) == (SlotName.A, False, 0)
    assert engine.transaction.last is not None
    assert engine.transaction.last.code.startswith("health.")
    device.offer(made)
    assert not device.reboot.requested


# --- the source of a transfer that waits ---


def test_a_transfer_that_waits_for_its_stick_goes_on_over_the_network() -> None:
    device = Device()
    made = device.make("2.0", 2)
    engine = device.power_on()
    device.work()
    engine.check(STICK, made.path)
    device.slots.faults = [SourceError("pulled out", code="source.vanished")]
    engine.install(made.release.digest)
    device.work()
    assert engine.transaction.phase.value == "TRANSFER"
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    assert engine.transaction.phase.value == "STAGED"
    assert engine.transaction.entry is not None
    assert engine.transaction.entry.source == "relay"


def test_a_check_while_the_transfer_works_is_busy() -> None:
    device = Device()
    made = device.make("2.0", 2)
    engine = device.power_on()
    device.work()
    engine.check("relay", made.path)
    refused = []

    def ask() -> None:
        try:
            engine.check("relay", made.path)
        except EngineBusyError as err:
            refused.append(err)

    device.slots.during = ask
    engine.install(made.release.digest)
    device.work()
    assert refused


# --- reports and memory ---


def test_deleted_state_directory_costs_only_hashing() -> None:
    """In each phase before the reboot: what is right is read, not fetched again, and nothing is decided differently."""
    for stop_at in ("TRANSFER", "VERIFY", "STAGED"):
        device = Device()
        made = device.make("2.0", 2)
        engine = device.power_on()
        device.work()
        engine.check("relay", made.path)
        engine.install(made.release.digest)
        while engine.transaction.phase.value != stop_at:
            engine.step()
        if stop_at == "TRANSFER":
            engine.step()
        fetched = len(device.slots.fetched)
        device.power_off()
        device.storage.documents.clear()
        device.storage.blobs.clear()
        device.live(made)
        assert device.is_running(made)
        assert fetched + len(device.slots.fetched) == 3, (
            f"{stop_at}: three chunks differ, each is fetched once"
        )


def test_deleted_state_directory_in_a_trial_decides_nothing_else() -> None:
    device, made, _ = trial()
    device.power_off()
    device.storage.documents.clear()
    device.storage.blobs.clear()
    device.power_on()
    device.work()
    device.confirm()
    assert env_of(device.storage) == (SlotName.B, False, 0)
    assert device.is_running(made)


def test_a_verdict_and_a_commit_ask_nobody_outside_the_device() -> None:
    device, made, engine = trial()
    device.trust.error = SourceError("the server refuses every report")
    device.slots.faults = [SourceError("offline")]
    engine.health(given_up=lambda: False)
    assert engine.commit()
    device.work()
    device.power_off()
    device.power_on()
    device.work()
    assert device.is_running(made)
    assert env_of(device.storage) == (SlotName.B, False, 0)
