"""The injector as the updater may know it: permission, lease and state, over the HAL's two sockets.

Invariants: no answer is a no; a lease is kept by a thread that does nothing but read its stream, so that `is_held` is
what the HAL said last and not what we hope; giving a lease back never fails, because leases also end by themselves.

Source: hal-and-hil.md section 6.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tidewaiter_core.clock import Clock
from tidewaiter_core.varlink import Client, NotReachable, VarlinkError

from tidewaiter_updater.errors import InterlockError
from tidewaiter_updater.model import Decision, Held

logger = logging.getLogger(__name__)

INTERLOCK = "io.tidewaiter.Interlock"
INJECTOR = "io.tidewaiter.Injector"
CALL_LIMIT_S = 5.0
VIEW_LIMIT_S = 1.0
HOLD_LIMIT_S = 10.0
SAMPLE_LIMIT_S = 5.0
SAMPLE_POLL_S = 0.2
HOLD_TTL_MS = 60_000
SEAL_BUDGET_MS = 180_000
UNREACHABLE_PAUSE_S = 10.0
UNREACHABLE = "hal-unreachable"


class HalInterlock:
    """Port Interlock over io.tidewaiter.Interlock."""

    def __init__(self, control_socket: Path, monitor_socket: Path, *, clock: Clock) -> None:
        self._control = control_socket
        self._monitor = monitor_socket
        self._clock = clock
        self._hold: _Hold | None = None

    def check(self, purpose: str) -> Decision:
        try:
            answer = self._call("Check", {"purpose": purpose})["decision"]
        except (NotReachable, VarlinkError) as err:
            logger.warning("interlock did not answer: %s", err)
            return Decision(allow=False, reasons=(UNREACHABLE,))
        return Decision(
            allow=answer["allow"] is True, reasons=tuple(answer["reasons"]), ttl_ms=int(answer["ttl_ms"])
        )

    def hold(self, purpose: str) -> Held | None:
        self._end_hold()
        hold = _Hold(self._control, purpose)
        hold.start()
        try:
            lease = hold.first(HOLD_LIMIT_S)
        except VarlinkError as err:
            if err.name == f"{INTERLOCK}.Unsupported":
                return None
            raise _denied(purpose, err) from err
        except NotReachable as err:
            hold.abandon()
            raise InterlockError(f"hold for {purpose}: {err}", reasons=(UNREACHABLE,)) from err
        self._hold = hold
        return lease

    def is_held(self) -> bool:
        return self._hold is not None and self._hold.is_alive

    def newer_sample(self, after: int | None) -> int | None:
        end_s = self._clock.boottime_s() + SAMPLE_LIMIT_S
        never = threading.Event()
        while True:
            number = _sample_number(_snapshot(self._monitor, CALL_LIMIT_S))
            if number is not None and (after is None or number > after):
                return number
            if self._clock.boottime_s() >= end_s:
                return None
            self._clock.wait(never, SAMPLE_POLL_S)

    def seal(self, lease_id: str) -> None:
        try:
            self._call("Seal", {"lease_id": lease_id, "budget_ms": SEAL_BUDGET_MS})
        except VarlinkError as err:
            raise _denied("seal", err) from err
        except NotReachable as err:
            raise InterlockError(f"seal: {err}", reasons=(UNREACHABLE,)) from err

    def release(self) -> None:
        lease_id = self._hold.lease_id if self._hold else None
        try:
            lease = self.lease()
            for name in {name for name in (lease_id, lease.lease_id if lease else None) if name}:
                self._call("Release", {"lease_id": name})
        except (NotReachable, VarlinkError) as err:
            logger.info("lease not given back, it ends by itself: %s", err)
        self._end_hold()

    def lease(self) -> Held | None:
        try:
            lease = self._call("GetLease", {})["lease"]
        except (NotReachable, VarlinkError) as err:
            logger.info("no lease known: %s", err)
            return None
        return _held(lease) if lease else None

    def _call(self, method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        with Client(self._control, timeout_s=CALL_LIMIT_S) as client:
            return client.call(f"{INTERLOCK}.{method}", parameters)

    def _end_hold(self) -> None:
        if self._hold is not None:
            self._hold.abandon()
            self._hold = None


class _Hold:
    """The stream of one Hold call; the lease lasts as long as its connection."""

    def __init__(self, socket_path: Path, purpose: str) -> None:
        self._path = socket_path
        self._purpose = purpose
        self._answered = threading.Event()
        self._abandoned = threading.Event()
        self._ended = threading.Event()
        self._failure: NotReachable | VarlinkError | None = None
        self._lease: Held | None = None
        self._thread = threading.Thread(target=self._read, name="interlock-hold", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def first(self, limit_s: float) -> Held:
        """The confirmed lease."""
        if not self._answered.wait(limit_s):
            raise NotReachable(f"{self._path}: no lease within {limit_s:g} s")
        if self._lease is None:
            raise self._failure or NotReachable(f"{self._path}: the hold ended without a lease")
        return self._lease

    @property
    def lease_id(self) -> str | None:
        return self._lease.lease_id if self._lease else None

    @property
    def is_alive(self) -> bool:
        return self._lease is not None and not self._ended.is_set()

    def abandon(self) -> None:
        """Hang up at the next reply; Release has ended the stream at once where the HAL answers."""
        self._abandoned.set()

    def _read(self) -> None:
        try:
            with Client(self._path, timeout_s=HOLD_LIMIT_S) as client:
                parameters = {"purpose": self._purpose, "ttl_ms": HOLD_TTL_MS}
                for reply in client.more(f"{INTERLOCK}.Hold", parameters, timeout_s=HOLD_LIMIT_S):
                    self._lease = _held(reply["lease"])
                    self._answered.set()
                    if self._abandoned.is_set():
                        return
        except (NotReachable, VarlinkError) as err:
            self._failure = err
            if not self._abandoned.is_set():
                logger.warning("lease ended: %s", err)
        finally:
            self._ended.set()
            self._answered.set()


class HalView:
    """Port InjectorView: an injection makes a transfer wait, an unreachable HAL does not."""

    def __init__(self, monitor_socket: Path, *, clock: Clock) -> None:
        self._monitor = monitor_socket
        self._clock = clock
        self._again_s = float("-inf")

    def is_injecting(self) -> bool:
        if self._clock.boottime_s() < self._again_s:
            return False
        snapshot = _snapshot(self._monitor, VIEW_LIMIT_S)
        if snapshot is None:
            # A dead HAL must not cost a second of every second of the transfer.
            self._again_s = self._clock.boottime_s() + UNREACHABLE_PAUSE_S
            return False
        return str(snapshot["state"]["value"]).upper() == "INJECTING"


def _snapshot(path: Path, limit_s: float) -> dict[str, Any] | None:
    try:
        with Client(path, timeout_s=limit_s) as client:
            snapshot: dict[str, Any] = client.call(f"{INJECTOR}.GetSnapshot")["snapshot"]
    except (NotReachable, VarlinkError) as err:
        logger.info("no snapshot of the injector: %s", err)
        return None
    return snapshot


def _sample_number(snapshot: Mapping[str, Any] | None) -> int | None:
    if snapshot is None or snapshot["sample"]["quality"] not in ("valid", "questionable"):
        return None
    value = snapshot["sample"]["value"]
    return value if isinstance(value, int) else None


def _held(lease: Mapping[str, Any]) -> Held:
    return Held(
        lease_id=str(lease["lease_id"]),
        sealed=lease["sealed"] is True,
        from_previous_boot=lease["from_previous_boot"] is True,
    )


def _denied(what: str, err: VarlinkError) -> InterlockError:
    """The HAL's own words for a refusal."""
    reasons = err.parameters.get("reasons")
    if isinstance(reasons, list) and reasons:
        return InterlockError(
            f"{what}: denied: {', '.join(map(str, reasons))}", reasons=tuple(map(str, reasons))
        )
    short = err.name.rpartition(".")[2]
    named = {"Busy": "firmware-busy", "LeaseLost": "lease-lost"}.get(short, UNREACHABLE)
    return InterlockError(f"{what}: {err}", reasons=(named,))
