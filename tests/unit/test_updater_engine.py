"""The engine on a simulated device: consents, windows, interlock, cancel, failures. Power cuts are in tests/faults."""

from collections.abc import Callable
from typing import Any

import pytest
from tidewaiter_core.audit import AuditUnavailableError
from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_updater.consent import SitePolicy, as_claimed_by_agent
from tidewaiter_updater.decision import arm
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import (
    BudgetError,
    EngineBusyError,
    EngineRefusedError,
    OfferRefusedError,
    SlotError,
    SourceError,
    SourceRefusedError,
    TrustError,
)
from tidewaiter_updater.model import (
    BootEnd,
    BootEnv,
    ByteCounts,
    Channel,
    Consent,
    FloorValues,
    Scope,
    TransferProgress,
)
from tidewaiter_updater.ports import Notice
from tidewaiter_updater.status import render_status
from tidewaiter_updater.transaction import Site
from tidewaiter_updater.transfer import TransferControl

from tests.sim.device import HW, PRODUCT, Cut, Device, Made, PowerCut


def device_with(site: Site | None = None, **options: Any) -> tuple[Device, Made, Engine]:
    device = Device(site=site)
    made = device.make("2.0", 2, **options)
    engine = device.power_on()
    device.work()
    return device, made, engine


def begin(device: Device, made: Made, engine: Engine, consent: Consent | None = None) -> None:
    engine.check("relay", made.path)
    engine.install(made.release.digest, consent=consent)
    device.work()


def stage(device: Device, made: Made, engine: Engine) -> None:
    begin(device, made, engine)
    assert phase(engine) == "STAGED"


def phase(engine: Engine) -> str:
    return engine.transaction.phase.value


def waits(engine: Engine) -> tuple[str, ...]:
    return engine.transaction.waiting_for


def env_of(device: Device) -> BootEnv:
    env = device.storage.boot_env()
    assert env is not None
    return env


def consent_for(
    device: Device, digest: str, *, channel: Channel = Channel.LOCAL, valid_s: float = 3600
) -> Consent:
    now = device.clock.now_utc()
    return Consent(
        digest=Sha256.parse(digest),
        scope=(Scope.INSTALL, Scope.ACTIVATE),
        channel=channel,
        who="uid:1000",
        given_utc=format_utc(now),
        expires_utc=format_utc(
            now.replace(year=now.year + 1) if valid_s > 0 else now.replace(year=now.year - 1)
        ),
    )


# --- offers ---


OFFERS: list[tuple[dict[str, Any], str]] = [
    ({"hw": ["rev-z"]}, "release.hw"),
    ({"from": {"min_sequence": 5, "max_sequence": 9}}, "release.from"),
    (
        {"rollout": {"salt": "0" * 32, "percent_x100": 0, "not_before_utc": "2026-01-01T00:00:00Z"}},
        "release.rollout",
    ),
    (
        {"rollout": {"salt": "0" * 32, "percent_x100": 10000, "not_before_utc": "2027-01-01T00:00:00Z"}},
        "release.rollout",
    ),
]


@pytest.mark.parametrize(("fields", "code"), OFFERS)
def test_a_release_that_does_not_fit_is_refused_and_audited_once(fields: dict[str, Any], code: str) -> None:
    device, made, engine = device_with(**fields)
    offer = engine.check("relay", made.path)
    engine.check("relay", made.path)
    assert (offer.installable, offer.code) == (False, code)
    assert device.audited().count("update.refused") == 1
    with pytest.raises(OfferRefusedError):
        engine.install(made.release.digest)


def test_a_release_that_is_not_newer_is_refused() -> None:
    device, _, engine = device_with()
    same = device.make("1.0-again", 1)
    assert engine.check("relay", same.path).code == "release.sequence"


def test_a_release_below_the_epoch_floor_is_refused() -> None:
    device, made, engine = device_with()
    device.storage.floors = FloorValues(sequence=1, security_epoch=3)
    assert engine.check("relay", made.path).code == "release.epoch"


def test_enospc_in_the_state_directory_refuses_before_disarm() -> None:
    device, made, engine = device_with()
    room, device.documents.free = device.documents.free, 1000
    with pytest.raises(OfferRefusedError) as refusal:
        engine.check("relay", made.path)
    assert (refusal.value.code, refusal.value.retryable) == ("update.no-space", True)
    assert env_of(device).ok_b
    device.documents.free = room
    assert engine.check("relay", made.path).installable


