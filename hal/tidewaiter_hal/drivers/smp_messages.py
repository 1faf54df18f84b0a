"""Bodies of the injector groups (hal-and-hil.md 8.3-8.8): decoded maps in, model values out. Pure.

Unknown keys and longer entries are ignored (a newer minor version); a missing required key or a value of
another type makes the whole body invalid. Nothing is guessed.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from tidewaiter_hal.cbor import Value
from tidewaiter_hal.injector import AlarmList
from tidewaiter_hal.model import (
    Alarm,
    Board,
    Capabilities,
    Channel,
    ChannelList,
    DeviceCounters,
    DeviceEvent,
    Fault,
    Generation,
    Identity,
    InjectionSummary,
    LeaseReply,
    Log,
    LogEntry,
    LogPage,
    Mode,
    SelfTest,
    State,
    StateSample,
)

Body = dict[str, Value]
_U8, _U16, _U32, _U64 = 0xFF, 0xFFFF, 0xFFFFFFFF, (1 << 64) - 1
_GENERATIONS = {0: Generation.REAL, 1: Generation.TEST, 2: Generation.DEMO}
_SELF_TEST = {0: "never", 1: "pass", 2: "fail", 3: "running"}
_KNOWN_LIMIT = {"md": max(Mode), "al": 3, "pw": 3, "sc": 2}
_MEMBERSHIP_KEYS = frozenset({"pk", "fl", "vd", "ls", "sv"})


class BodyError(ValueError):
    """A body that cannot be believed. Stays inside the driver: counted, retried."""


def _number(value: Value, limit: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise BodyError(f"not an integer of 0..{limit}")
    return value


def _u(body: Body, key: str, limit: int = _U32) -> int:
    if key not in body:
        raise BodyError(f"required key {key} is missing")
    return _number(body[key], limit)


def _maybe_u(value: Value, limit: int = _U32) -> int | None:
    return None if value is None else _number(value, limit)


def _flag(body: Body, key: str) -> bool:
    value = body.get(key)
    if not isinstance(value, bool):
        raise BodyError(f"required key {key} is missing or no truth value")
    return value


def _text(value: Value, limit: int = 32) -> str:
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise BodyError("not a short printable text")
    return value


def _items(value: Value) -> list[Value]:
    if not isinstance(value, list):
        raise BodyError("not a list")
    return value


def _rows(value: Value, width: int) -> list[list[Value]]:
    """Entries of at least `width` elements; newer minor versions append."""
    rows = [_items(item) for item in _items(value)]
    if any(len(row) < width for row in rows):
        raise BodyError(f"an entry has less than {width} elements")
    return rows


def _boot_id(body: Body) -> int:
    boot_id = _u(body, "bo")
    if boot_id == 0:
        raise BodyError("boot id 0")
    _u(body, "ms", _U64)
    return boot_id


def protocol_version(body: Body) -> tuple[int, int]:
    """Major and minor; read before anything else of an identity is believed."""
    version = _items(body.get("pv"))
    if len(version) < 2:
        raise BodyError("protocol version is incomplete")
    return _number(version[0], _U16), _number(version[1], _U16)


def identity(body: Body) -> Identity:
    """Command 0."""
    optional = {key: _text(body[key]) if body.get(key) is not None else None for key in ("hw", "bl")}
    return Identity(
        protocol=protocol_version(body),
        vendor=_text(body.get("vn")),
        model=_text(body.get("md")),
        serial=_text(body.get("sn")),
        hardware=optional["hw"],
        bootloader=optional["bl"],
        boot_id=_boot_id(body),
        boot_counter=_u(body, "bc"),
        reset_reason=_u(body, "rr", _U8),
        log_id=_u(body, "lg"),
        firmware=tuple(_board(row) for row in _rows(body.get("fw"), 4)),
    )


def _board(row: list[Value]) -> Board:
    digest = row[2]
    if digest is not None and (not isinstance(digest, bytes) or len(digest) != 32):
        raise BodyError("firmware hash is not 32 bytes")
    return Board(
        board=_text(row[0]),
        version=_text(row[1]),
        sha256=None if digest is None else digest.hex(),
        image=_maybe_u(row[3], _U8),
    )


def state(body: Body, sent_s: float) -> StateSample:
    """Command 1. `sent_s` is when the request was sent: the conservative side of the age."""
    number = _u(body, "st", _U8)
    lease = None if body.get("ls") is None else _items(body["ls"])
    if lease is not None and len(lease) < 2:
        raise BodyError("lease entry is incomplete")
    unknown = {key for key, limit in _KNOWN_LIMIT.items() if _u(body, key, _U8) > limit}
    if State.from_wire(number) is State.UNKNOWN:
        unknown.add("st")
    if "id" not in body:
        raise BodyError("required key id is missing")
    return StateSample(
        taken_s=sent_s - _u(body, "ag", _U16) / 1000,
        boot_id=_boot_id(body),
        uptime_ms=_u(body, "ms", _U64),
        sample=_u(body, "n"),
        state=State.from_wire(number),
        mode=_u(body, "md", _U8),
        lockouts=_u(body, "lk", _U8),
        pressure_kpa=_pressure(body),
        flow_ul_per_s=tuple(_number(item, _U32) for item in _items(body.get("fl") or [])),
        delivered_ul=tuple(_number(item, _U32) for item in _items(body.get("vd") or [])),
        moving=_flag(body, "mv"),
        since_injection_s=_maybe_u(body["id"]),
        alarm_priority=_u(body, "al", _U8),
        alarm_changes=_u(body, "ac"),
        fault_head=_u(body, "fc"),
        injection_head=_u(body, "ic"),
        event_head=_u(body, "ec"),
        power=_u(body, "pw", _U8),
        scanner=_u(body, "sc", _U8),
        lease_active=None if lease is None else _number(lease[0], _U8) != 0,
        lease_left_ms=None if lease is None else _number(lease[1], _U32),
        service_consent_s=_maybe_u(body.get("sv"), _U16),
        present=frozenset(_MEMBERSHIP_KEYS & body.keys()),
        unknown_enums=frozenset(unknown),
    )


def _pressure(body: Body) -> int | None:
    value = body.get("pk")
    if value is None:
        return None
    # A sensor may read a little under ambient, so this one number is signed.
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _U32:
        raise BodyError("pressure is not an integer")
    return value


def capabilities(body: Body) -> Capabilities:
    """Command 2. A generation number nobody knows is not REAL."""
    return Capabilities(
        device_class=_u(body, "cl", _U8),
        channels=_u(body, "nc", _U8),
        pressure_limit_kpa=_u(body, "pl"),
        max_flow_ul_per_s=_u(body, "fm"),
        features=frozenset(_text(item) for item in _items(body.get("ft"))),
        generation=_GENERATIONS.get(_u(body, "gn", _U8), Generation.UNKNOWN),
    )


def channels(body: Body) -> ChannelList:
    """Command 3."""
    return ChannelList(channels=tuple(_channel(row) for row in _rows(body.get("ch"), 8)))


def _channel(row: list[Value]) -> Channel:
    if not isinstance(row[7], bool):
        raise BodyError("channel loaded is no truth value")
    return Channel(
        channel=_number(row[0], _U8),
        fluid=_number(row[1], _U8),
        capacity_ul=_number(row[2], _U32),
        remaining_ul=_maybe_u(row[3]),
        plunger_um=_maybe_u(row[4]),
        plunger_max_um=_number(row[5], _U32),
        syringe_code=_number(row[6], _U16),
        loaded=row[7],
    )


def alarms(body: Body) -> AlarmList:
    """Command 4."""
    entries = tuple(
        Alarm(
            code=_number(row[0], _U16),
            kind=_number(row[1], _U8),
            priority=_number(row[2], _U8),
            activation=_number(row[3], _U8),
            signal=_number(row[4], _U8),
            since_ms=_number(row[5], _U64),
        )
        for row in _rows(body.get("e"), 6)
    )
    return AlarmList(changes=_u(body, "ac"), alarms=entries, more=_flag(body, "mo"))


def self_test(body: Body) -> SelfTest:
    """Command 7."""
    return SelfTest(
        result=_SELF_TEST.get(_u(body, "rs", _U8), "unknown"),
        at_ms=_maybe_u(body.get("at"), _U64),
        steps=tuple((_number(row[0], _U16), _number(row[1], _U8)) for row in _rows(body.get("e") or [], 2)),
    )


def counters(body: Body) -> DeviceCounters:
    """Command 8; only keys this host knows, only where the device gave a number."""
    names = ("in", "hr", "pc", "wd", "re", "dr", "tc")
    found = [(name, body[name]) for name in names if name in body]
    return DeviceCounters(
        values=tuple(
            (name, value) for name, value in found if isinstance(value, int) and not isinstance(value, bool)
        )
    )


def log_page(log: Log, body: Body) -> LogPage:
    """Commands 5, 6 and 9: entries ascending and all after the cursor, or the page is invalid."""
    parse, width = _LOG_ENTRIES[log]
    entries = tuple(parse(row) for row in _rows(body.get("e"), width))
    after = _u(body, "from")
    numbers = [after, *(entry.seq for entry in entries)]
    if any(later <= earlier for earlier, later in pairwise(numbers)):
        raise BodyError("log entries are not ascending after the cursor")
    return LogPage(
        log=log,
        log_id=_u(body, "lg"),
        after=after,
        first=_u(body, "first"),
        head=_u(body, "head"),
        entries=entries,
    )


def _fault(row: Sequence[Value]) -> Fault:
    argument = row[7]
    if argument is not None and (isinstance(argument, bool) or not isinstance(argument, int)):
        raise BodyError("fault argument is no integer")
    return Fault(
        seq=_number(row[0], _U32),
        boot_id=_number(row[1], _U32),
        ms=_number(row[2], _U64),
        utc_s=_maybe_u(row[3], _U64),
        code=_number(row[4], _U16),
        severity=_number(row[5], _U8),
        board=_number(row[6], _U8),
        argument=argument,
    )


def _injection(row: Sequence[Value]) -> InjectionSummary:
    return InjectionSummary(
        seq=_number(row[0], _U32),
        boot_id=_number(row[1], _U32),
        start_ms=_number(row[2], _U64),
        utc_s=_maybe_u(row[3], _U64),
        protocol_id=_number(row[4], _U16),
        channel=_number(row[5], _U8),
        planned_ul=_number(row[6], _U32),
        delivered_ul=_number(row[7], _U32),
        peak_ul_per_s=_number(row[8], _U32),
        peak_kpa=_number(row[9], _U32),
        duration_ms=_number(row[10], _U32),
        end=_number(row[11], _U8),
    )


def _event(row: Sequence[Value]) -> DeviceEvent:
    return DeviceEvent(
        seq=_number(row[0], _U32),
        boot_id=_number(row[1], _U32),
        ms=_number(row[2], _U64),
        kind=_number(row[3], _U8),
        a=_number(row[4], _U32),
        b=_number(row[5], _U32),
    )


_LOG_ENTRIES: dict[Log, tuple[Callable[[Sequence[Value]], LogEntry], int]] = {
    Log.FAULTS: (_fault, 8),
    Log.INJECTIONS: (_injection, 12),
    Log.EVENTS: (_event, 6),
}


def lease_reply(command: str, body: Body) -> LeaseReply:
    """Replies of group 0x5458."""
    token = body.get("tk")
    return LeaseReply(
        command=command,
        sample=_maybe_u(body.get("n")),
        left_ms=_maybe_u(body.get("le")),
        active=_flag(body, "ac") if "ac" in body else None,
        token_sha256=token.hex() if isinstance(token, bytes) else None,
    )
