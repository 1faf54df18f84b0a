"""Trust over years: a clock that stands in 1970, metadata of 2020, a device that slept. And firmware, which has its own role."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.model import Sha256
from tidewaiter_release.attachments import Firmware
from tidewaiter_release.repository import Desk
from tidewaiter_release.repository.signing import commit
from tidewaiter_updater.errors import TrustError
from tidewaiter_updater.floor import FloorStore

from tests.sim.clock import FakeClock
from tests.sim.mcuboot import mcuboot_image
from tests.sim.relay import relaying
from tests.sim.repository import TestRepository
from tests.sim.trust_device import TrustDevice

IMAGE = b"\7" * 4096 * 20
FAKETIME = shutil.which("faketime")
needs_faketime = pytest.mark.skipif(FAKETIME is None, reason="needs the Debian package faketime")

Install = Callable[[TestRepository], TrustDevice]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """A device over a repository."""
    with ExitStack() as relays:

        def installed(repository: TestRepository) -> TrustDevice:
            relay = relays.enter_context(relaying(repository.repo, tmp_path / "s"))
            return TrustDevice(repository, relay, tmp_path / "state")

        yield installed


class In1970(SystemClock):
    """A battery that is empty."""

    def now_utc(self) -> datetime:
        return datetime(1970, 1, 1, tzinfo=UTC)


def child_in(year: int) -> tuple[str, ...]:
    """The trust child, with a machine clock in January of a year."""
    return (
        str(FAKETIME),
        f"{year}-01-01 12:00:00",
        sys.executable,
        "-I",
        "-m",
        "tidewaiter_updater.trust",
    )


@needs_faketime
def test_metadata_expired_in_2020_is_refused_with_the_clock_at_1970(tmp_path: Path, install: Install) -> None:
    repository = TestRepository(tmp_path / "desk", clock=FakeClock(datetime(2020, 1, 1, tzinfo=UTC)))
    made = repository.add_release(IMAGE, "1.0", 1, built_utc=datetime(2019, 12, 1, tzinfo=UTC))
    device = install(repository)
    device.floors = FloorStore(device.state / "old.json", image_utc=datetime(2019, 12, 2, tzinfo=UTC))
    at_1970 = {"clock": In1970(), "command": child_in(1970)}
    # An image of 2019 knows no better: the clock, and with it python-tuf, believes what expired in 2020.
    assert Sha256.of(device.child(**at_1970).check("relay", made.path)) == made.digest
    device.floors = FloorStore(device.state / "new.json", image_utc=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(TrustError, match=r"root\.json expired 2020-12-31T.*it is 2026-01-01T") as caught:
        device.child(**at_1970).check("relay", made.path)
    assert caught.value.code == "trust.expired"
    assert device.floors.versions("online") == {}


def test_the_time_that_expiry_is_held_against_never_falls_below_the_floor(tmp_path: Path) -> None:
    floors = FloorStore(tmp_path / "floor.json", image_utc=datetime(2026, 1, 1, tzinfo=UTC))
    assert floors.trusted_now(In1970()) == datetime(2026, 1, 1, tzinfo=UTC)
    floors.record_session("online", {}, proven_utc=datetime(2026, 5, 1, tzinfo=UTC))
    assert floors.trusted_now(In1970()) == datetime(2026, 5, 1, tzinfo=UTC)


def _years_pass(repository: TestRepository, clock: FakeClock) -> None:
    """Four times a year the root goes on, now and then with other keys; then everything is signed anew for today."""
    for number in range(20):
        repository.rotate_root(*(("snapshot", "timestamp") if number % 4 == 0 else ()))
        clock.advance(timedelta(days=91).total_seconds())
    today = SystemClock()
    repository.clock = today
    repository.desk = Desk(keys=repository.keys, clock=today)
    repository.rotate_root()
    state = repository.store.load()
    commit(repository.store, state, repository.desk, changed=["targets", *state.delegated])


@pytest.mark.parametrize("met_before", [False, pytest.param(True, marks=needs_faketime)])
def test_twenty_root_rotations_and_five_years_asleep_then_updates(
    tmp_path: Path, install: Install, met_before: bool
) -> None:
    then = SystemClock().now_utc().replace(microsecond=0) - timedelta(days=5 * 365)
    clock = FakeClock(then)
    repository = TestRepository(tmp_path / "desk", clock=clock)
    first = repository.add_release(IMAGE, "1.0", 1, built_utc=then)
    device = install(repository)
    device.floors = FloorStore(device.state / "floor.json", image_utc=then)
    if met_before:  # then the cache and the floors are five years old, too
        asleep = FakeClock(then + timedelta(hours=1))
        command = (str(FAKETIME), f"{asleep.now_utc():%Y-%m-%d %H:%M:%S}", *child_in(1970)[2:])
        device.child(clock=asleep, command=command).check("relay", first.path)
    _years_pass(repository, clock)
    second = repository.add_release(IMAGE + b"\0" * 4096, "2.0", 2)
    assert Sha256.of(device.child().check("relay", second.path)) == second.digest
    assert device.floors.versions("online")["root"].version == 22


def _with_firmware(tmp_path: Path) -> tuple[TestRepository, str, str]:
    """A repository, the release in it, and its firmware."""
    repository = TestRepository(tmp_path / "desk")
    file = tmp_path / "fw.bin"
    file.write_bytes(mcuboot_image(b"moves the plunger"))
    parts = (Firmware(board="head", file=file, image_path="usr/lib/firmware/fw.bin"),)
    made = repository.add_release(IMAGE, "1.0", 1, firmware=parts)
    return repository, made.path, made.release.firmware[0].path


def test_firmware_signed_by_its_own_role_is_accepted(tmp_path: Path, install: Install) -> None:
    repository, release, _ = _with_firmware(tmp_path)
    device = install(repository)
    device.session(release)
    assert device.floors.versions("online")["injector-firmware"].version >= 1


def test_firmware_signed_only_by_os_role_is_refused(tmp_path: Path, install: Install) -> None:
    repository, release, firmware = _with_firmware(tmp_path)
    state = repository.store.load()
    os_targets = state.delegated["os"].signed.targets
    os_targets[firmware] = state.delegated["injector-firmware"].signed.targets.pop(firmware)
    commit(repository.store, state, repository.desk, changed=["os", "injector-firmware"])
    assert install(repository).code(release) == "trust.target"


def test_firmware_that_its_role_signs_with_other_bytes_is_refused(tmp_path: Path, install: Install) -> None:
    repository, release, firmware = _with_firmware(tmp_path)
    state = repository.store.load()
    state.delegated["injector-firmware"].signed.targets[firmware].hashes = {"sha256": Sha256.of(b"other")}
    commit(repository.store, state, repository.desk, changed=["injector-firmware"])
    assert install(repository).code(release) == "trust.target"


def test_firmware_that_the_targets_role_signs_itself_is_refused(tmp_path: Path, install: Install) -> None:
    repository, release, firmware = _with_firmware(tmp_path)
    state = repository.store.load()
    state.targets.signed.targets[firmware] = state.delegated["injector-firmware"].signed.targets[firmware]
    commit(repository.store, state, repository.desk, changed=["targets"])
    assert install(repository).code(release) == "trust.target"
