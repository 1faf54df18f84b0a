"""The lease commands on the line, and what proves that the injector is locked."""

import hashlib
from dataclasses import dataclass
from typing import Final

from tidewaiter_core.clock import Clock, Deadline

from tidewaiter_hal.errors import DeniedError, LeaseLostError
from tidewaiter_hal.injector import CommandKind, Permit
from tidewaiter_hal.interlock import Purpose
from tidewaiter_hal.model import ALL_LOCKOUTS, LeaseReply, StateSample, sample_distance
from tidewaiter_hal.port_thread import Line

ASK_TIMEOUT_S: Final = 2.0
CONFIRM_LIMIT_S: Final = 3.0
CONFIRM_LOOK_S: Final = 0.05
RC_WRONG_STATE, RC_HELD, RC_UNKNOWN, RC_OPERATOR = 6, 7, 8, 9


@dataclass(slots=True, kw_only=True)
class HeldLease:
    """The lease of this service, if there is one."""

    token: bytes
    purpose: Purpose
    ttl_ms: int
    expires_s: float
    boot_id: int | None
    sealed: bool = False
    sealed_s: float = 0.0
    from_previous_boot: bool = False
    attached: bool = True
    """A Hold connection looks after it."""
    since_s: float = 0.0
    """Samples taken before this say nothing about it."""
    ending: bool = False
    """A release was sent or is about to be: the injector may be unlocked already, a seal cannot hold it."""

    @property
    def lease_id(self) -> str:
        """A handle that does not reveal the token."""
        return hashlib.sha256(self.token).hexdigest()[:16]


class LeaseWire:
    """Sends lease commands; every method raises what `Line.ask` raises."""

    def __init__(self, line: Line, clock: Clock) -> None:
        self._line = line
        self._clock = clock

    def acquire(self, held: HeldLease) -> None:
        """Lock the injector; returns when a sample taken after its reply shows the lockouts.

        The lease expires when the injector says so, if that is earlier than what was asked.

        Raises:
            DeniedError: The injector said yes, but no sample showed it in time.
        """
        body = {**_terms(held, held.ttl_ms), "pu": held.purpose.wire}
        reply = self._ask(held, "lease-acquire", body)
        held.expires_s -= (held.ttl_ms - _granted_ms(reply, held.ttl_ms)) / 1000
        deadline = Deadline(self._clock, CONFIRM_LIMIT_S)
        while not _proves(self._line.knowledge.sample, held, reply):
            if deadline.expired:
                raise DeniedError(["lease-not-confirmed"])
            self._clock.sleep(CONFIRM_LOOK_S)

    def renew(self, held: HeldLease, ttl_ms: int) -> int:
        """Keep it locked for `ttl_ms` from now; returns how long the injector said it will be, at most that."""
        return _granted_ms(self._ask(held, "lease-renew", _terms(held, ttl_ms)), ttl_ms)

    def release(self, held: HeldLease) -> None:
        """Unlock."""
        self._ask(held, "lease-release", {"tk": held.token})

    def _ask(self, held: HeldLease, command: str, body: dict[str, int | bytes]) -> LeaseReply:
        permit = Permit(kind=CommandKind.RESTRICT, reason=f"{command} for {held.purpose}")
        reply = self._line.ask(command, body, timeout_s=ASK_TIMEOUT_S, permit=permit)
        if not isinstance(reply, LeaseReply):
            raise LeaseLostError(f"lease: {command} was answered with something else")
        return reply


def _granted_ms(reply: LeaseReply, asked_ms: int) -> int:
    """A reply that does not say how long grants nothing that could be relied on."""
    return min(asked_ms, reply.left_ms or 0)


def _terms(held: HeldLease, ttl_ms: int) -> dict[str, int | bytes]:
    return {"tk": held.token, "tt": ttl_ms}


def _proves(sample: StateSample | None, held: HeldLease, reply: LeaseReply) -> bool:
    if sample is None or reply.sample is None or sample.boot_id != held.boot_id:
        return False
    locked = sample.lockouts & ALL_LOCKOUTS == ALL_LOCKOUTS
    return sample_distance(sample.sample, reply.sample) > 0 and locked and bool(sample.lease_active)
