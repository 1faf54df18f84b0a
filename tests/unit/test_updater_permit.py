"""Going back to an older release: a permit that the repository signs, a consent at the device, and never below the epoch."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tidewaiter_core.clock import format_utc
from tidewaiter_core.model import Sha256
from tidewaiter_release.errors import InputError
from tidewaiter_release.repository.documents import build_permit
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import OfferRefusedError
from tidewaiter_updater.model import Channel, Consent, FloorValues, Scope
from tidewaiter_updater.permit import parse_permit, permit_path

from tests.sim.device import PRODUCT, Device

OLD, NEW = Sha256.of(b"old"), Sha256.of(b"new")
DOCUMENT = {
    "format": 1,
    "from_digest": NEW,
    "to_digest": OLD,
    "serials": ["INJ-1", "INJ-2"],
    "not_after_utc": "2027-01-01T00:00:00Z",
    "reason": "2.0 shows the wrong volume",
}


def encoded(**change: Any) -> bytes:
    return json.dumps({**DOCUMENT, **change}).encode()


def test_what_the_release_tool_builds_is_read_as_it_was_meant() -> None:
    built = build_permit(
        from_digest=NEW,
        to_digest=OLD,
        serials=None,
        not_after_utc=datetime(2027, 1, 1, tzinfo=UTC),
        reason="2.0 shows the wrong volume",
    )
    assert parse_permit(built) == parse_permit(encoded(serials="*"))


def test_a_permit_too_long_for_a_device_is_not_built() -> None:
    with pytest.raises(InputError, match="devices read at most 65536"):
        build_permit(
            from_digest=NEW,
            to_digest=OLD,
            serials=[f"INJ-{number:012}" for number in range(4000)],
            not_after_utc=datetime(2027, 1, 1, tzinfo=UTC),
            reason="2.0 shows the wrong volume",
        )


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        encoded(format=2),
        encoded(also="this"),
        encoded(serials=[]),
        encoded(serials="INJ-1"),
        encoded(serials=[1]),
        encoded(serials=["x" * 65]),
        encoded(from_digest="abc"),
        encoded(to_digest=5),
        encoded(not_after_utc="never"),
        encoded(reason=""),
        encoded(reason="x" * 257),
        encoded()[:-1],
    ],
)
def test_what_is_not_exactly_a_permit_is_none(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_permit(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"digest": NEW}, "is for release"),
        ({"running": OLD}, "is for devices that run"),
        ({"running": None}, "not recorded"),
        ({"serial": "INJ-3"}, "other devices"),
        ({"now": datetime(2027, 1, 1, 0, 0, 1, tzinfo=UTC)}, "ended 2027"),
    ],
)
def test_a_permit_covers_one_step_of_some_devices_for_a_time(
    change: dict[str, Any], words: str | None
) -> None:
    case = {"running": NEW, "digest": OLD, "serial": "INJ-1", "now": datetime(2026, 12, 31, tzinfo=UTC)}
    objection = parse_permit(encoded()).objection(**{**case, **change})
    assert objection is None if words is None else words in str(objection)


class World:
    """A device that runs 2.0, and the release before it."""

    def __init__(self, *, epoch: int = 0, **older: Any) -> None:
        self.device = Device()
        self.older = self.device.make("1.5", 2, **older)
        self.newer = self.device.make("2.0", 3, security_epoch=epoch)
        self.device.live(self.newer)

    @property
    def engine(self) -> Engine:
        assert self.device.engine is not None
        return self.device.engine

    def permit(self, **change: Any) -> None:
        document = {
            **DOCUMENT,
            "from_digest": self.newer.release.digest,
            "to_digest": self.older.release.digest,
            **change,
        }
        path = permit_path(PRODUCT, self.older.release.digest)
        self.device.trust.documents[path] = json.dumps(document).encode()

    def code(self) -> str:
        return self.engine.check("relay", self.older.path).code

    def consent(self, channel: Channel) -> Consent:
        now = self.device.clock.now_utc()
        return Consent(
            digest=self.older.release.digest,
            scope=(Scope.INSTALL, Scope.ACTIVATE),
            channel=channel,
            who="uid:1000",
            given_utc=format_utc(now),
            expires_utc=format_utc(now + timedelta(hours=1)),
        )

    def begin(self, channel: Channel) -> str:
        self.engine.check("relay", self.older.path)
        self.engine.install(self.older.release.digest, consent=self.consent(channel))
        self.device.work()
        return self.engine.transaction.phase.value


def test_downgrade_without_permit_is_refused_and_below_epoch_even_with_one() -> None:
    world = World()
    assert world.code() == "release.sequence"
    below = World(epoch=1)
    below.permit()
    assert below.code() == "release.epoch"


def test_a_downgrade_with_a_permit_and_a_local_consent_runs_and_stays() -> None:
    world = World()
    world.permit()
    assert world.code() == ""
    assert world.begin(Channel.LOCAL) == "STAGED"
    world.engine.activate(world.older.release.digest, window_open=True)
    world.device.work()
    world.device.power_off()
    world.device.live(world.older)
    assert world.device.is_running(world.older)
    floors = world.engine.transaction.ports.floors.effective()
    assert floors.sequence == 3  # no floor sinks: what was left behind is not offered again


@pytest.mark.parametrize("channel", [Channel.NONE, Channel.SITE])
def test_a_downgrade_waits_for_a_person_at_the_device(channel: Channel) -> None:
    world = World()
    world.permit()
    assert world.begin(channel) == "WAIT_CONSENT"
    assert world.engine.transaction.waiting_for == ("update.consent",)


def test_a_downgrade_is_audited_with_its_permit() -> None:
    world = World()
    world.permit()
    world.begin(Channel.LOCAL)
    details = [str(fields.get("detail", "")) for kind, fields in world.device.storage.audit]
    assert any("from sequence 3 to 2" in text and "2.0 shows the wrong volume" in text for text in details)


@pytest.mark.parametrize(
    "change",
    [
        {"serials": ["INJ-9"]},
        {"not_after_utc": "2026-01-01T00:00:00Z"},
        {"from_digest": OLD},
        {"to_digest": OLD},
        {"format": 2},
    ],
)
def test_a_permit_that_is_not_for_this_is_refused(change: dict[str, Any]) -> None:
    world = World()
    world.permit(**change)
    assert world.code() == "release.permit"


def test_a_permit_that_ended_while_consent_was_awaited_installs_nothing() -> None:
    world = World()
    world.permit(not_after_utc=format_utc(world.device.clock.now_utc() + timedelta(hours=1)))
    assert world.begin(Channel.SITE) == "WAIT_CONSENT"
    world.device.clock.advance(7200)
    world.engine.consent(world.consent(Channel.LOCAL))
    world.device.work()
    assert world.engine.transaction.last is not None
    assert world.engine.transaction.last.code == "release.permit"


def test_a_permit_does_not_come_back_to_life_with_a_clock_at_1970() -> None:
    world = World()
    world.permit(not_after_utc="2026-01-01T00:00:00Z")
    floors = world.engine.transaction.ports.floors
    floors.raise_committed(FloorValues(time_utc="2026-06-01T00:00:00.000Z"))
    world.device.clock.set_utc(datetime(1970, 1, 1, tzinfo=UTC))
    assert world.code() == "release.permit"


def test_a_permit_that_was_withdrawn_is_forgotten() -> None:
    world = World()
    world.permit()
    assert world.code() == ""
    world.device.trust.documents.pop(permit_path(PRODUCT, world.older.release.digest))
    assert world.code() == "release.sequence"


def test_a_permit_lifts_no_other_rule() -> None:
    world = World(hw=["rev-z"])
    world.permit()
    assert world.code() == "release.hw"
    world = World(data={"writes": 9, "reads_min": 9, "reads_max": 9, "reversible": True})
    world.permit()
    assert world.code() == "release.data-schema"


def test_a_loader_that_starts_the_newest_version_takes_no_permit() -> None:
    world = World()
    world.permit()

    class NewestWins:
        newest_wins = True

        def require(self, slot: object, release: object) -> None: ...
        def discard(self, slot: object) -> None: ...

    transaction = world.engine.transaction
    transaction.ports = replace(transaction.ports, kernels=NewestWins())
    assert world.code() == "release.permit"


def test_an_agent_cannot_install_what_only_a_permit_would_allow() -> None:
    world = World()
    world.engine.check("relay", world.older.path)
    with pytest.raises(OfferRefusedError):
        world.engine.install(world.older.release.digest, consent=world.consent(Channel.LOCAL))
