"""One transaction over two sources: the network and a stick take turns, and each turn is journaled and audited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tidewaiter_core.audit import AuditUnavailableError
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import EngineBusyError, SourceError, SourceRefusedError
from tidewaiter_updater.status import render_status

from tests.sim.device import Device, Made, ToySlots
from tests.unit.test_updater_engine import device_with, phase, stage, waits
from tests.unit.test_updater_engine_faults import FullDisk

STICK = "directory:/media/stick"
OTHER_STICK = "directory:/media/other"


class Remembering(ToySlots):
    """Slots that note the source and the cap of each attempt."""

    sources: list[str]
    caps: list[int | None]

    def write(self, slot: SlotName, release: Release, source: str, **options: Any) -> None:
        self.sources.append(source)
        self.caps.append(options["cap_bytes"])
        super().write(slot, release, source, **options)


def media_device() -> tuple[Device, Made, Engine, Remembering]:
    device, made, engine = device_with()
    slots = Remembering(device.storage, device.power, device.images)
    slots.sources, slots.caps = [], []
    device.slots = slots
    engine = device.start_updater(device.booted or pytest.fail("off"))
    device.work()
    return device, made, engine, slots


def details(device: Device) -> list[str]:
    return [
        fields["detail"]
        for kind, fields in device.storage.audit
        if kind == "update.installing" and "detail" in fields
    ]


def offline_install(device: Device, made: Made, engine: Engine) -> None:
    """The network died in the middle of a transfer."""
    device.slots.faults = [SourceError("offline")]
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    assert (phase(engine), waits(engine)) == ("TRANSFER", ("source.unavailable",))


def test_resume_continues_from_a_stick_after_the_network_died() -> None:
    device, made, engine, slots = media_device()
    offline_install(device, made, engine)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    assert phase(engine) == "STAGED"
    assert slots.sources == ["relay", STICK]
    assert device.storage.documents["journal"]["source"] == STICK
    assert details(device) == ["from relay", f"from {STICK}, before from relay"]


def test_a_change_of_source_that_cannot_be_audited_is_not_made() -> None:
    device, made, engine, _ = media_device()
    offline_install(device, made, engine)
    device.audit.is_full = True
    with pytest.raises(AuditUnavailableError):
        engine.install(made.release.digest, source=STICK, is_local=True)
    assert render_status(engine.transaction)["source"] == "relay"


def test_a_person_redirects_a_transfer_that_runs_at_its_next_chunk() -> None:
    device, made, engine, slots = media_device()

    def once() -> None:
        slots.during = lambda: None
        engine.install(made.release.digest, source=STICK, is_local=True)

    slots.during = once
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    assert (phase(engine), slots.sources) == ("STAGED", ["relay", STICK])


def test_the_agent_does_not_take_a_transfer_from_a_stick_that_gives() -> None:
    device, made, engine, slots = media_device()

    def once() -> None:
        slots.during = lambda: None
        engine.install(made.release.digest, source="relay")

    slots.during = once
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    assert (phase(engine), slots.sources) == ("STAGED", [STICK])


def test_the_network_goes_on_where_a_stick_vanished() -> None:
    device, made, engine, slots = media_device()
    device.slots.faults = [SourceError("gone", code="source.vanished")]
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    assert (phase(engine), waits(engine)) == ("TRANSFER", ("source.vanished",))
    engine.check("relay", made.path)
    engine.install(made.release.digest, source="relay")
    device.work()
    assert (phase(engine), slots.sources) == ("STAGED", [STICK, "relay"])


def test_a_vanished_stick_is_waited_for_without_counting_attempts() -> None:
    device, made, engine, _ = media_device()
    device.slots.faults = [SourceError("gone", code="source.vanished") for _ in range(5)]
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    for _ in range(5):
        assert phase(engine) == "TRANSFER"
        engine.install(made.release.digest, source=STICK, is_local=True)
        device.work()
    assert phase(engine) == "STAGED"


def test_a_part_that_is_not_on_a_medium_is_waited_for_as_another_medium_may_have_it() -> None:
    device, made, engine, _ = media_device()
    device.slots.faults = [SourceRefusedError("not on the medium", status=404)]
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    assert (phase(engine), waits(engine)) == ("TRANSFER", ("source.vanished",))
    engine.install(made.release.digest, source=OTHER_STICK, is_local=True)
    device.work()
    assert phase(engine) == "STAGED"


def test_a_stick_is_not_held_to_the_cap_of_the_network() -> None:
    device, made, engine, slots = media_device()
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    assert slots.caps == [None]


def test_a_restart_waits_for_the_stick_that_it_was_installing_from() -> None:
    device, made, engine, slots = media_device()
    device.slots.faults = [SourceError("gone", code="source.vanished")]
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    engine = device.restart_service()
    device.work()
    assert render_status(engine.transaction)["source"] == STICK
    assert slots.sources == [STICK, STICK]


@pytest.mark.parametrize("end", ["staged", "failed", "canceled"])
def test_a_medium_is_let_go_when_no_more_bytes_are_wanted(end: str) -> None:
    device, made, _, slots = media_device()
    ejected: list[str] = []
    ports = device.engine.transaction.ports if device.engine else pytest.fail("off")
    object.__setattr__(ports, "release_media", lambda: ejected.append("all"))
    engine = device.engine or pytest.fail("off")
    faults: dict[str, list[Exception]] = {
        "staged": [],
        "failed": [SourceError("flipped", code="source.bad-bytes")],
        "canceled": [SourceError("gone", code="source.vanished")],
    }
    slots.faults = faults[end]
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    if end == "canceled":
        assert ejected == []
        engine.cancel(made.release.digest)
        device.work()
    assert ejected == ["all"]


def test_a_check_while_a_transfer_moves_is_busy_and_while_it_waits_is_not() -> None:
    device, made, engine, slots = media_device()
    refused: list[Exception] = []

    def look() -> None:
        slots.during = lambda: None
        with pytest.raises(EngineBusyError) as caught:
            engine.releases(STICK)
        refused.append(caught.value)

    slots.during = look
    offline_install(device, made, engine)
    assert engine.check(STICK, made.path, is_local=True).installable
    device.clock.advance(7 * 3600)
    device.work()
    assert len(refused) == 1


def test_a_repository_is_listed() -> None:
    _, made, engine, _ = media_device()
    assert (made.path, made.release.digest) in [(one.path, one.sha256) for one in engine.releases(STICK)]


# --- the answer of the server that a trial may be asked for ---


def journaled(device: Device) -> str:
    return str(device.storage.documents["journal"]["network_proven_utc"])


def test_an_answer_of_the_server_is_remembered_over_a_restart() -> None:
    device, made, engine, _ = media_device()
    engine.check("relay", made.path)
    engine = device.restart_service()
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    assert engine.transaction.entry is not None
    assert engine.transaction.entry.network_proven_utc == "2026-11-24T12:00:00.000Z"


def test_a_stick_proves_no_network() -> None:
    device, made, engine, _ = media_device()
    engine.check(STICK, made.path, is_local=True)
    engine.install(made.release.digest, source=STICK, is_local=True)
    device.work()
    assert journaled(device) == ""


def test_an_answer_that_comes_while_the_release_waits_counts() -> None:
    device, made, engine, _ = media_device()
    stage(device, made, engine)
    device.clock.advance(40 * 3600)
    engine.check("relay", made.path)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert journaled(device) == "2026-11-26T04:00:00.000Z"


def test_a_full_disk_does_not_turn_an_answer_into_a_fault() -> None:
    device, made, _, _ = media_device()
    disk = FullDisk(device.storage, device.power)
    disk.refused = frozenset({"network"})
    device.documents = disk
    engine = device.start_updater(device.booted or pytest.fail("off"))
    assert engine.check("relay", made.path).installable


# --- an empty battery ---


def test_an_empty_battery_is_remembered_into_the_trial() -> None:
    device, made, engine, _ = media_device()
    device.storage.floors = replace(device.storage.floors, time_utc="2026-11-24T13:00:00.000Z")
    stage(device, made, engine)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.storage.documents["journal"]["clock_was_low"] is True


def test_a_clock_that_was_put_right_before_the_start_is_held_to_the_floor() -> None:
    device, made, engine, _ = media_device()
    device.storage.floors = replace(device.storage.floors, time_utc="2026-11-24T13:00:00.000Z")
    stage(device, made, engine)
    device.clock.advance(2 * 3600)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    assert device.storage.documents["journal"]["clock_was_low"] is False


# --- what is looked at again ---


def test_a_disk_that_filled_up_while_a_consent_was_awaited_delays_the_release() -> None:
    device, made, engine, _ = media_device()
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    room, device.documents.free = device.documents.free, 1000
    device.work()
    assert (phase(engine), waits(engine)) == ("PREPARE", ("update.no-space",))
    assert render_status(engine.transaction)["last"]["code"] == "update.no-space"
    device.documents.free = room
    device.clock.advance(61)
    device.work()
    assert phase(engine) == "STAGED"


def no_updates(device: Device) -> None:
    engine = device.engine or pytest.fail("off")
    engine.transaction.site = replace(engine.transaction.site, updates=False)


def quarantine(device: Device) -> None:
    engine = device.engine or pytest.fail("off")
    entry = engine.transaction.entry or pytest.fail("nothing in hand")
    engine.transaction.journal.quarantine(entry.digest[:16], "health.hal")


@pytest.mark.parametrize(
    ("change", "code"), [(no_updates, "update.disabled"), (quarantine, "release.quarantined")]
)
def test_what_forbids_a_release_forbids_to_arm_it(change: Callable[[Device], None], code: str) -> None:
    device, made, engine, _ = media_device()
    stage(device, made, engine)
    change(device)
    engine.activate(made.release.digest, window_open=True)
    device.work()
    status = render_status(engine.transaction)
    assert (status["phase"], status["last"]["code"]) == ("FAILED", code)
    assert device.storage.boot_env() is not None
    assert "update.armed" not in device.audited()
    assert device.injector.held is None