@pytest.mark.parametrize(
    "site",
    [
        Site(serial="I", product=PRODUCT, hw=HW, updates=False),
        Site(serial="I", product=PRODUCT, hw=HW, consent=SitePolicy.DENY),
    ],
)
def test_a_site_that_forbids_updates_is_obeyed(site: Site) -> None:
    _, made, engine = device_with(site)
    assert engine.check("relay", made.path).code == "update.disabled"


def test_a_repository_fault_is_audited_and_a_network_fault_is_not() -> None:
    device, made, engine = device_with()
    for error, audited in ((SourceError("offline"), 0), (TrustError("forged"), 1)):
        device.trust.error = error
        with pytest.raises(type(error)):
            engine.check("relay", made.path)
        assert device.audited().count("update.refused") == audited


def test_a_release_that_was_never_checked_is_not_installed() -> None:
    _, made, engine = device_with()
    with pytest.raises(OfferRefusedError) as caught:
        engine.install(made.release.digest)
    assert caught.value.code == "release.unknown"


def test_a_second_release_is_busy_until_the_first_is_canceled() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    other = device.make("3.0", 3)
    engine.check("relay", other.path)
    with pytest.raises(EngineBusyError):
        engine.install(other.release.digest)
    engine.cancel(made.release.digest)
    device.work()
    engine.install(other.release.digest)
    device.work()
    assert phase(engine) == "STAGED"


# --- consent ---

LOCAL: dict[str, Any] = {
    "policy": {
        "consent": "local",
        "risk": "routine",
        "tries": 3,
        "activation": "any",
        "max_fetch_bytes": 10**6,
    }
}


def test_a_release_that_needs_local_consent_waits_for_it() -> None:
    device, made, engine = device_with(**LOCAL)
    begin(device, made, engine)
    assert (phase(engine), waits(engine)) == ("WAIT_CONSENT", ("update.consent",))
    assert env_of(device).ok_b, "nothing was disarmed"
    engine.consent(consent_for(device, made.release.digest))
    device.work()
    assert phase(engine) == "STAGED"
    assert "consent.given" in device.audited()


def test_agent_cannot_give_local_consent() -> None:
    device, made, engine = device_with(**LOCAL)
    begin(device, made, engine, as_claimed_by_agent(consent_for(device, made.release.digest)))
    assert phase(engine) == "WAIT_CONSENT"
    assert engine.transaction.entry is not None
    assert engine.transaction.entry.consent is not None
    assert engine.transaction.entry.consent.channel is Channel.SITE


def test_consent_for_another_digest_is_no_consent() -> None:
    device, made, engine = device_with(**LOCAL)
    begin(device, made, engine)
    with pytest.raises((EngineRefusedError, OfferRefusedError)):
        engine.consent(consent_for(device, "0" * 64))
    device.work()
    assert phase(engine) == "WAIT_CONSENT"


def test_an_install_with_a_foreign_consent_begins_nothing() -> None:
    device, made, engine = device_with(**LOCAL)
    engine.check("relay", made.path)
    with pytest.raises(EngineRefusedError):
        engine.install(made.release.digest, consent=consent_for(device, "0" * 64))
    assert phase(engine) != "WAIT_CONSENT"
    assert engine.transaction.open_digest() is None


def test_an_expired_consent_is_none() -> None:
    device, made, engine = device_with(**LOCAL)
    begin(device, made, engine, consent_for(device, made.release.digest, valid_s=-1))
    assert phase(engine) == "WAIT_CONSENT"


def test_a_site_that_wants_to_be_asked_is_asked_whatever_the_release_says() -> None:
    device, made, engine = device_with(Site(serial="I", product=PRODUCT, hw=HW, consent=SitePolicy.ASK))
    begin(device, made, engine)
    assert phase(engine) == "WAIT_CONSENT"


# --- transfer ---


def test_a_staged_release_is_read_back_recorded_and_audited() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    assert device.storage.slots[SlotName.B] == made.image
    assert device.storage.documents["slots"]["B"]["digest"] == made.release.digest
    assert device.audited()[-2:] == ["update.installing", "update.staged"]
    assert not env_of(device).ok_b, "staged is not bootable"


