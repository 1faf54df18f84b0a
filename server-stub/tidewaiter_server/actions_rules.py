"""The life of one action: a pure table of states and what may move them.

WAIT_CONFIRM -> PENDING -> RETRIEVED -> RUNNING -> FINISHED | ERROR; CANCELING -> CANCELED or back.
Where hawkBit does something surprising we do the same, because clients in the field rely on it:
`rejected` and `canceled` on a deployment are warnings that leave it open; after the end everything is 410.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class State(StrEnum):
    WAIT_CONFIRM = "WAIT_CONFIRM"
    PENDING = "PENDING"
    RETRIEVED = "RETRIEVED"
    RUNNING = "RUNNING"
    CANCELING = "CANCELING"
    FINISHED = "FINISHED"
    ERROR = "ERROR"
    CANCELED = "CANCELED"

    @property
    def is_open(self) -> bool:
        return self not in (State.FINISHED, State.ERROR, State.CANCELED)


class Channel(StrEnum):
    """Which route a report came by."""

    DEPLOYMENT = "deployment"
    CANCEL = "cancel"
    CONFIRMATION = "confirmation"


class Verdict(StrEnum):
    """What the sender is told."""

    ACCEPTED = "accepted"
    CLOSED = "closed"
    """410: the action is over."""
    ABSENT = "absent"
    """404: this route does not exist for the action now."""


EXECUTIONS: Final = (
    "closed",
    "proceeding",
    "canceled",
    "scheduled",
    "rejected",
    "resumed",
    "downloaded",
    "download",
)
FINISHED: Final = ("success", "failure", "none")
CONFIRMATIONS: Final = ("confirmed", "denied")
_WARNINGS: Final = ("rejected", "canceled")


@dataclass(frozen=True, slots=True)
class Step:
    verdict: Verdict
    state: State


def report(
    state: State, channel: Channel, execution: str, finished: str = "none", *, resume: State = State.RUNNING
) -> Step:
    """What a device's report does to an action in `state`.

    Args:
        resume: Where the action was when it was canceled; a rejected cancel goes back there, so that it can never
            turn an unconfirmed action into a confirmed one.
    """
    if not state.is_open:
        return Step(Verdict.CLOSED, state)
    if channel is Channel.DEPLOYMENT:
        return _deployment(state, execution, finished)
    if channel is Channel.CANCEL:
        return _cancel(state, execution, finished, resume)
    return _confirmation(state, execution)


def _deployment(state: State, execution: str, finished: str) -> Step:
    if state is State.WAIT_CONFIRM:
        return Step(Verdict.ABSENT, state)
    if execution == "closed":
        # What really happened wins over a cancel that came too late.
        return Step(Verdict.ACCEPTED, State.ERROR if finished == "failure" else State.FINISHED)
    if state is State.CANCELING or execution in _WARNINGS:
        return Step(Verdict.ACCEPTED, state)
    return Step(Verdict.ACCEPTED, State.RUNNING)


def _cancel(state: State, execution: str, finished: str, resume: State) -> Step:
    if state is not State.CANCELING:
        return Step(Verdict.ABSENT, state)
    if execution == "closed" and finished != "failure":
        return Step(Verdict.ACCEPTED, State.CANCELED)
    if execution in ("rejected", "closed"):
        return Step(Verdict.ACCEPTED, resume)
    return Step(Verdict.ACCEPTED, state)


def _confirmation(state: State, execution: str) -> Step:
    if state is not State.WAIT_CONFIRM:
        return Step(Verdict.ABSENT, state)
    # A denial is the customer's "not now": the action stays, the device asks again when its policy allows.
    return Step(Verdict.ACCEPTED, State.PENDING if execution == "confirmed" else state)


def retrieve(state: State) -> State:
    """The device fetched the deployment."""
    return State.RETRIEVED if state is State.PENDING else state


def cancel(state: State, *, offered: bool) -> State:
    """Somebody withdrew the action; one that the device was never offered ends at once."""
    if not state.is_open:
        return state
    return State.CANCELING if offered else State.CANCELED
