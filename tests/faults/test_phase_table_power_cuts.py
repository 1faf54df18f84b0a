"""The phase table, walked exhaustively: the power is cut before, in the middle of and after every effect of every phase.

The real engine, boot adapter, journal and phase table run on storage that drops what was not synced (or happens to keep it).
At the moment of the cut, and again when the device has booted by the boot script and lived on until nothing changes any more,
the invariants are checked. That no half-written slot ever boots (I1, I2) is checked by the world at each boot and each chunk.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tidewaiter_core.model import SlotName
from tidewaiter_updater.model import BootEnd
from tidewaiter_updater.phases import EFFECTS, Effect, Phase

from tests.sim.device import Cut, Device, Made, PowerCut, Violation

MOMENTS = (("before", False), ("torn", False), ("torn", True), ("after", False), ("after", True))


@dataclass(frozen=True)
class Scenario:
    """What happens to a device, and how it must end whatever happens in between."""

    name: str
    play: Callable[[Device, Made], None]
    commits: bool | None
    """None: the story allows both ends (a cut may fall before or after the person's decision)."""
    sick: bool = False


def _healthy(device: Device, made: Made) -> None:
    device.live(made)


def _hanging_trial(device: Device, made: Made) -> None:
    """The trial never gets to its health checks: the watchdog resets it until the tries are spent."""
    for _ in range(40):
        engine = device.engine or device.power_on()
        device.work()
        if engine.transaction.phase is Phase.TRIAL:
            device.power_off()
            continue
        if device.is_settled(made):
            return
        device.offer(made)
        if device.reboot.requested:
            device.power_off()
        device.clock.advance(600)
    raise Violation("the hanging trial is tried for ever")


def _switched_off(device: Device, made: Made) -> None:
    """A person switches the device off in its trial, once; the hardware can tell, and the try is given back."""
    device.evidence.end = BootEnd.SWITCHED_OFF
    for _ in range(10):
        engine = device.engine or device.power_on()
        device.work()
        if engine.transaction.phase is Phase.TRIAL:
            device.power_off()
            break
        device.offer(made)
        if device.reboot.requested:
            device.power_off()
        device.clock.advance(600)
    device.live(made)


def _refused_medium(device: Device, made: Made) -> None:
    """Chunks read back wrong twice: the slot is given up, the running release is not."""
    device.power_on()
    device.slots.lies = 2
    device.work()
    device.offer(made)
    device.work()


def _canceled(device: Device, made: Made) -> None:
    """A person cancels a staged release."""
    engine = device.power_on()
    device.work()
    device.injector.reasons = ("state-not-idle",)
    device.offer(made)
    engine.cancel(made.release.digest)
    device.work()


SCENARIOS = (
    Scenario("commits", _healthy, commits=True),
    Scenario("rolls back", _healthy, commits=False, sick=True),
    Scenario("hangs", _hanging_trial, commits=False),
    Scenario("switched off", _switched_off, commits=True),
    Scenario("medium fails", _refused_medium, commits=None),
    Scenario("canceled", _canceled, commits=None),
)


def _device(scenario: Scenario) -> tuple[Device, Made]:
    device = Device()
    made = device.make("2.0", 2, security_epoch=1)
    if scenario.sick:
        device.health.sick = lambda identity: identity.version == "2.0"
    return device, made


def _effects(scenario: Scenario) -> list[tuple[str, str]]:
    device, made = _device(scenario)
    scenario.play(device, made)
    return device.power.log


def _cut_and_recover(scenario: Scenario, cut: Cut) -> tuple[Device, Made]:
    device, made = _device(scenario)
    device.power.cut = cut
    try:
        scenario.play(device, made)
    except PowerCut:
        device.power.cut = None
        _always_bootable(device)
        device.power_off(keep_pending=cut.keep_pending)
        if scenario.name == "hangs":
            _hanging_trial(device, made)
        else:
            device.injector.reasons = ()
            device.live(made)
    return device, made


def _always_bootable(device: Device) -> None:
    """What must hold at the very moment of any cut."""
    env = device.storage.boot_env()
    if env is None:
        raise Violation("both environment copies are lost by one cut")
    content = tuple(device.storage.slots[env.committed])
    if content not in device.identities:
        raise Violation(f"committed slot {env.committed} holds {content}")
    done = [effect for _, effect in device.power.log[:-1]]
    if "COMMIT" in done and env.committed is not SlotName.B:
        raise Violation("committed stays committed")
    running = device.identities[content]
    if device.storage.floors.sequence > running.sequence or env.epoch > running.security_epoch:
        raise Violation("floors rise after COMMIT only, a rollback would be forbidden")


def _tries(device: Device) -> int:
    """Boots of a trial slot."""
    return sum(effect == "script" for _, effect in device.power.log)


def _check_end(device: Device, made: Made, scenario: Scenario) -> None:
    env = device.storage.boot_env()
    assert env is not None
    assert env.trial is None, "a finished device has no trial"
    assert env.committed is device.booted, "a finished device runs what it committed"
    running = device.storage.slots[env.committed]
    if scenario.commits is True:
        assert running == made.image, "interrupted work resumes until the healthy release is committed"
        assert made.release.txn not in device.quarantined()
        assert device.storage.floors.sequence == 2
        assert env.epoch == 1
        assert not env.is_ok(env.committed.other), "no slot below the epoch stays bootable"
        assert "update.committed" in device.audited()
    elif scenario.commits is False:
        assert running == device.factory.image, "a release that failed is left"
        assert made.release.txn in device.quarantined(), "a release that failed is quarantined"
        assert not env.is_ok(SlotName.B)
        assert device.storage.floors.sequence == 1, "floors rise after COMMIT only"
        assert "update.rolled_back" in device.audited()
        effects = [effect for _, effect in device.power.log]
        given_up = next(number for number, effect in enumerate(effects) if effect in ("FAIL", "quarantine"))
        assert "ARM" not in effects[given_up:-1], "a release that failed is not tried again"
        # One try may be spent twice, where the cut fell into it.
        assert _tries(device) <= (2 if scenario.sick else 4), "a verdict ends the trial at once"
    assert device.storage.documents["journal"]["closed"] or env.committed is SlotName.A


@pytest.mark.req("UP-16")
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_power_cut_at_any_effect_leaves_a_device_that_ends_as_if_nothing_had_happened(
    scenario: Scenario,
) -> None:
    for number, (phase, effect) in enumerate(_effects(scenario)):
        for when, keep_pending in MOMENTS:
            cut = Cut(at=number, when=when, keep_pending=keep_pending)
            try:
                device, made = _cut_and_recover(scenario, cut)
                _check_end(device, made, scenario)
            except AssertionError as err:
                raise Violation(f"{scenario.name}: {cut} in {phase}: {effect}: {err}") from err


@pytest.mark.req("UP-16")
def test_a_second_cut_during_the_recovery_changes_nothing() -> None:
    scenario = SCENARIOS[0]
    first = [
        number
        for number, (_, effect) in enumerate(_effects(scenario))
        if effect in ("ARM", "COMMIT", "script", "DISARM")
    ]
    for number in first:
        for second in range(number + 1, number + 12):
            device, made = _device(scenario)
            for at in (number, second):
                device.power.cut = Cut(at=at, when="after")
                try:
                    device.live(made)
                except PowerCut:
                    device.power.cut = None
                    device.power_off()
            device.live(made)
            _check_end(device, made, scenario)


def test_every_effect_of_every_phase_of_the_table_was_cut() -> None:
    done = {pair for scenario in SCENARIOS for pair in _effects(scenario)}
    names = {Effect.RECORD_SLOT: "slots"}
    missing = {
        (phase.value, effect.value)
        for phase, effects in EFFECTS.items()
        for effect in effects
        if (phase.value, names.get(effect, effect.value)) not in done
    }
    assert missing == set()


def test_a_deleted_state_directory_costs_only_hashing() -> None:
    """At every effect: the cut also takes the whole state directory (invariant I3)."""
    scenario = SCENARIOS[0]
    for number in range(len(_effects(scenario))):
        device, made = _device(scenario)
        device.power.cut = Cut(at=number, when="after")
        try:
            device.live(made)
        except PowerCut:
            device.power.cut = None
            device.power_off()
            device.storage.documents.clear()
            device.storage.blobs.clear()
            device.live(made)
        env = device.storage.boot_env()
        assert env is not None
        assert device.storage.slots[env.committed] == made.image


def test_every_phase_survives_sigkill_of_the_service() -> None:
    """The process dies at every effect while the machine stays up; nothing is committed by a restart."""
    scenario = SCENARIOS[0]
    for number in range(len(_effects(scenario))):
        device, made = _device(scenario)
        device.power.cut = Cut(at=number, when="after")
        try:
            device.live(made)
        except PowerCut:
            device.power.cut = None
            if device.booted is None:
                device.power_off()
            else:
                before = device.storage.boot_env()
                device.restart_service()
                after = device.storage.boot_env()
                assert before is not None
                assert after is not None
                assert after.committed is before.committed, "a restart commits nothing"
            device.live(made)
        assert device.is_running(made)