def test_a_read_back_does_not_hide_what_the_transfer_fetched() -> None:
    _, _, engine = device_with()
    transaction = engine.transaction
    transaction.report(
        TransferProgress(counts=ByteCounts(total=100, written=100, fetched=70, expected_fetch=70))
    )
    transaction.report_read_back(TransferProgress(counts=ByteCounts(total=100, skipped=40)))
    shown = render_status(transaction)["bytes"]
    assert (shown["fetched"], shown["expected_fetch"], shown["skipped"]) == (70, 70, 40)


def test_unchanged_chunks_are_not_fetched() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    assert "shared" not in device.slots.fetched


def test_an_unreachable_server_is_waited_for_without_counting_attempts() -> None:
    device, made, engine = device_with()
    device.slots.faults = [SourceError("offline") for _ in range(5)]
    begin(device, made, engine)
    for _ in range(5):
        assert (phase(engine), waits(engine)) == ("TRANSFER", ("source.unavailable",))
        device.clock.advance(7 * 3600)
        device.work()
    assert phase(engine) == "STAGED"


def test_a_new_command_ends_the_back_off() -> None:
    device, made, engine = device_with()
    device.slots.faults = [SourceError("offline")]
    begin(device, made, engine)
    engine.install(made.release.digest)
    device.work()
    assert phase(engine) == "STAGED"


def test_a_disk_that_refuses_three_times_fails_the_release() -> None:
    device, made, engine = device_with()
    device.slots.faults = [SlotError("EIO", retryable=True) for _ in range(3)]
    begin(device, made, engine)
    for _ in range(2):
        device.clock.advance(7 * 3600)
        device.work()
    assert phase(engine) == "FAILED"
    assert device.audited()[-1] == "update.failed"


def test_wrong_bytes_end_the_attempt_and_the_next_command_begins_anew() -> None:
    device, made, engine = device_with()
    device.slots.faults = [SourceError("flipped", code="source.bad-bytes")]
    begin(device, made, engine)
    status = render_status(engine.transaction)
    assert status["phase"] == "FAILED"
    assert status["last"]["code"] == "source.bad-bytes"
    assert status["last"]["what_to_do"]
    engine.install(made.release.digest)
    device.work()
    assert phase(engine) == "STAGED"


def test_a_part_that_the_server_does_not_have_is_final_for_the_attempt() -> None:
    device, made, engine = device_with()
    device.slots.faults = [SourceRefusedError("404", status=404)]
    begin(device, made, engine)
    assert phase(engine) == "FAILED"


def test_another_plan_is_audited_once_with_both_its_reason_and_its_cap() -> None:
    device, made, engine = device_with()
    device.slots.notices = [Notice(code="slot.active-differs", text="planned anew by pack, at most 5 in all")]
    device.slots.faults = [SourceError("offline")]
    begin(device, made, engine)
    device.clock.advance(7 * 3600)
    device.work()
    assert phase(engine) == "STAGED"
    replanned = [
        fields for kind, fields in device.storage.audit if fields.get("code") == "slot.active-differs"
    ]
    assert [fields["detail"] for fields in replanned] == ["planned anew by pack, at most 5 in all"]


def test_a_plan_that_cannot_be_audited_waits_for_the_log() -> None:
    device, made, engine = device_with()
    device.slots.notices = [Notice(code="source.bad-bytes", text="planned anew by pack")]
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    while phase(engine) != "TRANSFER":
        engine.step()
    device.audit.is_full = True
    engine.step()
    assert (phase(engine), waits(engine)) == ("TRANSFER", ("update.audit-full",))
    assert device.slots.fetched == []
    device.audit.is_full = False
    device.clock.advance(120)
    device.work()
    assert phase(engine) == "STAGED"


def test_a_larger_download_than_allowed_waits_for_a_person() -> None:
    device, made, engine = device_with()
    device.slots.faults = [BudgetError("too large")]
    begin(device, made, engine)
    assert (phase(engine), engine.transaction.paused) == ("TRANSFER", True)
    device.clock.advance(10**6)
    device.work()
    assert phase(engine) == "TRANSFER", "no time that passes widens a budget"
    engine.set_paused(False)
    device.work()
    assert phase(engine) == "STAGED"


