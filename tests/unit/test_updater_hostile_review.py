"""What a hostile reviewer tried on the engine: each of these once led somewhere it must not."""

import os
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_updater.journal import Journal, JournalEntry
from tidewaiter_updater.model import Held, SlotRecord
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.state_files import RELEASES_KEPT, StateFiles

from tests.sim.device import FIRST_BUILT_UTC, Device, ToyAudit


class Interrupted(ToyAudit):
    """An audit log that takes its time; meanwhile something happens to the injector's lease."""

    device: Device
    becomes: Held | None = None

    def flush(self) -> None:
        super().flush()
        self.device.injector.held = self.becomes


@pytest.mark.parametrize(
    "becomes",
    [None, Held(lease_id="lease-of-another"), Held(lease_id="lease-1", sealed=False)],
    ids=["ended by the operator", "somebody else's", "not sealed"],
)
def test_a_lease_that_ends_between_seal_and_reboot_flag_restarts_nothing(becomes: Held | None) -> None:
    device = Device()
    made = device.make("2.0", 2)
    audit = Interrupted(device.storage, device.power)
    audit.device, audit.becomes = device, becomes
    device.audit = audit
    engine = device.power_on()
    device.work()
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    engine.activate(made.release.digest, window_open=True)
    device.work()
    env = device.storage.boot_env()
    assert env is not None
    assert (device.reboot.requested, env.trial, engine.transaction.phase) == (False, None, Phase.WAIT_WINDOW)


def _waiting_for_consent() -> tuple[Device, dict[str, Any]]:
    device = Device()
    made = device.make("2.0", 2, policy=LOCAL)
    engine = device.power_on()
    device.work()
    engine.check("relay", made.path)
    engine.install(made.release.digest)
    device.work()
    return device, device.storage.documents["journal"]


LOCAL = {"consent": "local", "risk": "routine", "tries": 3, "activation": "any", "max_fetch_bytes": 10**6}


def test_a_journal_whose_consent_ends_at_no_moment_counts_as_absent() -> None:
    """Else each start would end in the same exception, and only a person with a debugger could leave that."""
    device, journal = _waiting_for_consent()
    consent = {
        "digest": journal["digest"],
        "scope": ["install"],
        "channel": "local",
        "who": "uid:1000",
        "given_utc": FIRST_BUILT_UTC,
        "expires_utc": "2036-13-24T12:00:00.000Z",
    }
    device.storage.documents["journal"] = {**journal, "consent": consent}
    engine = device.restart_service()
    device.work()
    assert engine.transaction.phase is Phase.IDLE


def test_an_unreadable_note_of_the_servers_answer_is_written_anew() -> None:
    device = Device()
    made = device.make("2.0", 2)
    device.storage.documents["network"] = {"proven_utc": "2036-13-24T12:00:00.000Z"}
    engine = device.power_on()
    device.work()
    assert engine.check("relay", made.path).installable
    assert device.storage.documents["network"]["proven_utc"] == engine.transaction.now_utc()


def _record(number: int) -> SlotRecord:
    return SlotRecord(digest=_digest(number), root=_digest(number), sequence=1, epoch=0, version="1")


def _digest(number: int) -> Sha256:
    return Sha256.of(_document(number))


def _document(number: int) -> bytes:
    return b"release %d" % number


def test_checks_of_other_releases_never_forget_the_documents_in_use(tmp_path: Path) -> None:
    """Without its document a trial is judged without its health requirements and its medium check."""
    journal = Journal(StateFiles(tmp_path))
    journal.save_slot(SlotName.A, _record(1))
    journal.save_slot(SlotName.B, _record(2))
    entry = JournalEntry(
        phase=Phase.STAGED, digest=_digest(3), target=SlotName.B, source="relay", since_utc=FIRST_BUILT_UTC
    )
    journal.save_entry(entry)
    for number in range(1, 4):
        journal.save_release(_digest(number), _document(number))
    journal.save_permit(_digest(3), b"permit")
    for number in range(10, 10 + 3 * RELEASES_KEPT):
        journal.save_release(_digest(number), _document(number))
        journal.save_permit(_digest(number), b"another")
    assert [journal.release_bytes(_digest(number)) for number in range(1, 4)] == [
        _document(n) for n in range(1, 4)
    ]
    assert journal.permit_bytes(_digest(3)) == b"permit"
    assert len(list((tmp_path / "release").iterdir())) <= RELEASES_KEPT + 3


def test_a_document_written_with_the_clock_at_1970_is_not_forgotten_at_once(tmp_path: Path) -> None:
    journal = Journal(StateFiles(tmp_path))
    for number in range(RELEASES_KEPT):
        journal.save_release(_digest(number), _document(number))
        os.utime(tmp_path / f"release/{_digest(number)}.json", (2e9, 2e9))
    journal.save_release(_digest(RELEASES_KEPT), _document(RELEASES_KEPT))
    assert journal.release_bytes(_digest(RELEASES_KEPT)) == _document(RELEASES_KEPT)
