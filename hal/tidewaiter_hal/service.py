"""The two Varlink services of the HAL (hal-and-hil.md 6.3): what may be read, and who may ask for the lease.

Only here do model values become dictionaries; the interface files are the contract, checked both ways by core.varlink.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from tidewaiter_core.audit import Actor
from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.varlink import Call, Handler, VarlinkError

from tidewaiter_hal.errors import (
    BadCursorError,
    DeniedError,
    LeaseBusyError,
    LeaseLostError,
    LinkDownError,
    NotSupportedError,
    UnknownReadingError,
)
from tidewaiter_hal.interlock import Decision, Purpose
from tidewaiter_hal.lease import TTL_MAX_MS, TTL_MIN_MS, LeaseKeeper
from tidewaiter_hal.model import (
    Capabilities,
    Cursor,
    Event,
    Fault,
    Identity,
    InjectionSummary,
    Lease,
    Mode,
    Reading,
    Snapshot,
    State,
)
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
        return _snapshot(view.snapshot(), clock)

    def get_identity(call: Call) -> dict[str, Any]:
        return {"identity": _identity(_known(view.identity(), view))}

    def get_capabilities(call: Call) -> dict[str, Any]:
        return {"capabilities": _capabilities(_known(view.capabilities(), view))}

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
                    yield {"snapshot": snapshot(), "events": [_event(event) for event in events]}

    def list_faults(call: Call) -> dict[str, Any]:
        faults, after = view.faults(_cursor(call.parameters["after"]), call.parameters["limit"])
        return {"faults": [_fault(entry) for entry in faults], "next": _cursor_out(after)}

    def list_injections(call: Call) -> dict[str, Any]:
        entries, after = view.injections(_cursor(call.parameters["after"]), call.parameters["limit"])
        return {"injections": [_injection(entry) for entry in entries], "next": _cursor_out(after)}

    def get_self_test(call: Call) -> dict[str, Any]:
        result = view.self_test_result()
        return {"self_test": {"result": result.result, "at_ms": result.at_ms}}

    def check_interlock(call: Call) -> dict[str, Any]:
        return {"decision": _decision(keeper.check(_purpose(call)))}

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
        return {"decision": _decision(keeper.check(_purpose(call), is_holder=True))}

    def hold(call: Call) -> Iterator[dict[str, Any]]:
        purpose, ttl_ms = _purpose(call), _milliseconds(call, "ttl_ms")
        leases = keeper.hold(purpose, ttl_ms, actor=_actor(call), wait_closed=call.wait_closed)
        try:
            for lease in leases:
                yield {"lease": _lease(lease)}
        except _TRANSLATED as err:
            raise _translate(err, INTERLOCK) from err
        finally:
            leases.close()

    def seal(call: Call) -> dict[str, Any]:
        budget_ms = _milliseconds(call, "budget_ms")
        return {"lease": _lease(keeper.seal(call.parameters["lease_id"], budget_ms, actor=_actor(call)))}

    def release(call: Call) -> dict[str, Any]:
        keeper.release(call.parameters["lease_id"])
        return {}

    def get_lease(call: Call) -> dict[str, Any]:
        lease = keeper.current()
        return {"lease": _lease(lease) if lease else None}

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


# Values


def _reading(
    reading: Reading[Any], now_s: float, show: Callable[[Any], Any] = lambda value: value
) -> dict[str, Any]:
    return {
        "value": None if reading.value is None else show(reading.value),
        "quality": reading.quality.value,
        "age_ms": None if reading.taken_s is None else max(0, int((now_s - reading.taken_s) * 1000)),
    }


def _snapshot(snapshot: Snapshot, clock: Clock) -> dict[str, Any]:
    now_s = clock.boottime_s()
    numbers = (
        "lockouts",
        "pressure_kpa",
        "moving",
        "since_injection_s",
        "alarm_priority",
        "power",
        "scanner",
        "uptime_ms",
        "sample",
    )
    counters = snapshot.counters
    return {
        "link": snapshot.link.value,
        "link_reason": snapshot.link_reason,
        "driver": snapshot.driver,
        "identity_key": snapshot.identity_key,
        "boot_id": snapshot.boot_id,
        "state": _reading(snapshot.state, now_s, _state_name),
        "mode": _reading(snapshot.mode, now_s, _mode_name),
        **{name: _reading(getattr(snapshot, name), now_s) for name in numbers},
        "flow_ul_per_s": list(snapshot.flow_ul_per_s.value or ()),
        "delivered_ul": list(snapshot.delivered_ul.value or ()),
        "generation": snapshot.generation.value,
        "counters": {
            "crc_errors": counters.crc_errors,
            "timeouts": counters.timeouts,
            "stale_replies": counters.stale_replies,
            "resyncs": counters.resyncs,
            "flood_bytes": counters.flood_bytes,
            "dropped_events": counters.dropped_events,
        },
        "lease": _lease(snapshot.lease) if snapshot.lease else None,
        "findings": list(snapshot.findings),
        "taken_utc": format_utc(clock.now_utc()),
    }


def _state_name(state: State) -> str:
    return state.name.lower()


def _mode_name(mode: Mode) -> str:
    return mode.name.lower()


def _identity(identity: Identity) -> dict[str, Any]:
    return {
        "vendor": identity.vendor,
        "model": identity.model,
        "serial": identity.serial,
        "hardware": identity.hardware,
        "protocol": list(identity.protocol),
        "boot_counter": identity.boot_counter,
        "reset_reason": identity.reset_reason,
        "log_id": identity.log_id,
        "firmware": [
            {"board": board.board, "version": board.version, "sha256": board.sha256, "image": board.image}
            for board in identity.firmware
        ],
    }


def _capabilities(capabilities: Capabilities) -> dict[str, Any]:
    return {
        "class": capabilities.device_class,
        "channels": capabilities.channels,
        "pressure_limit_kpa": capabilities.pressure_limit_kpa,
        "max_flow_ul_per_s": capabilities.max_flow_ul_per_s,
        "features": sorted(capabilities.features),
        "generation": capabilities.generation.value,
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "allow": decision.allow,
        "purpose": decision.purpose.value,
        "reasons": list(decision.reasons),
        "evidence": dict(decision.evidence),
        "ttl_ms": decision.ttl_ms,
    }


def _lease(lease: Lease) -> dict[str, Any]:
    return {
        "lease_id": lease.lease_id,
        "purpose": lease.purpose,
        "sealed": lease.sealed,
        "remaining_ms": lease.remaining_ms,
        "from_previous_boot": lease.from_previous_boot,
    }


def _event(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "kind": event.kind, "detail": dict(event.detail)}


def _fault(entry: Fault) -> dict[str, Any]:
    names: Sequence[str] = ("seq", "boot_id", "ms", "code", "severity", "board", "argument")
    return {name: getattr(entry, name) for name in names}


def _injection(entry: InjectionSummary) -> dict[str, Any]:
    names: Sequence[str] = (
        "seq",
        "boot_id",
        "start_ms",
        "protocol_id",
        "channel",
        "planned_ul",
        "delivered_ul",
        "peak_ul_per_s",
        "peak_kpa",
        "duration_ms",
        "end",
    )
    return {name: getattr(entry, name) for name in names}


def _cursor_out(cursor: Cursor | None) -> dict[str, Any] | None:
    if cursor is None:
        return None
    return {"serial": cursor.serial, "log_id": cursor.log_id, "seq": cursor.seq}
