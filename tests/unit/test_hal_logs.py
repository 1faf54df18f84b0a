"""The device's own logs: positions, gaps, and nothing lost between chain and position."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.audit import SUPPRESSED, Actor, AuditUnavailableError, Outcome
from tidewaiter_hal.cursors import Gap, judge
from tidewaiter_hal.logs import LogReader
from tidewaiter_hal.model import Cursor, DeviceEvent, Log, LogPage
from tidewaiter_hal.state_file import StateFile

from tests.sim.injector_bench import Bench


def _event(seq: int) -> DeviceEvent:
    return DeviceEvent(seq=seq, boot_id=1, ms=5, kind=8, a=0, b=0)


def _page(after: int, *seqs: int, first: int = 1, head: int = 20, log_id: int = 7) -> LogPage:
    entries = tuple(_event(seq) for seq in seqs)
    return LogPage(log=Log.EVENTS, log_id=log_id, after=after, first=first, head=head, entries=entries)


def _cursor(seq: int, serial: str = "S-1", log_id: int = 7) -> Cursor:
    return Cursor(serial=serial, log_id=log_id, seq=seq)


def test_consecutive_entries_move_the_position_to_the_last() -> None:
    verdict = judge(_page(3, 4, 5, 6), _cursor(3), serial="S-1")
    assert (verdict.cursor, verdict.gaps, len(verdict.entries)) == (_cursor(6), (), 3)


def test_fault_log_gap_is_reported_with_both_ends() -> None:
    verdict = judge(_page(3, 9, 10, first=9), _cursor(3), serial="S-1")
    assert verdict.gaps == (Gap(first_missing=4, last_missing=8),)
    assert verdict.cursor == _cursor(10)


def test_a_hole_inside_a_page_is_read_again_before_it_is_believed() -> None:
    page = _page(3, 4, 6)
    assert judge(page, _cursor(3), serial="S-1").again
    verdict = judge(page, _cursor(3), serial="S-1", reread=True)
    assert verdict.gaps == (Gap(first_missing=5, last_missing=5),)


@pytest.mark.parametrize(
    ("page", "cursor"),
    [
        (_page(9, log_id=8, head=2), _cursor(9)),
        (_page(0, 1, 2), _cursor(9, serial="S-0")),
        (_page(9, head=4), _cursor(9)),
    ],
    ids=["formatted", "another injector", "head behind the position"],
)
def test_log_reformat_restarts_from_first(page: LogPage, cursor: Cursor) -> None:
    verdict = judge(page, cursor, serial="S-1")
    assert verdict.reset
    assert verdict.cursor == _cursor(0, log_id=page.log_id)


class Chain:
    """An audit log in memory that can fail."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.room = 10_000
        self.fails = False

    def append(
        self,
        kind: str,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        fields: Mapping[str, Any] | None = None,
    ) -> int:
        if self.fails:
            raise AuditUnavailableError("audit: no medium")
        if len(self.records) >= self.room:
            return SUPPRESSED
        self.records.append((kind, dict(fields or {})))
        return len(self.records)

    def flush(self) -> None:
        if self.fails:
            raise AuditUnavailableError("audit: no medium")

    def seqs(self, kind: str) -> list[int]:
        return [fields["seq"] for name, fields in self.records if name == kind]


class Reading:
    """A log reader on a bench."""

    def __init__(self, path: Path, bench: Bench | None = None, chain: Chain | None = None) -> None:
        self.bench = bench or Bench().settled()
        self.path = path
        self.chain = chain or Chain()
        self.state = StateFile(path / "state.json")
        self.reader = LogReader(self.bench, state=self.state, chain=self.chain, events=self.bench.events)

    def faults(self, count: int) -> None:
        injector = self.bench.sim.injector
        for _ in range(count):
            injector.logs.fault(
                injector.boot_id, injector.device_ms(), code=5, severity=2, board=0, argument=None
            )
        self.bench.run(1.0)

    def turn(self) -> None:
        self.reader.turn()
        self.bench.run(1.0)


def test_entries_of_all_logs_reach_the_chain_once(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    reading.faults(11)
    for _ in range(3):
        reading.turn()
    assert reading.chain.seqs("injector.fault") == list(range(1, 12))


def test_crash_between_audit_and_cursor_duplicates_nothing_that_the_numbers_do_not_show(
    tmp_path: Path,
) -> None:
    """At least once: after a crash the same numbers come again, none is missing."""
    reading = Reading(tmp_path)
    reading.faults(3)
    reading.turn()
    before_crash = reading.chain
    (tmp_path / "state.json").unlink()
    again = Reading(tmp_path, reading.bench, before_crash)
    again.turn()
    assert sorted(set(again.chain.seqs("injector.fault"))) == [1, 2, 3]


def test_a_position_does_not_move_when_the_chain_refuses(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    reading.faults(3)
    reading.chain.fails = True
    reading.turn()
    assert reading.state.cursor(Log.FAULTS) is None
    reading.chain.fails = False
    reading.turn()
    assert reading.chain.seqs("injector.fault") == [1, 2, 3]


def test_a_suppressed_record_is_read_again_later(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    reading.faults(5)
    reading.chain.room = 2
    reading.turn()
    reading.chain.room = 10_000
    reading.turn()
    assert reading.chain.seqs("injector.fault") == [1, 2, 3, 4, 5]


def test_an_overflow_of_the_device_log_is_recorded_as_a_gap(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    reading.faults(2)
    reading.turn()
    reading.bench.fault("log_overflow", entries=12)
    reading.bench.run(1.0)
    reading.turn()
    gaps = [
        fields
        for kind, fields in reading.chain.records
        if kind == "injector.log_gap" and fields["log"] == "faults"
    ]
    assert (gaps[0]["from"], gaps[0]["to"]) == (3, 12)
    assert reading.chain.seqs("injector.fault") == [1, 2, 13, 14]


def test_a_formatted_log_is_recorded_and_read_from_the_start(tmp_path: Path) -> None:
    reading = Reading(tmp_path)
    reading.faults(2)
    reading.turn()
    reading.bench.fault("log_format")
    reading.faults(1)
    reading.bench.fault("reboot")
    reading.bench.up()
    for _ in range(3):
        reading.turn()
    assert any(kind == "injector.log_gap" for kind, _ in reading.chain.records)
    assert reading.chain.seqs("injector.fault") == [1, 2, 1]


def test_an_injection_of_the_log_is_in_the_chain_without_patient_data(tmp_path: Path) -> None:
    reading = Reading(tmp_path, Bench(speed=20.0).settled())
    for action in ("arm", "start"):
        reading.bench.do(action)
        reading.bench.run(0.5)
    reading.bench.run(10.0)
    reading.turn()
    ((_, fields),) = [record for record in reading.chain.records if record[0] == "injector.injection"]
    assert (fields["end"], fields["planned_ul"]) == (1, 100_000)
    assert fields["delivered_ul"] == pytest.approx(100_000, abs=10)
    assert not any(isinstance(value, str) for name, value in fields.items() if name != "serial")
