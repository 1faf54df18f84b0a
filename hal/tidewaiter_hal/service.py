"""The two Varlink services of the HAL (hal-and-hil.md 6.3): what may be read, and who may ask for the lease.

Only here do model values become dictionaries; the interface files are the contract, checked both ways by core.varlink.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar

from tidewaiter_core.audit import Actor
from tidewaiter_core.clock import Clock
from tidewaiter_core.varlink import Call, Handler, VarlinkError

from tidewaiter_hal.documents import (
    capabilities_out,
    cursor_out,
    decision_out,
    event_out,
    fault_out,
    identity_out,
    injection_out,
    lease_out,
    self_test_out,
    snapshot_out,
)
from tidewaiter_hal.errors import (
    BadCursorError,
    DeniedError,
    LeaseBusyError,
    LeaseLostError,
    LinkDownError,
    NotSupportedError,
    UnknownReadingError,
)
from tidewaiter_hal.interlock import Purpose
from tidewaiter_hal.lease import TTL_MAX_MS, TTL_MIN_MS, LeaseKeeper
from tidewaiter_hal.model import Cursor
from tidewaiter_hal.view import InjectorView

INJECTOR: Final = "io.tidewaiter.Injector"
INTERLOCK: Final = "io.tidewaiter.Interlock"
WATCH_IDLE_S: Final = 10.0
_WATCH_LOOK_S: Final = 0.5
_INVALID: Final = "org.varlink.service.InvalidParameter"
T = TypeVar("T")


def monitor_interfaces(
    view: InjectorView, keeper: LeaseKeeper, clock: Clock
) -> Mapping[str, Mapping[str, Handler]]:
    """Handlers of monitor.sock: read only."""

    def snapshot() -> dict[str, Any]:
        return snapshot_out(view.snapshot(), clock)

    def get_identity(call: Call) -> dict[str, Any]:
        return {"identity": identity_out(_known(view.identity(), view))}

    def get_capabilities(call: Call) -> dict[str, Any]:
        return {"capabilities": capabilities_out(_known(view.capabilities(), view))}

    def get_snapshot(call: Call) -> dict[str, Any]:
        return {"snapshot": snapshot()}

    def watch(call: Call) -> Iterator[dict[str, Any]]:
        with view.subscribed() as subscription:
            yield {"snapshot": snapshot(), "events": []}
            sent_s = clock.boottime_s()
            while not call.closed():
                events = subscription.take(_WATCH_LOOK_S)
                if events or clock.boottime_s() - sent_s >= WATCH_IDLE_S:
                    sent_s = clock.boottime_s()
                    yield {"snapshot": snapshot(), "events": [event_out(event) for event in events]}

    def list_faults(call: Call) -> dict[str, Any]:
        faults, after = view.faults(_cursor(call.parameters["after"]), call.parameters["limit"])
        return {"faults": [fault_out(entry) for entry in faults], "next": cursor_out(after)}

    def list_injections(call: Call) -> dict[str, Any]:
        entries, after = view.injections(_cursor(call.parameters["after"]), call.parameters["limit"])
        return {"injections": [injection_out(entry) for entry in entries], "next": cursor_out(after)}

    def get_self_test(call: Call) -> dict[str, Any]:
        return {"self_test": self_test_out(view.self_test_result())}

    def check_interlock(call: Call) -> dict[str, Any]:
        return {"decision": decision_out(keeper.check(_purpose(call)))}

    handlers: dict[str, Handler] = {
        "GetIdentity": get_identity,
        "GetCapabilities": get_capabilities,
        "GetSnapshot": get_snapshot,
        "ListFaults": list_faults,
        "ListInjections": list_injections,
        "GetSelfTest": get_self_test,
        "CheckInterlock": check_interlock,
    }
    named = {name: _translated(handler, INJECTOR) for name, handler in handlers.items()}
    return {INJECTOR: {**named, "Watch": watch}}


def control_interfaces(keeper: LeaseKeeper) -> Mapping[str, Mapping[str, Handler]]:
    """Handlers of control.sock: the updater's user only."""

    def check(call: Call) -> dict[str, Any]:
        # Whoever may use this socket is the one a held lease belongs to.
        return {"decision": decision_out(keeper.check(_purpose(call), is_holder=True))}

    def hold(call: Call) -> Iterator[dict[str, Any]]:
        purpose, ttl_ms = _purpose(call), _milliseconds(call, "ttl_ms")
        leases = keeper.hold(purpose, ttl_ms, actor=_actor(call), wait_closed=call.wait_closed)
        try:
            for lease in leases:
                yield {"lease": lease_out(lease)}
        except _TRANSLATED as err:
            raise _translate(err, INTERLOCK) from err
        finally:
            leases.close()

    def seal(call: Call) -> dict[str, Any]:
        budget_ms = _milliseconds(call, "budget_ms")
        return {"lease": lease_out(keeper.seal(call.parameters["lease_id"], budget_ms, actor=_actor(call)))}

    def release(call: Call) -> dict[str, Any]:
        keeper.release(call.parameters["lease_id"])
        return {}

    def get_lease(call: Call) -> dict[str, Any]:
        lease = keeper.current()
        return {"lease": lease_out(lease) if lease else None}

    handlers: dict[str, Handler] = {"Check": check, "Seal": seal, "Release": release, "GetLease": get_lease}
    named = {name: _translated(handler, INTERLOCK) for name, handler in handlers.items()}
    return {INTERLOCK: {**named, "Hold": hold}}