def test_a_slot_that_is_refused_is_refused_before_disarm() -> None:
    device, made, engine = device_with()
    device.slots.refusal = SlotError("mounted", code="slot.busy")
    begin(device, made, engine)
    assert phase(engine) == "FAILED"
    assert env_of(device).ok_b


def test_a_full_audit_log_refuses_to_install_until_it_has_room() -> None:
    device, made, engine = device_with()
    engine.check("relay", made.path)
    device.audit.is_full = True
    engine.install(made.release.digest)
    device.work()
    assert (phase(engine), waits(engine)) == ("PREPARE", ("update.audit-full",))
    assert env_of(device).ok_b
    device.audit.is_full = False
    device.work()
    assert phase(engine) == "STAGED"


def test_a_chunk_that_reads_back_wrong_once_is_written_again() -> None:
    device, made, engine = device_with()
    device.slots.lies = 1
    begin(device, made, engine)
    assert phase(engine) == "STAGED"


def test_a_medium_that_lies_twice_is_caught_before_arm() -> None:
    device, made, engine = device_with()
    device.slots.lies = 2
    begin(device, made, engine)
    assert engine.transaction.last is not None
    assert (phase(engine), engine.transaction.last.code) == ("FAILED", "slot.medium")


def test_pipeline_pauses_while_injecting() -> None:
    device, made, engine = device_with()
    control = TransferControl(engine.transaction)
    seen: list[bool] = []

    def look() -> None:
        device.injector.injecting = not seen
        device.clock.advance(2)
        seen.append(control.paused())

    device.slots.during = look
    begin(device, made, engine)
    assert seen[0] is True
    assert seen[1] is False


def test_a_transfer_is_canceled_at_its_next_chunk() -> None:
    device, made, engine = device_with()
    device.slots.during = lambda: (
        engine.cancel(made.release.digest) if not engine.transaction.is_cancel_requested() else None
    )
    begin(device, made, engine)
    device.work()
    assert engine.transaction.last is not None
    assert (phase(engine), engine.transaction.last.code) == ("IDLE", "update.canceled")
    assert not env_of(device).ok_b, "the half-written slot stays unbootable"


def test_network_loss_after_staged_changes_nothing() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.trust.error = SourceError("offline")
    device.slots.faults = [SourceError("offline")]
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert phase(engine) == "ARMED"


# --- activation ---


def test_arming_asks_holds_takes_a_newer_sample_and_asks_again_before_the_one_write() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.injector.asked.clear()
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.injector.asked[:7] == ["check", "sample", "hold", "sample", "check", "check", "seal"]
    assert device.reboot.requested
    assert env_of(device).trial is SlotName.B


def test_a_closed_window_waits() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    engine.activate(made.release.digest, window_open=False)
    device.work()
    assert (phase(engine), waits(engine)) == ("WAIT_WINDOW", ("update.window",))
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert phase(engine) == "ARMED"


def test_an_injector_in_use_defers_the_reboot_and_idle_lets_it_go_on() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.injector.reasons = ("state-not-idle", "recent-injection")
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert waits(engine) == ("update.interlock:state-not-idle", "update.interlock:recent-injection")
    assert env_of(device).trial is None
    device.injector.reasons = ()
    device.work()
    assert device.reboot.requested


def test_no_state_sample_after_the_lease_is_no_permission() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.injector.samples_arrive = False
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert waits(engine) == ("update.interlock:stale",)
    assert device.injector.held is None


def test_an_injector_without_a_lease_needs_a_local_consent() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.injector.has_lease = False
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert waits(engine) == ("update.interlock:no-lease-no-local-consent",)
    engine.consent(consent_for(device, made.release.digest))
    device.work()
    assert device.reboot.requested


@pytest.mark.parametrize(
    "break_lease",
    [
        lambda injector: setattr(injector, "loses_lease", True),
        lambda injector: setattr(injector, "refuses_seal", True),
    ],
)
def test_lost_lease_after_arm_clears_the_trial(break_lease: Callable[[object], None]) -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    break_lease(device.injector)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert phase(engine) == "WAIT_WINDOW"
    assert env_of(device).trial is None
    assert not device.reboot.requested
    assert device.audited()[-1] == "update.failed"


