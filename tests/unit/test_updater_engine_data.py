"""The engine and the product's data: what cannot be undone, which schema fits, and what the data step has to do with a trial."""

from dataclasses import replace

import pytest
from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data
from tidewaiter_updater.consent import SitePolicy
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import OfferRefusedError
from tidewaiter_updater.model import BootEnv, Channel, DataState, DataStatus, Scope
from tidewaiter_updater.ports import NoDataSets
from tidewaiter_updater.status import render_offer
from tidewaiter_updater.transaction import Site

from tests.sim.device import HW, PRODUCT, Device, Made, no_way_back


class Sets(NoDataSets):
    """The data sets as a test wants them."""

    def __init__(self) -> None:
        self.states = [DataState.READY]
        self.settled = True
        self.missing: str | None = None
        self.asked = 0

    def status(self) -> DataStatus:
        return DataStatus(state=self.states.pop(0) if len(self.states) > 1 else self.states[0])

    def is_settled(self) -> bool:
        return self.settled

    def upkeep(self) -> None:
        self.asked += 1

    def shortage(self, release: Data) -> str | None:
        return self.missing


def device_with() -> tuple[Device, Made, Sets]:
    device, sets = Device(), Sets()
    device.sets = sets
    return device, device.make("2.0", 2), sets


def phase(engine: Engine) -> str:
    return engine.transaction.phase.value


def env_of(device: Device) -> BootEnv:
    env = device.storage.boot_env()
    assert env is not None
    return env


def trial(device: Device, made: Made) -> Engine:
    device.power_on()
    device.work()
    device.offer(made)
    device.power_off()
    engine = device.power_on()
    assert phase(engine) == "TRIAL"
    return engine


@pytest.mark.parametrize("site", list(SitePolicy)[:2])
def test_irreversible_release_needs_local_consent_and_blocks_fallback(site: SitePolicy) -> None:
    device = Device(site=Site(serial="INJ-1", product=PRODUCT, hw=HW, consent=site))
    made = device.make("2.0", 2, data={"writes": 1, "reads_min": 1, "reads_max": 1, "reversible": False})
    engine = device.power_on()
    device.work()
    engine.check("relay", made.path)
    whole = no_way_back(made)
    assert whole is not None
    for too_little in (
        None,
        replace(whole, channel=Channel.SITE),
        replace(whole, scope=(Scope.INSTALL, Scope.ACTIVATE)),
        replace(whole, scope=(Scope.IRREVERSIBLE,)),
        replace(whole, expires_utc=format_utc(device.clock.now_utc())),
    ):
        engine.install(made.release.digest, consent=too_little)
        device.work()
        assert (phase(engine), engine.transaction.waiting_for) == (
            "WAIT_CONSENT",
            ("update.consent", "update.irreversible"),
        )
    assert device.slots.fetched == []
    engine.consent(whole)
    device.live(made)
    assert device.is_running(made)
    assert not env_of(device).ok_a


def test_a_release_that_cannot_be_undone_says_so_and_asks_for_local_consent() -> None:
    device = Device()
    made = device.make("2.0", 2, data={"writes": 1, "reads_min": 1, "reads_max": 1, "reversible": False})
    engine = device.power_on()
    shown = render_offer(engine.check("relay", made.path))["release"]
    assert (shown["consent"], shown["reversible"]) == ("local", False)


def test_a_data_schema_outside_of_what_a_release_reads_is_refused_also_with_the_state_directory_lost() -> (
    None
):
    device = Device()
    made = device.make("2.0", 2, data={"writes": 5, "reads_min": 4, "reads_max": 5, "reversible": True})
    engine = device.power_on()
    assert engine.check("relay", made.path).code == "release.data-schema"


def test_nothing_is_armed_before_the_live_data_set_is_known() -> None:
    device, made, sets = device_with()
    engine = device.power_on()
    device.work()
    sets.settled = False
    device.offer(made)
    assert (phase(engine), engine.transaction.waiting_for) == ("WAIT_WINDOW", ("update.data",))
    assert sets.asked > 0
    sets.settled = True
    device.clock.advance(60)
    device.work()
    assert phase(engine) == "ARMED"


def test_the_data_step_is_awaited_before_the_checks() -> None:
    device, made, sets = device_with()
    trial(device, made)
    sets.states = [DataState.WORKING, DataState.WORKING, DataState.READY]
    before = device.clock.boottime_s()
    device.confirm()
    assert device.clock.boottime_s() - before >= 4
    assert env_of(device).committed is SlotName.B


def test_a_data_step_that_never_ends_is_not_awaited_for_ever() -> None:
    device, made, sets = device_with()
    engine = trial(device, made)
    sets.states = [DataState.WORKING]
    engine.health(given_up=lambda: False)
    assert device.clock.boottime_s() > 660


def test_a_data_step_that_does_not_fit_refuses_before_disarm_and_is_offered_again() -> None:
    device, made, sets = device_with()
    engine = device.power_on()
    sets.missing = "the data step needs 9 free bytes, 1 are free"
    with pytest.raises(OfferRefusedError, match="9 free bytes") as refusal:
        engine.check("relay", made.path)
    assert (refusal.value.code, refusal.value.retryable) == ("update.no-space", True)
    assert env_of(device).ok_b
    sets.missing = None
    assert engine.check("relay", made.path).installable
