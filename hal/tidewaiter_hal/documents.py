"""Model values as the dictionaries of the Varlink interfaces. Pure; the interface files are the contract."""

from collections.abc import Callable, Sequence
from typing import Any

from tidewaiter_core.clock import Clock, format_utc

from tidewaiter_hal.interlock import Decision
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
    SelfTest,
    Snapshot,
    State,
)


def reading_out(
    reading: Reading[Any], now_s: float, show: Callable[[Any], Any] = lambda value: value
) -> dict[str, Any]:
    """Value, quality and age of a reading; `show` says how the value looks."""
    return {
        "value": None if reading.value is None else show(reading.value),
        "quality": reading.quality.value,
        "age_ms": None if reading.taken_s is None else max(0, int((now_s - reading.taken_s) * 1000)),
    }


def snapshot_out(snapshot: Snapshot, clock: Clock) -> dict[str, Any]:
    """Snapshot as in the interface."""
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
        "state": reading_out(snapshot.state, now_s, _state_name),
        "mode": reading_out(snapshot.mode, now_s, _mode_name),
        **{name: reading_out(getattr(snapshot, name), now_s) for name in numbers},
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
        "lease": lease_out(snapshot.lease) if snapshot.lease else None,
        "findings": list(snapshot.findings),
        "taken_utc": format_utc(clock.now_utc()),
    }


def _state_name(state: State) -> str:
    return state.name.lower()


def _mode_name(mode: Mode) -> str:
    return mode.name.lower()


def identity_out(identity: Identity) -> dict[str, Any]:
    """Identity as in the interface."""
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


def capabilities_out(capabilities: Capabilities) -> dict[str, Any]:
    """Capabilities as in the interface."""
    return {
        "class": capabilities.device_class,
        "channels": capabilities.channels,
        "pressure_limit_kpa": capabilities.pressure_limit_kpa,
        "max_flow_ul_per_s": capabilities.max_flow_ul_per_s,
        "features": sorted(capabilities.features),
        "generation": capabilities.generation.value,
    }


def decision_out(decision: Decision) -> dict[str, Any]:
    """Decision as in the interface."""
    return {
        "allow": decision.allow,
        "purpose": decision.purpose.value,
        "reasons": list(decision.reasons),
        "evidence": dict(decision.evidence),
        "ttl_ms": decision.ttl_ms,
    }


def lease_out(lease: Lease) -> dict[str, Any]:
    """Lease as in the interface."""
    return {
        "lease_id": lease.lease_id,
        "purpose": lease.purpose,
        "sealed": lease.sealed,
        "remaining_ms": lease.remaining_ms,
        "from_previous_boot": lease.from_previous_boot,
    }


def event_out(event: Event) -> dict[str, Any]:
    """Event as in the interface."""
    return {"seq": event.seq, "kind": event.kind, "detail": dict(event.detail)}


def fault_out(entry: Fault) -> dict[str, Any]:
    """Fault as in the interface."""
    names: Sequence[str] = ("seq", "boot_id", "ms", "code", "severity", "board", "argument")
    return {name: getattr(entry, name) for name in names}


def injection_out(entry: InjectionSummary) -> dict[str, Any]:
    """Injection as in the interface."""
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


def cursor_out(cursor: Cursor | None) -> dict[str, Any] | None:
    """Cursor as in the interface."""
    if cursor is None:
        return None
    return {"serial": cursor.serial, "log_id": cursor.log_id, "seq": cursor.seq}


def self_test_out(result: SelfTest) -> dict[str, Any]:
    """SelfTest."""
    return {"result": result.result, "at_ms": result.at_ms}