def test_no_reboot_within_a_minute_clears_the_trial() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    device.clock.advance(61)
    engine.step()
    assert env_of(device).trial is None
    assert not device.reboot.requested
    assert engine.transaction.last is not None
    assert engine.transaction.last.code == "update.not-rebooted"
    device.clock.advance(61)
    device.work()
    assert device.reboot.requested, "the next attempt can work"


def test_content_that_changed_since_it_was_staged_is_written_again_before_arm() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.storage.slots[SlotName.B][2] = "rot"
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.storage.slots[SlotName.B] == made.image
    assert env_of(device).trial is None or device.reboot.requested


def test_cancel_is_honored_until_the_reboot_flag() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.injector.reasons = ("alarm",)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    engine.cancel(made.release.digest)
    device.work()
    assert phase(engine) == "IDLE"
    device.injector.reasons = ()
    begin(device, made, engine)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.reboot.requested
    with pytest.raises(EngineBusyError):
        engine.cancel(made.release.digest)


def test_a_full_audit_log_refuses_to_arm() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.audit.is_full = True
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert waits(engine) == ("update.audit-full",)
    assert env_of(device).trial is None
    assert device.injector.held is None


def test_a_boot_environment_that_does_not_keep_writes_degrades_the_device() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    device.env_disk.broken = True
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert engine.transaction.degraded == "boot.env-write"
    assert not device.reboot.requested
    with pytest.raises(EngineRefusedError):
        engine.install(made.release.digest)


# --- trial ---


def trial(device: Device, made: Made, engine: Engine) -> Engine:
    stage(device, made, engine)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    device.power_off()
    engine = device.power_on()
    assert phase(engine) == "TRIAL"
    return engine


def test_a_healthy_trial_is_committed_and_the_lease_given_back() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    device.confirm()
    assert phase(engine) == "COMMITTED"
    assert env_of(device).committed is SlotName.B
    assert device.storage.floors.sequence == 2
    assert device.injector.held is None
    assert render_status(engine.transaction)["running"]["digest"] == made.release.digest


def test_commit_without_a_verdict_of_this_boot_is_refused() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    with pytest.raises(EngineRefusedError) as caught:
        engine.commit()
    assert caught.value.code == "health.missing"
    engine.health(given_up=lambda: False)
    device.power_off()
    engine = device.power_on()
    with pytest.raises(EngineRefusedError):
        engine.commit()


def switched_off(device: Device, end: BootEnd) -> Engine:
    """The trial loses its power before health judged it; the next boot finds this evidence."""
    device.evidence.end = end
    device.power_off()
    engine = device.power_on()
    device.work()
    return engine


@pytest.mark.req("UP-16")
def test_power_off_in_trial_is_refunded_watchdog_is_not() -> None:
    left = {}
    for end in BootEnd:
        device, made, engine = device_with()
        trial(device, made, engine)
        device.work()
        assert env_of(device).left == 2
        switched_off(device, end)
        left[end] = (env_of(device).left, env_of(device).refunds)
    assert left == {
        BootEnd.SWITCHED_OFF: (2, 1),
        BootEnd.FAULT: (1, 0),
        BootEnd.UNKNOWN: (1, 0),
    }


def test_the_first_trial_boot_is_no_reason_for_a_refund() -> None:
    device, made, engine = device_with()
    device.evidence.end = BootEnd.SWITCHED_OFF
    trial(device, made, engine)
    device.work()
    assert (env_of(device).left, env_of(device).refunds) == (2, 0)


def test_a_restart_of_the_service_gives_no_second_refund() -> None:
    device, made, engine = device_with()
    trial(device, made, engine)
    switched_off(device, BootEnd.SWITCHED_OFF)
    device.restart_service()
    device.work()
    assert (env_of(device).left, env_of(device).refunds) == (2, 1)


def test_refunds_end_after_five_and_the_trial_with_its_tries() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    boots = 0
    while phase(engine) == "TRIAL":
        boots += 1
        engine = switched_off(device, BootEnd.SWITCHED_OFF)
    assert (boots, phase(engine)) == (3 + 5, "ROLLED_BACK")


def test_a_judged_boot_is_not_refunded() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    assert engine.health(given_up=lambda: False)
    switched_off(device, BootEnd.SWITCHED_OFF)
    assert (env_of(device).left, env_of(device).refunds) == (1, 0)


