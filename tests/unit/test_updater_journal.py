"""What the updater remembers, and what it does when it remembers nothing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_updater.journal import QUARANTINE_LIMIT, Journal, JournalEntry
from tidewaiter_updater.model import (
    Channel,
    CheckResult,
    Consent,
    HealthCheck,
    Last,
    Scope,
    SlotRecord,
    Verdict,
)
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.state_files import StateFiles

DIGEST = Sha256.of(b"release")
ENTRY = JournalEntry(
    phase=Phase.HEALTH,
    digest=DIGEST,
    target=SlotName.B,
    source="relay",
    since_utc="2026-11-24T12:00:00.000Z",
    attempts=2,
    staged_root="ab" * 32,
    from_version="1.0",
    consent=Consent(
        digest=DIGEST,
        scope=(Scope.INSTALL, Scope.ACTIVATE),
        channel=Channel.LOCAL,
        who="uid:1000",
        given_utc="2026-11-24T12:00:00.000Z",
        expires_utc="2026-11-25T12:00:00.000Z",
    ),
    verdict=Verdict(
        boot_id="0" * 32,
        healthy=False,
        checks=(HealthCheck(name="hal", result=CheckResult.FAIL, detail="no answer"),),
    ),
    last=Last(
        code="health.hal", text="no answer", step="HEALTH", at_utc="2026-11-24T12:00:00.000Z", digest=DIGEST
    ),
)
RECORD = SlotRecord(digest=DIGEST, root=Sha256.of(b"root"), sequence=2, epoch=1, version="2.0")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(StateFiles(tmp_path))


def test_an_entry_survives_a_restart(journal: Journal, tmp_path: Path) -> None:
    journal.save_entry(ENTRY)
    assert Journal(StateFiles(tmp_path)).entry() == ENTRY


def test_a_bare_entry_survives_a_restart(journal: Journal) -> None:
    bare = replace(ENTRY, consent=None, verdict=None, last=None)
    journal.save_entry(bare)
    assert journal.entry() == bare


def test_no_journal_is_no_entry(journal: Journal) -> None:
    assert journal.entry() is None


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema": 1, "phase": "HEALTH", "phase": "IDLE"}', "[]", "\x00" * 40]
)
def test_a_damaged_journal_counts_as_absent_and_is_kept_as_evidence(tmp_path: Path, text: str) -> None:
    (tmp_path / "journal.json").write_text(text)
    journal = Journal(StateFiles(tmp_path))
    assert journal.entry() is None
    journal.save_entry(ENTRY)
    assert journal.entry() == ENTRY
    assert [path.read_text() for path in tmp_path.glob("journal.json.corrupt-*")] == [text]


def test_a_journal_of_a_newer_program_counts_as_absent_and_is_left_alone(tmp_path: Path) -> None:
    text = json.dumps({"schema": 2, "phase": "SOMETHING"})
    (tmp_path / "journal.json").write_text(text)
    assert Journal(StateFiles(tmp_path)).entry() is None
    assert (tmp_path / "journal.json").read_text() == text


@pytest.mark.parametrize("name", ["phase", "digest", "target", "since_utc", "closed", "attempts"])
def test_an_entry_with_a_missing_or_foreign_member_counts_as_absent(tmp_path: Path, name: str) -> None:
    files = StateFiles(tmp_path)
    Journal(files).save_entry(ENTRY)
    document = files.load("journal")
    assert document is not None
    del document[name]
    files.save("journal", document)
    assert Journal(files).entry() is None


def test_members_of_a_later_release_are_ignored(tmp_path: Path) -> None:
    files = StateFiles(tmp_path)
    Journal(files).save_entry(ENTRY)
    files.save("journal", (files.load("journal") or {}) | {"added_later": [1]})
    assert Journal(files).entry() == ENTRY


def test_slot_records_are_kept_per_slot(journal: Journal) -> None:
    journal.save_slot(SlotName.A, RECORD)
    journal.save_slot(SlotName.B, replace(RECORD, version="3.0"))
    assert {slot: record.version for slot, record in journal.slots().items()} == {
        SlotName.A: "2.0",
        SlotName.B: "3.0",
    }


def test_the_oldest_quarantine_is_forgotten_first(journal: Journal) -> None:
    for number in range(QUARANTINE_LIMIT + 1):
        journal.quarantine(f"{number:016x}", "health.hal")
    assert len(journal.quarantined()) == QUARANTINE_LIMIT
    assert f"{0:016x}" not in journal.quarantined()
    journal.clear_quarantine(f"{5:016x}")
    assert f"{5:016x}" not in journal.quarantined()


def test_a_release_document_that_was_changed_on_disk_is_not_used(journal: Journal, tmp_path: Path) -> None:
    journal.save_release(DIGEST, b"release")
    assert journal.release_bytes(DIGEST) == b"release"
    (tmp_path / f"release/{DIGEST}.json").write_bytes(b"forged")
    assert journal.release_bytes(DIGEST) is None


def test_old_release_documents_are_removed(journal: Journal, tmp_path: Path) -> None:
    for number in range(20):
        data = str(number).encode()
        journal.save_release(Sha256.of(data), data)
    assert len(list((tmp_path / "release").glob("*.json"))) == 8


def test_the_latest_source_of_an_offer_is_remembered(journal: Journal) -> None:
    assert journal.offered_by(DIGEST) == "relay"
    journal.note_offer(DIGEST, "directory:/media/stick")
    assert journal.offered_by(DIGEST) == "directory:/media/stick"
    journal.note_offer(DIGEST, "relay")
    assert journal.offered_by(DIGEST) == "relay"
