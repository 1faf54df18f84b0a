"""What every boot loader's adapter and script do alike, on storage that may lose its power at any step.

One run per decision and loader: the power goes after every operation, each image that storage may then hold is looked at, booted
and repaired by trying again (update-engine.md sections 8 and 17.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater import decision
from tidewaiter_updater.boot import BootControl, BootEnvError
from tidewaiter_updater.model import BootEnv

from tests.faults.crash_explorer.backends import BACKENDS, Backend
from tests.faults.crash_explorer.cuts import images
from tests.sim.boot.sdboot_staging import StagingBackend
from tests.sim.storage import Content, Storage, fingerprint

A, B = SlotName.A, SlotName.B
ENV = BootEnv(committed=A, ok_a=True, ok_b=True, epoch=7)
TXN, OTHER_TXN = "00112233445566aa", "ffeeddccbbaa9988"
BOOT = "c0ffee00" * 4
GOES_BY_NAMES = "systemd-boot"
LOADERS: dict[str, Backend] = {one.name: one for one in BACKENDS} | {GOES_BY_NAMES: StagingBackend()}

pytestmark = pytest.mark.parametrize("loader", LOADERS.values(), ids=LOADERS)


@dataclass
class Device:
    """A device between power-ons."""

    loader: Backend
    storage: Storage

    @classmethod
    def new(cls, loader: Backend, env: BootEnv = ENV) -> Device:
        return cls(loader, Storage(loader.factory(env)))

    @classmethod
    def of(cls, loader: Backend, content: Content) -> Device:
        return cls(loader, Storage(content, is_recorded=False))

    @property
    def boot(self) -> BootControl:
        return self.loader.control(self.storage, cmdline=lambda: "ro tidewaiter.slot=A")

    def power_on(self, *, loads: Callable[[SlotName], bool] = lambda slot: True) -> SlotName | None:
        return self.loader.script(self.storage).run(loads)

    def read(self) -> BootEnv:
        env = self.boot.read()
        assert env is not None
        return env

    def write(self, *envs: BootEnv) -> Device:
        for env in envs:
            self.boot.write(env)
        return self


def armed(env: BootEnv = ENV, *, tries: int = 3) -> BootEnv:
    return decision.arm(decision.disarm(env, B), B, tries=tries, txn=TXN, boot_id=BOOT)


def arm_and_boot(device: Device, *, tries: int = 3, boots: int = 1) -> BootEnv:
    """A trial that has control."""
    device.write(decision.disarm(device.read(), B), armed(device.read(), tries=tries))
    for _ in range(boots):
        assert device.power_on() is B
    return device.read()


def committed_b(device: Device) -> BootEnv:
    env = decision.commit(arm_and_boot(device), B)
    device.write(env)
    return env


# --- one decision, cut at every step ----------------------------------------------------------------------------------


def _disarm(device: Device) -> BootEnv:
    return decision.disarm(device.read(), B)


def _arm(device: Device) -> BootEnv:
    device.write(decision.disarm(device.read(), B))
    return armed()


def _refund(device: Device) -> BootEnv:
    return decision.refund(arm_and_boot(device))


def _fail(device: Device) -> BootEnv:
    return decision.fail(arm_and_boot(device))


def _commit(device: Device) -> BootEnv:
    return decision.commit(arm_and_boot(device), B)


def _commit_on_the_last_try(device: Device) -> BootEnv:
    return decision.commit(arm_and_boot(device, tries=1), B)


def _raise(device: Device) -> BootEnv:
    return decision.raise_epoch(committed_b(device), 9, close_other=True)


def _clear_before_reboot(device: Device) -> BootEnv:
    device.write(decision.disarm(device.read(), B), armed())
    return decision.clear(device.read())


def _clear_after_rollback(device: Device) -> BootEnv:
    arm_and_boot(device, tries=2, boots=2)
    assert device.power_on() is A
    return decision.clear(device.read())


DECISIONS = {
    "disarm": _disarm,
    "arm": _arm,
    "refund": _refund,
    "fail": _fail,
    "commit": _commit,
    "commit on the last try": _commit_on_the_last_try,
    "raise": _raise,
    "clear before reboot": _clear_before_reboot,
    "clear after rollback": _clear_after_rollback,
}


def bootable(env: BootEnv) -> set[SlotName]:
    slots = {env.committed} | {slot for slot in SlotName if env.is_ok(slot)}
    return slots | ({env.trial} if env.trial is not None else set())


def cuts(device: Device, act: Callable[[], object]) -> Iterator[Content]:
    """Every distinct image that a cut during `act` may leave."""
    first = len(device.storage.points) - 1
    act()
    seen = set()
    for point in device.storage.points[first:]:
        for content in images(point):
            if (mark := fingerprint(content)) not in seen:
                seen.add(mark)
                yield content


@pytest.mark.parametrize("prepare", DECISIONS.values(), ids=DECISIONS)
def test_a_decision_is_in_force_or_not_wherever_the_power_goes(
    loader: Backend, prepare: Callable[[Device], BootEnv]
) -> None:
    device = Device.new(loader)
    target = prepare(device)
    before = device.read()
    allowed = bootable(before) | bootable(target)
    found = set()
    for content in cuts(device, lambda: device.write(target)):
        env = loader.in_force(content)
        assert env in (before, target)
        found.add(env == target)
        assert Device.of(loader, content).power_on() in allowed
    assert device.read() == target
    assert found == {True, False}


@pytest.mark.parametrize("prepare", DECISIONS.values(), ids=DECISIONS)
def test_a_decision_that_was_cut_can_be_made_again(
    loader: Backend, prepare: Callable[[Device], BootEnv]
) -> None:
    device = Device.new(loader)
    target = prepare(device)
    for content in cuts(device, lambda: device.write(target)):
        again = Device.of(loader, content)
        again.write(target)
        assert again.read() == target
        assert again.power_on() in bootable(target)


def test_a_try_is_counted_or_not_wherever_the_power_goes_in_the_script(loader: Backend) -> None:
    device = Device.new(loader)
    device.write(decision.disarm(ENV, B), armed())
    for content in cuts(device, device.power_on):
        env = loader.in_force(content)
        assert env is not None
        assert replace(env, left=3) == armed()
        again = Device.of(loader, content)
        if trial_names(content) == 2:
            # systemd-boot cannot rename onto a name that exists, so it goes on uncounted until the updater looks.
            assert again.power_on() is B
            again.write(decision.fail(again.read()))
        booted = [again.power_on() for _ in range(5)]
        assert booted[-1] is A, "tries are spent, then the committed slot boots"
        assert booted.count(B) in {0, 2, 3}


def trial_names(content: Content) -> int:
    """Entries of slot B on the EFI system partition."""
    return sum(1 for key in content if key[0] in ("file", "link") and ".B+" in key[1])


# --- what is written ---------------------------------------------------------------------------------------------------


def test_every_number_is_followed_by_a_newer_one(loader: Backend) -> None:
    device = Device.new(loader)
    for epoch in range(7, 7 + 260 if loader.name != GOES_BY_NAMES else 20):
        env = replace(ENV, epoch=epoch)
        device.write(env)
        assert device.read() == env


def test_write_that_does_not_read_back_is_an_error(loader: Backend) -> None:
    device = Device.new(loader)
    lies = loader.device(device.storage).lies
    lies.syncs, lies.whole = set(range(9)), True
    target = replace(ENV, epoch=8)
    with pytest.raises(BootEnvError, match="read back") as caught:
        device.write(target)
    assert caught.value.code == "boot.env-write"
    assert device.read() == ENV


def test_both_copies_lost_is_no_record_and_some_slot_boots(loader: Backend) -> None:
    device = lost(Device.new(loader))
    assert device.boot.read() is None
    assert device.power_on() is A


def test_a_repair_forbids_the_other_slot_and_holds(loader: Backend) -> None:
    device = lost(Device.new(loader))
    repaired = decision.repair(A, epoch=7)
    device.write(repaired)
    assert device.read() == repaired
    assert device.power_on() is A


def test_a_repair_in_a_trial_commits_what_runs(loader: Backend) -> None:
    device = Device.new(loader)
    arm_and_boot(device)
    lost(device).write(decision.repair(B, epoch=7))
    assert {device.power_on() for _ in range(12)} == {B}


def lost(device: Device) -> Device:
    """Both copies hold nothing."""
    disk = device.loader.device(device.storage)
    for place in [key[2] for key in device.storage.view if key[0] == "block" and key[1] == disk.name]:
        disk.write(place * 4096, bytes(4096))
    disk.sync()
    return device


# --- which slot boots --------------------------------------------------------------------------------------------------


def test_fifty_power_cycles_never_change_the_slot(loader: Backend) -> None:
    device = Device.new(loader)
    before = device.storage.content()
    assert {device.power_on() for _ in range(50)} == {A}
    assert device.storage.content() == before


def test_fifty_power_cycles_after_a_commit_never_change_the_slot(loader: Backend) -> None:
    device = Device.new(loader)
    env = committed_b(device)
    before = device.storage.content()
    assert {device.power_on() for _ in range(50)} == {B}
    assert device.storage.content() == before
    assert device.read() == env


def test_a_trial_spends_its_tries_and_then_the_committed_slot_boots(loader: Backend) -> None:
    device = Device.new(loader)
    device.write(decision.disarm(ENV, B), armed(tries=2))
    assert [device.power_on() for _ in range(4)] == [B, B, A, A]
    assert device.read() == replace(armed(tries=2), left=0), "the script never clears a trial"


def test_a_try_is_spent_before_the_trial_is_loaded(loader: Backend) -> None:
    device = Device.new(loader)
    device.write(decision.disarm(ENV, B), armed(tries=1))
    assert device.power_on(loads=lambda slot: slot is A) is None
    assert device.power_on(loads=lambda slot: slot is A) is A


def test_a_refund_gives_one_try_back_and_at_most_five(loader: Backend) -> None:
    device = Device.new(loader)
    device.write(decision.disarm(ENV, B), armed(tries=2))
    boots = 0
    while device.power_on() is B:
        boots += 1
        refunded = decision.refund(device.read())
        if refunded != device.read():
            device.write(refunded)
            assert device.read() == refunded
    assert boots == 2 + decision.MAX_REFUNDS


def test_a_failed_trial_is_left_at_the_next_reset(loader: Backend) -> None:
    device = Device.new(loader)
    device.write(decision.fail(arm_and_boot(device, tries=9)))
    assert device.power_on() is A
    assert device.read().trial is B


def test_a_committed_slot_that_does_not_load_falls_back_only_where_allowed(loader: Backend) -> None:
    if loader.name == GOES_BY_NAMES:
        pytest.skip("systemd-boot hands a refused image back to the firmware; what that does needs a machine")
    device = Device.new(loader)
    assert device.power_on(loads=lambda slot: slot is B) is B
    device.write(decision.disarm(ENV, B))
    assert device.power_on(loads=lambda slot: slot is B) is None


def test_a_closed_slot_is_never_booted_again(loader: Backend) -> None:
    device = Device.new(loader)
    device.write(decision.raise_epoch(committed_b(device), 9, close_other=True))
    assert device.power_on(loads=lambda slot: slot is A) is None


def test_slots_alternate_over_many_updates(loader: Backend) -> None:
    device = Device.new(loader)
    for number in range(8):
        target = device.read().committed.other
        txn = f"{number + 1:016x}"
        device.write(decision.disarm(device.read(), target))
        device.write(decision.arm(device.read(), target, tries=3, txn=txn, boot_id=BOOT))
        assert device.power_on() is target
        device.write(decision.commit(device.read(), target))
        assert [device.power_on() for _ in range(3)] == [target] * 3