def test_service_restart_in_trial_commits_nothing() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    engine.health(given_up=lambda: False)
    engine = device.restart_service()
    device.work()
    assert phase(engine) == "HEALTH"
    assert env_of(device).committed is SlotName.A
    assert engine.commit()


def test_outside_a_trial_health_and_commit_do_nothing() -> None:
    _, _, engine = device_with()
    assert engine.health(given_up=lambda: False) is None
    assert engine.commit() is False


def test_a_failed_check_is_repeated_until_the_deadline_and_then_the_device_goes_back() -> None:
    device, made, engine = device_with()
    device.health.sick = lambda identity: identity.version == "2.0"
    engine = trial(device, made, engine)
    verdict = engine.health(given_up=lambda: False)
    assert verdict is not None
    assert not verdict.healthy
    assert device.health.rounds > 20
    assert env_of(device).left == 0
    device.work()
    assert device.reboot.requested
    device.power_off()
    engine = device.power_on()
    device.work()
    status = render_status(engine.transaction)
    assert (status["phase"], status["booted"], status["last"]["code"]) == ("ROLLED_BACK", "A", "health.hal")
    assert engine.check("relay", made.path).code == "release.quarantined"


def test_a_check_that_recovers_within_the_deadline_is_green() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    device.health.sick = lambda identity: device.health.rounds < 5
    verdict = engine.health(given_up=lambda: False)
    assert verdict is not None
    assert verdict.healthy


def test_checks_must_stay_green_for_hold_s() -> None:
    device, made, engine = device_with(health={"required": ["hal"], "deadline_s": 300, "hold_s": 60})
    engine = trial(device, made, engine)
    began_s = device.clock.boottime_s()
    engine.health(given_up=lambda: False)
    assert device.clock.boottime_s() - began_s >= 60


def test_dead_hal_in_trial_never_reboots_by_itself() -> None:
    device, made, engine = device_with()
    device.health.sick = lambda identity: identity.version == "2.0"
    engine = trial(device, made, engine)
    device.injector.reasons = ("hal-unreachable",)
    engine.health(given_up=lambda: False)
    for _ in range(20):
        device.work()
        device.clock.advance(60)
    assert not device.reboot.requested
    assert waits(engine) == ("update.unconfirmed", "update.interlock:hal-unreachable")
    device.power_off()
    device.power_on()
    assert device.booted is SlotName.A, "the next reset rolls back"


def test_a_reboot_out_of_a_failed_trial_that_nobody_carries_out_is_withdrawn_and_asked_for_again() -> None:
    device, made, engine = device_with()
    device.health.sick = lambda identity: identity.version == "2.0"
    engine = trial(device, made, engine)
    engine.health(given_up=lambda: False)
    device.work()
    assert device.reboot.requested
    device.injector.reasons = ("state-not-idle",)
    device.clock.advance(61)
    engine.step()
    assert not device.reboot.requested, "a late restart could meet an injection"
    device.injector.reasons = ()
    engine.step()
    assert device.reboot.requested


def test_an_operator_ends_a_trial() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    engine.reject(made.release.digest, "touch screen is blank")
    device.work()
    assert env_of(device).left == 0
    assert device.reboot.requested


def test_a_release_rejected_before_its_reboot_stays_refused() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    engine.reject(made.release.digest, "not now")
    device.work()
    assert engine.check("relay", made.path).code == "release.quarantined"
    engine.clear_quarantine(made.release.digest)
    assert engine.check("relay", made.path).installable


@pytest.mark.parametrize("healthy", [True, False])
def test_security_epoch_is_raised_only_after_the_commit(healthy: bool) -> None:
    device, made, engine = device_with(security_epoch=3)
    device.health.sick = lambda identity: not healthy and identity.version == "2.0"
    engine = trial(device, made, engine)
    verdict = engine.health(given_up=lambda: False)
    assert verdict is not None and verdict.healthy is healthy
    assert (env_of(device).epoch, engine.transaction.ports.floors.effective().security_epoch) == (0, 0)
    device.live(made)
    epoch = 3 if healthy else 0
    floors = device.power_on().transaction.ports.floors
    assert (env_of(device).epoch, floors.effective().security_epoch) == (epoch, epoch)
    assert device.is_running(made) is healthy


