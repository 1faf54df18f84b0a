"""Speed and remaining time as a person would tell them: by what happened lately."""

from __future__ import annotations

from tidewaiter_updater.model import ByteCounts, TransferProgress
from tidewaiter_updater.pace import Pace
from tidewaiter_updater.phases import Phase
from tidewaiter_updater.status import render_status

from tests.sim.device import Device

MIB = 1 << 20


def test_nobody_can_tell_within_the_first_second() -> None:
    pace = Pace()
    assert pace.speed_bytes_per_s(0, at_s=0.0) == 0
    pace.note(0, at_s=0.0)
    assert pace.speed_bytes_per_s(MIB, at_s=0.5) == 0


def test_a_fast_resume_does_not_promise_a_fast_end() -> None:
    pace = Pace()
    for second in range(3):
        pace.note(second * 1000 * MIB, at_s=float(second))
    for second in range(3, 30):
        pace.note(2000 * MIB + (second - 2) * MIB, at_s=float(second))
    assert pace.speed_bytes_per_s(2027 * MIB, at_s=29.0) == MIB


def test_a_transfer_that_stands_still_gets_slower_while_it_does() -> None:
    pace = Pace()
    for second in range(10):
        pace.note(second * MIB, at_s=float(second))
    assert pace.speed_bytes_per_s(9 * MIB, at_s=90.0) == MIB // 10


def test_many_words_in_a_second_are_one() -> None:
    pace = Pace()
    for step in range(1000):
        pace.note(step, at_s=step / 1000)
    assert len(pace._seen) == 1


def test_the_status_tells_the_pace_of_transfer_and_read_back_each_for_itself() -> None:
    device = Device()
    transaction = device.power_on().transaction
    for phase, report in (
        (Phase.TRANSFER, transaction.report),
        (Phase.VERIFY, transaction.report_read_back),
    ):
        transaction.phase = phase
        for done in (0, 20, 40):
            report(TransferProgress(counts=ByteCounts(total=100, written=done)))
            device.clock.advance(2)
        shown = render_status(transaction)
        assert (shown["speed_bytes_per_s"], shown["remaining_s"]) == (6, 10)
    transaction.phase = Phase.STAGED
    assert render_status(transaction)["speed_bytes_per_s"] == 0
