"""What a device did when it was switched on after a cut, in words that go into the report."""

from __future__ import annotations

from enum import StrEnum

from tidewaiter_updater.engine import Engine
from tidewaiter_updater.phases import IN_TRIAL, Phase


class Outcome(StrEnum):
    """The first thing that the updater knew about itself after the cut. The values are shown to people."""

    OFFERED_AGAIN = "runs the earlier release, knows of no update and takes it when it is offered again"
    BEGINS = "runs the earlier release and begins the update anew, nothing was written yet"
    RESUMES = "runs the earlier release and continues to write the other slot"
    PROVES = "runs the earlier release and reads the whole other slot before it relies on it"
    TRIES = "starts the new release on trial"
    KEEPS = "runs the new release for good"
    RETURNS = "is back on the earlier release and knows that the new one failed"
    ENDED = "runs the earlier release, the update is over"
    STOPS = "runs, and changes nothing until its boot record is repaired"
    WRONG = "VIOLATION"


CODES = tuple(Outcome)


def first_act(engine: Engine, *, runs_offered: bool) -> Outcome:
    """What a start of the updater found."""
    transaction = engine.transaction
    if transaction.degraded is not None:
        return Outcome.STOPS
    if transaction.phase in IN_TRIAL:
        return Outcome.TRIES
    if runs_offered:
        return Outcome.KEEPS
    return _BY_PHASE.get(transaction.phase, Outcome.OFFERED_AGAIN)


_BY_PHASE = {
    Phase.WAIT_CONSENT: Outcome.BEGINS,
    Phase.PREPARE: Outcome.BEGINS,
    Phase.TRANSFER: Outcome.RESUMES,
    Phase.VERIFY: Outcome.PROVES,
    Phase.ROLLED_BACK: Outcome.RETURNS,
    Phase.FAILED: Outcome.ENDED,
}
