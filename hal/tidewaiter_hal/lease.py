"""The inhibit lease: closes the gap between "idle" and the reboot (hal-and-hil.md 6.2).

Order that matters: check, token on disk, acquire, a sample taken after the reply shows the lockouts, second check,
only then is the lease reported. It ends when the holder's connection closes, unless sealed; a sealed one survives
the shutdown that it protects. Whatever dies here, the injector ends the lease on its own clock.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Final, Protocol

from tidewaiter_core.audit import Actor, Outcome
from tidewaiter_core.clock import Clock
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_hal.errors import (
    DeniedError,
    HalError,
    LeaseBusyError,
    LeaseLostError,
    LinkDownError,
    NotSupportedError,
)
from tidewaiter_hal.interlock import Decision, Policy, Purpose, Situation, decide
from tidewaiter_hal.lease_wire import RC_HELD, RC_OPERATOR, RC_WRONG_STATE, HeldLease, LeaseWire
from tidewaiter_hal.model import Lease
from tidewaiter_hal.port_thread import DeviceRefusedError, Line
from tidewaiter_hal.state_file import StateFile, StoredLease

logger = logging.getLogger(__name__)

TTL_MIN_MS: Final = 5_000
TTL_MAX_MS: Final = 300_000
SEAL_GRACE_S: Final = 60.0
REFUSED_PAUSE_S: Final = 600.0
REPORT_S: Final = 4.0
GRANT_SLACK_MS: Final = 1_000
"""How much less than asked a seal may show in the reply: what passed on the injector until it was built."""
_LOOK_S: Final = 0.25


class Recorder(Protocol):
    """Where what happened is recorded; `AuditLog` is one."""

    def append(
        self,
        kind: str,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        fields: Mapping[str, Any] | None = None,
    ) -> int: ...


class LeaseKeeper:
    """Decides and holds. Called by IPC threads and by one worker (`tick`)."""

    def __init__(
        self,
        line: Line,
        *,
        state: StateFile,
        policy: Policy,
        clock: Clock,
        recorder: Recorder,
        host_boot: str,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._line = line
        self._wire = LeaseWire(line, clock)
        self._state = state
        self._policy = policy
        self._clock = clock
        self._recorder = recorder
        self._host_boot = host_boot
        self._random_bytes = random_bytes
        self._started_s = clock.boottime_s()
        self._lock = threading.Lock()
        self._held = self._remembered()
        self._refused_until_s = 0.0

    # Answers

    def check(self, purpose: Purpose, *, is_holder: bool = False) -> Decision:
        """May this be done now? `is_holder`: the asker is the one a held lease belongs to."""
        held = self._held
        return decide(
            Situation(
                knowledge=self._line.knowledge,
                purpose=purpose,
                policy=self._policy,
                now_s=self._clock.boottime_s(),
                started_s=self._started_s,
                own_lease=is_holder and held is not None,
                other_lease=held is not None and not is_holder,
            )
        )

    def current(self) -> Lease | None:
        """The lease this service holds or found from before."""
        held = self._held
        return None if held is None else self._view(held)

    # Holding

    def hold(
        self, purpose: Purpose, ttl_ms: int, *, actor: Actor, wait_closed: Callable[[float], bool]
    ) -> Generator[Lease, None, None]:
        """Acquire, report, renew, and release at the end; each item says that the lease is held now.

        Raises:
            DeniedError, LeaseBusyError, NotSupportedError: Nothing is locked.
            LeaseLostError: The lease ended although it was wanted.
        """
        held = self._acquire(purpose, ttl_ms, actor)
        try:
            yield self._view(held)
            yield from self._keep(held, wait_closed)
        except LeaseLostError as err:
            self._record("interlock.lost", actor, Outcome.SERIOUS, purpose=purpose, reason=str(err)[:200])
            raise
        finally:
            held.attached = False
            if self._begin_end(held):
                self._release(held)

    def _begin_end(self, held: HeldLease) -> bool:
        """Whether the holder's end is the lease's end. One step with `seal`: never both."""
        with self._lock:
            held.ending = held.ending or (not held.sealed and self._held is held)
            return held.ending and self._held is held and not held.sealed

    def _acquire(self, purpose: Purpose, ttl_ms: int, actor: Actor) -> HeldLease:
        decision = self.check(purpose)
        reasons = [*decision.reasons, *self._own_reasons()]
        if reasons:
            self._record("interlock.denied", actor, Outcome.MINOR, purpose=purpose, reasons=reasons[:16])
            if self._held is not None and reasons == ["firmware-busy"]:
                raise LeaseBusyError(
                    f"interlock: a lease for {self._held.purpose} is held; nothing was locked"
                )
            raise DeniedError(reasons)
        capabilities = self._line.knowledge.capabilities
        if capabilities is None or "lease" not in capabilities.features:
            raise NotSupportedError(
                "interlock: this injector has no lease; a local consent and a late check are needed"
            )
        held = self._claim(purpose, ttl_ms)
        try:
            self._wire.acquire(held)
            self._check_again(held)
            # The record comes before the permission: an unrecorded lease must not allow a reboot.
            self._recorder.append(
                "interlock.held", actor=actor, fields={"purpose": purpose.value, "lease": held.lease_id}
            )
        except TidewaiterError as err:
            self._release(held)
            raise self._why_not(err, purpose, actor) from err
        return held

    def _claim(self, purpose: Purpose, ttl_ms: int) -> HeldLease:
        now_s = self._clock.boottime_s()
        with self._lock:
            if self._held is not None:
                raise LeaseBusyError(
                    f"interlock: a lease for {self._held.purpose} is held; nothing was locked"
                )
            sample = self._line.knowledge.sample
            held = HeldLease(
                token=self._random_bytes(8),
                purpose=purpose,
                ttl_ms=ttl_ms,
                expires_s=now_s + ttl_ms / 1000,
                boot_id=sample.boot_id if sample else None,
                since_s=now_s,
            )
            try:
                self._store(held)  # on disk before the injector can know it
            except TidewaiterError as err:
                raise DeniedError(["state-not-writable"]) from err
            self._held = held
        return held

    def _check_again(self, held: HeldLease) -> None:
        decision = self.check(held.purpose, is_holder=True)
        if not decision.allow:
            raise DeniedError(decision.reasons)

    def _why_not(self, err: TidewaiterError, purpose: Purpose, actor: Actor) -> TidewaiterError:
        reason = {
            RC_WRONG_STATE: "state-not-idle",
            RC_HELD: "firmware-busy",
            RC_OPERATOR: "operator-refused",
        }
        result: TidewaiterError = err
        if isinstance(err, DeviceRefusedError):
            if err.number == RC_OPERATOR:
                self._refused_until_s = self._clock.boottime_s() + REFUSED_PAUSE_S
            result = DeniedError([reason.get(err.number, f"injector-refused-{err.number}")])
        elif isinstance(err, LinkDownError):
            result = DeniedError(["link-down"])
        elif not isinstance(err, HalError):
            result = DeniedError([err.code])
        reasons = list(result.reasons) if isinstance(result, DeniedError) else [result.code]
        self._record("interlock.denied", actor, Outcome.MINOR, purpose=purpose, reasons=reasons[:16])
        return result

    def _own_reasons(self) -> list[str]:
        reasons = []
        if not self._state.is_writable:
            reasons.append("state-not-writable")
        if self._clock.boottime_s() < self._refused_until_s:
            reasons.append("operator-refused")
        return reasons

    def _keep(self, held: HeldLease, wait_closed: Callable[[float], bool]) -> Iterator[Lease]:
        renewed_s = reported_s = self._clock.boottime_s()
        while not wait_closed(_LOOK_S):
            now_s = self._clock.boottime_s()
            self._look(held, now_s)
            is_due = not held.sealed and now_s - renewed_s >= held.ttl_ms / 3000
            if is_due and self._renew(held, now_s):
                renewed_s = now_s
            if now_s - reported_s >= REPORT_S:
                reported_s = now_s
                yield self._view(held)

    def _look(self, held: HeldLease, now_s: float) -> None:
        if self._held is not held or held.ending:
            raise LeaseLostError("lease: released by this service")
        if now_s >= held.expires_s:
            self._drop(held)
            raise LeaseLostError("lease: it could not be renewed before it expired")
        sample = self._line.knowledge.sample
        if sample is None or sample.taken_s <= held.since_s:
            return
        if sample.boot_id != held.boot_id:
            self._drop(held)
            raise LeaseLostError("lease: the injector booted and forgot it")
        if not sample.lease_active:
            why = self._why_ended(held)
            self._drop(held)
            raise LeaseLostError(f"lease: {why}")

    def _why_ended(self, held: HeldLease) -> str:
        try:
            self._wire.renew(held, held.ttl_ms)
        except DeviceRefusedError as err:
            if err.number == RC_OPERATOR:
                self._refused_until_s = self._clock.boottime_s() + REFUSED_PAUSE_S
                return "cancelled by the operator"
        except TidewaiterError as err:
            logger.info("lease %s: the reason of its end is not known: %s", held.lease_id, err)
        return "ended on the injector"

    def _renew(self, held: HeldLease, now_s: float) -> bool:
        try:
            granted_ms = self._wire.renew(held, held.ttl_ms)
        except DeviceRefusedError as err:
            self._drop(held)
            if err.number == RC_OPERATOR:
                self._refused_until_s = now_s + REFUSED_PAUSE_S
                raise LeaseLostError("lease: cancelled by the operator") from err
            raise LeaseLostError(f"lease: the injector does not know it (code {err.number})") from err
        except HalError as err:
            logger.warning("lease %s: not renewed: %s; tried again until it expires", held.lease_id, err)
            return False
        held.expires_s = now_s + granted_ms / 1000
        return True

    # Sealing and ending

    def seal(self, lease_id: str, budget_ms: int, *, actor: Actor) -> Lease:
        """Keep the injector locked for `budget_ms`, whoever dies meanwhile.

        Raises:
            LeaseLostError: There is no such lease, or the injector did not confirm; it must not be relied on.
        """
        held = self._require(lease_id)
        try:
            with self._lock:
                if self._held is not held or held.ending:
                    raise LeaseLostError("it is being released")
                held.sealed, held.sealed_s = True, self._clock.boottime_s()
                self._store(held)
            granted_ms = self._wire.renew(held, budget_ms)
            if granted_ms < budget_ms - GRANT_SLACK_MS:
                # The host would still be down when the injector unlocks itself.
                raise LeaseLostError(f"the injector grants {granted_ms} ms of {budget_ms} ms")
            self._check_again(held)
            self._recorder.append(
                "interlock.held", actor=actor, fields={"purpose": held.purpose.value, "sealed_ms": budget_ms}
            )
            if self._held is not held or held.ending:
                raise LeaseLostError("it was released meanwhile")
        except TidewaiterError as err:
            held.sealed = False
            with contextlib.suppress(TidewaiterError), self._lock:
                if self._held is held:  # else its record is gone, or belongs to another lease
                    self._store(held)
            raise LeaseLostError(f"lease: not sealed, do not reboot: {err}") from err
        held.expires_s = held.sealed_s + budget_ms / 1000
        return self._view(held)

    def release(self, lease_id: str) -> None:
        """End the lease now.

        Raises:
            LeaseLostError: There is no such lease.
            LinkDownError: The injector does not answer; the lease expires there by itself.
        """
        held = self._require(lease_id)
        if not self._release(held):
            raise LinkDownError("lease: the injector does not answer; it ends the lease on its own clock")

    def tick(self) -> None:
        """What time does to a lease nobody looks after. Called about once a second."""
        held = self._held
        if held is None or not self._line.knowledge.is_answering:
            return
        now_s = self._clock.boottime_s()
        sample = self._line.knowledge.sample
        if held.sealed and not held.from_previous_boot and now_s - held.sealed_s >= SEAL_GRACE_S:
            self._record(
                "interlock.lost", _SELF, Outcome.MINOR, purpose=held.purpose, reason="sealed, no shutdown"
            )
            held.sealed = False
            self._release(held)
        elif held.attached:
            return
        elif sample is not None and sample.taken_s > held.since_s and not sample.lease_active:
            self._record(
                "interlock.lost", _SELF, Outcome.OK, purpose=held.purpose, reason="ended on the injector"
            )
            self._drop(held)
        elif not held.from_previous_boot and not held.sealed:
            self._release(held)

    def _release(self, held: HeldLease) -> bool:
        with self._lock:
            held.ending = True
        try:
            self._wire.release(held)
        except DeviceRefusedError as err:
            logger.info("lease %s: %s", held.lease_id, err)  # the injector has none: that is what was wanted
        except HalError as err:
            logger.warning("lease %s: not released: %s; tried again, else it expires", held.lease_id, err)
            held.attached = False
            return False
        self._drop(held)
        return True

    def _drop(self, held: HeldLease) -> None:
        with self._lock:
            if self._held is not held:
                return
            try:
                # Under the lock and first: later it would erase the token of the lease that comes next.
                self._state.store_lease(None)
            except TidewaiterError as err:
                logger.warning("lease %s: its record stays in the state file: %s", held.lease_id, err)
            self._held = None

    # Bookkeeping

    def _remembered(self) -> HeldLease | None:
        stored = self._state.lease
        if stored is None:
            return None
        now_s = self._clock.boottime_s()
        return HeldLease(
            token=stored.token,
            purpose=Purpose(stored.purpose),
            ttl_ms=TTL_MIN_MS,
            expires_s=now_s,
            boot_id=None,
            sealed=stored.sealed,
            sealed_s=stored.sealed_s,
            from_previous_boot=stored.host_boot != self._host_boot,
            attached=False,
            since_s=now_s,
        )

    def _store(self, held: HeldLease) -> None:
        self._state.store_lease(
            StoredLease(
                token=held.token,
                purpose=held.purpose.value,
                host_boot=self._host_boot,
                sealed=held.sealed,
                sealed_s=held.sealed_s,
            )
        )

    def _require(self, lease_id: str) -> HeldLease:
        held = self._held
        if held is None or held.lease_id != lease_id:
            raise LeaseLostError(f"lease {lease_id}: this service holds no such lease")
        return held

    def _view(self, held: HeldLease) -> Lease:
        sample, now_s = self._line.knowledge.sample, self._clock.boottime_s()
        remaining_ms = int((held.expires_s - now_s) * 1000)
        if not held.attached and sample is not None and sample.taken_s > held.since_s and sample.lease_active:
            # Found from before: only the injector knows when it ends.
            remaining_ms = (sample.lease_left_ms or 0) - int((now_s - sample.taken_s) * 1000)
        return Lease(
            lease_id=held.lease_id,
            purpose=held.purpose.value,
            sealed=held.sealed,
            remaining_ms=max(0, remaining_ms),
            from_previous_boot=held.from_previous_boot,
        )

    def _record(self, kind: str, actor: Actor, outcome: Outcome, *, purpose: Purpose, **fields: Any) -> None:
        try:
            self._recorder.append(
                kind, actor=actor, outcome=outcome, fields={"purpose": purpose.value, **fields}
            )
        except TidewaiterError as err:
            logger.warning("%s was not recorded: %s", kind, err)


_SELF: Final = Actor(kind="component", id="hal")