# Errors

_TRANSLATED: Final = (
    DeniedError,
    LeaseLostError,
    LeaseBusyError,
    NotSupportedError,
    LinkDownError,
    BadCursorError,
    UnknownReadingError,
)


def _translated(handler: Handler, interface: str) -> Handler:
    def call_it(call: Call) -> Any:
        try:
            return handler(call)
        except _TRANSLATED as err:
            raise _translate(err, interface) from err

    return call_it


def _translate(err: Exception, interface: str) -> Exception:
    """The interface's own error for `err`; one it has no error for stays what it is."""
    match err:
        case DeniedError(reasons=reasons) if interface == INTERLOCK:
            return VarlinkError(f"{interface}.Denied", {"reasons": list(reasons)})
        case LeaseLostError() if interface == INTERLOCK:
            return VarlinkError(f"{interface}.LeaseLost", {"why": str(err)})
        case LeaseBusyError() if interface == INTERLOCK:
            return VarlinkError(f"{interface}.Busy", {"holder": str(err)})
        case NotSupportedError():
            return VarlinkError(f"{interface}.Unsupported", {"what": str(err)})
        case LinkDownError() if interface == INJECTOR:
            return VarlinkError(f"{interface}.LinkDown", {"reason": str(err)})
        case BadCursorError() if interface == INJECTOR:
            return VarlinkError(f"{interface}.BadCursor", {"detail": str(err)})
        case UnknownReadingError(name=name, quality=quality) if interface == INJECTOR:
            return VarlinkError(f"{interface}.UnknownReading", {"name": name, "quality": str(quality)})
        case _:
            return err


def _known(value: T | None, view: InjectorView) -> T:
    if value is None:
        snapshot = view.snapshot()
        raise LinkDownError(
            f"injector link is {snapshot.link} ({snapshot.link_reason}); it was never identified"
        )
    return value


# Parameters


def _purpose(call: Call) -> Purpose:
    try:
        return Purpose(call.parameters["purpose"])
    except ValueError as err:
        raise VarlinkError(_INVALID, {"parameter": "purpose"}) from err


def _milliseconds(call: Call, name: str) -> int:
    value: int = call.parameters[name]
    if not TTL_MIN_MS <= value <= TTL_MAX_MS:
        raise VarlinkError(_INVALID, {"parameter": name})
    return value


def _actor(call: Call) -> Actor:
    return Actor(kind="component", id=f"uid:{call.peer.uid}")


def _cursor(value: dict[str, Any] | None) -> Cursor | None:
    return None if value is None else Cursor(serial=value["serial"], log_id=value["log_id"], seq=value["seq"])