def test_rolled_back_release_is_quarantined_until_a_newer_one() -> None:
    device, made, _ = device_with()
    device.health.sick = lambda identity: identity.version == "2.0"
    device.live(made)
    newer = device.make("2.1", 3)
    device.live(newer)
    assert device.is_running(newer)


def test_an_ended_trial_is_written_although_the_audit_log_is_full() -> None:
    device, made, engine = device_with()
    engine = trial(device, made, engine)
    device.audit.is_full = True
    device.confirm()
    assert env_of(device).committed is SlotName.B


@pytest.mark.parametrize("lost", ["journal", "state directory"])
@pytest.mark.parametrize("after_floors", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"security_epoch": 1},
        {"data": {"writes": 1, "reads_min": 1, "reads_max": 1, "reversible": False}},
    ],
    ids=["epoch", "irreversible data"],
)
def test_a_journal_lost_between_commit_and_raise_does_not_leave_the_old_slot_bootable(
    options: dict[str, Any], after_floors: bool, lost: str
) -> None:
    device = Device()
    made = device.make("2.0", 2, **options)
    rehearsal = Device()
    rehearsal.live(rehearsal.make("2.0", 2, **options))
    names = [effect for _, effect in rehearsal.power.log]
    device.power.cut = Cut(at=names.index("COMMIT") + 1 + after_floors, when="before")
    with pytest.raises(PowerCut):
        device.live(made)
    device.power.cut = None
    device.power_off()
    del device.storage.documents["journal"]
    if lost == "state directory":
        device.storage.documents.clear()
        device.storage.blobs.clear()
        device.storage.floors = FloorValues()
    device.live(made)
    assert device.is_running(made)
    assert not env_of(device).ok_a
    assert env_of(device).epoch == made.release.security_epoch


def test_a_trial_that_never_ran_is_staged_again_and_given_up_after_three() -> None:
    device, made, engine = device_with()
    stage(device, made, engine)
    for attempt in range(3):
        device.storage.write_env(
            arm(env_of(device), SlotName.B, tries=3, txn=made.release.txn, boot_id=f"{attempt}" * 32)
        )
        engine = device.start_updater(SlotName.A)
        device.work()
        assert made.release.txn not in device.quarantined()
    assert engine.transaction.last is not None
    assert (phase(engine), engine.transaction.last.code) == ("FAILED", "update.attempts")


# --- degraded ---


def test_both_copies_lost_is_repaired_only_after_the_booted_slot_matches() -> None:
    device, made, _ = device_with()
    device.live(made)
    device.storage.env[:] = bytes(len(device.storage.env))
    engine = device.start_updater(SlotName.B)
    assert engine.transaction.degraded == "boot.env-invalid"
    device.work()
    assert engine.transaction.degraded is None
    assert env_of(device) == BootEnv(committed=SlotName.B, ok_a=False, ok_b=True)
    assert ("update.failed", "boot.env-invalid") in [
        (kind, fields.get("code")) for kind, fields in device.storage.audit
    ]


def test_a_lost_environment_without_a_record_is_left_to_an_operator() -> None:
    device, _, _ = device_with()
    device.storage.env[:] = bytes(len(device.storage.env))
    engine = device.start_updater(SlotName.A)
    device.work()
    assert engine.transaction.degraded == "boot.env-invalid"
    assert device.storage.boot_env() is None
    engine.repair_env()
    assert engine.transaction.degraded is None
    assert env_of(device).committed is SlotName.A


def test_a_booted_slot_that_disagrees_with_the_environment_writes_nothing() -> None:
    device, made, _ = device_with()
    engine = device.start_updater(SlotName.B)
    before = bytes(device.storage.env)
    device.work()
    assert engine.transaction.degraded == "boot.slot-mismatch"
    with pytest.raises(EngineRefusedError):
        engine.repair_env()
    assert bytes(device.storage.env) == before
    engine.check("relay", made.path)
    with pytest.raises(EngineRefusedError):
        engine.install(made.release.digest)


def test_an_audit_log_that_cannot_be_written_is_no_reason_to_crash() -> None:
    device, made, engine = device_with(hw=["rev-z"])
    device.audit.is_full = True
    with pytest.raises(AuditUnavailableError):
        engine.check("relay", made.path)
