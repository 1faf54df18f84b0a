"""The values of the HAL: what is known of the injector, how well, and since when. Frozen and without I/O.

Vocabulary: CiA 425 for modes and lockouts, IEEE 11073 for validity (hal-and-hil.md 2). Units are those of the
wire: uL, uL/s, kPa, um, 0.1 degree C, ms. Unknown is never zero: there is no default value anywhere.
"""

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Generic, TypeVar

from tidewaiter_hal.errors import UnknownReadingError

T = TypeVar("T")

STALE_AFTER_S: Final = 1.5
INVALID_AFTER_S: Final = 10.0
ALL_LOCKOUTS: Final = 15
"""Arm (1), start (2), resume (4) and protocol (8): what a held lease must show."""


class Quality(StrEnum):
    """How far a reading may be believed."""

    VALID = "valid"
    QUESTIONABLE = "questionable"
    STALE = "stale"
    INVALID = "invalid"
    NA = "na"


class Generation(StrEnum):
    """Where values come from. Test and demo never satisfy the interlock of a real device."""

    REAL = "real"
    TEST = "test"
    DEMO = "demo"
    UNKNOWN = "unknown"


class State(IntEnum):
    """The injector's state; numbers are wire values, 0 and 1 exist on the host side only."""

    UNKNOWN = 0
    OFF = 1
    BOOTING = 2
    SELF_TEST = 3
    IDLE = 4
    LOADING = 5
    PURGING = 6
    READY = 7
    ARMED = 8
    INJECTING = 9
    HOLD = 10
    COMPLETE = 11
    ABORTED = 12
    FAULT = 13
    SERVICE = 14
    UPDATING = 15
    SAFE = 16

    @classmethod
    def from_wire(cls, number: int) -> "State":
        """A number nobody knows becomes UNKNOWN: never an exception, never the previous state."""
        return cls(number) if cls.BOOTING <= number <= cls.SAFE else cls.UNKNOWN


BUSY_STATES: Final = frozenset(
    {State.LOADING, State.PURGING, State.READY, State.ARMED, State.INJECTING, State.HOLD}
)
"""LOADING..HOLD: polled faster."""


class Mode(IntEnum):
    """Role towards the scanner."""

    MONITOR = 0
    TRACKING = 1
    CONTROL = 2


class LinkState(StrEnum):
    """The connection, hal-and-hil.md 4.4."""

    CLOSED = "closed"
    OPENING = "opening"
    SYNCING = "syncing"
    UP = "up"
    DEGRADED = "degraded"
    DOWN = "down"
    INCOMPATIBLE = "incompatible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Generic[T]):
    """One value with its quality and age."""

    value: T | None
    """None exactly when the quality is INVALID or NA."""
    quality: Quality
    taken_s: float | None
    """CLOCK_BOOTTIME of the request minus the device's own sample age; None when nothing was ever read."""
    device_seq: int | None
    generation: Generation

    def require(self, name: str) -> T:
        """The value, if it is known and fresh.

        Raises:
            UnknownReadingError: The quality is anything but VALID.
        """
        if self.value is None or self.quality is not Quality.VALID:
            raise UnknownReadingError(name, self.quality)
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One firmware image inside the injector."""

    board: str
    version: str
    sha256: str | None
    image: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who the injector says it is."""

    protocol: tuple[int, int]
    vendor: str
    model: str
    serial: str
    hardware: str | None
    bootloader: str | None
    boot_id: int
    boot_counter: int
    reset_reason: int
    log_id: int
    firmware: tuple[Board, ...]

    @property
    def key(self) -> str:
        """What capabilities are cached by: the device and every firmware in it."""
        return "/".join(
            [self.serial, *(f"{board.board}={board.sha256 or board.version}" for board in self.firmware)]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the injector can do and what it is."""

    device_class: int
    channels: int
    pressure_limit_kpa: int
    max_flow_ul_per_s: int
    features: frozenset[str]
    generation: Generation


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSample:
    """One atomic copy of the injector's safety-relevant state, as it came over the wire.

    A field that is None is supported but unknown to the device; a key outside `present` is not supported.
    """

    taken_s: float
    boot_id: int
    uptime_ms: int
    sample: int
    state: State
    mode: int
    lockouts: int
    pressure_kpa: int | None
    flow_ul_per_s: tuple[int, ...]
    delivered_ul: tuple[int, ...]
    moving: bool
    since_injection_s: int | None
    """None: no injection since the injector booted."""
    alarm_priority: int
    alarm_changes: int
    fault_head: int
    injection_head: int
    event_head: int
    power: int
    scanner: int
    lease_active: bool | None
    lease_left_ms: int | None
    service_consent_s: int | None
    present: frozenset[str]
    unknown_enums: frozenset[str] = frozenset()
    """Wire keys whose number this host does not know (P8)."""


def sample_distance(newer: int, older: int) -> int:
    """How far sample counter `newer` is ahead of `older`, modulo 2^32; negative when it is behind."""
    distance = (newer - older) & 0xFFFFFFFF
    return distance if distance < 1 << 31 else distance - (1 << 32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """One piston with its syringe."""

    channel: int
    fluid: int
    capacity_ul: int
    remaining_ul: int | None
    plunger_um: int | None
    plunger_max_um: int
    syringe_code: int
    loaded: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelList:
    """All channels, in one answer."""

    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """One entry of the alarm list. The product never acknowledges, silences or resets one."""

    code: int
    kind: int
    priority: int
    activation: int
    signal: int
    since_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """The injector's own last self-test; starting one is not in the protocol."""

    result: str
    at_ms: int | None
    steps: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCounters:
    """Service counters of the injector; absent ones are not listed."""

    values: tuple[tuple[str, int], ...]


class Log(StrEnum):
    """The three logs kept by the injector."""

    FAULTS = "faults"
    INJECTIONS = "injections"
    EVENTS = "events"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One entry of the fault log."""

    seq: int
    boot_id: int
    ms: int
    utc_s: int | None
    code: int
    severity: int
    board: int
    argument: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectionSummary:
    """One entry of the injection log. Holds no patient data: the protocol is a number."""

    seq: int
    boot_id: int
    start_ms: int
    utc_s: int | None
    protocol_id: int
    channel: int
    planned_ul: int
    delivered_ul: int
    peak_ul_per_s: int
    peak_kpa: int
    duration_ms: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvent:
    """One entry of the event log.

    Kinds: 1 state, 2 alarm, 3 lease, 4 boot, 5 scanner, 6 consumable, 7 mode, 8 configuration.
    """

    seq: int
    boot_id: int
    ms: int
    kind: int
    a: int
    b: int


LogEntry = Fault | InjectionSummary | DeviceEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """A position in one log of one device."""

    serial: str
    log_id: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """A reply to a log question, checked: ascending, all after `after`."""

    log: Log
    log_id: int
    after: int
    first: int
    head: int
    entries: tuple[LogEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseReply:
    """What the injector answered to a lease command."""

    command: str
    sample: int | None
    left_ms: int | None
    active: bool | None
    token_sha256: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineCounters:
    """How the line behaves; counted since the process started."""

    crc_errors: int
    timeouts: int
    stale_replies: int
    resyncs: int
    flood_bytes: int
    dropped_events: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The inhibit lease as the rest of the product sees it; `lease_id` is a handle, not the injector's token."""

    lease_id: str
    purpose: str
    sealed: bool
    remaining_ms: int
    from_previous_boot: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something happened.

    Kinds: StateChanged, AlarmChanged, LinkChanged, BootSeen, FaultLogged, LogGap, LeaseChanged, Implausible,
    GateRefused, EventsDropped.
    """

    seq: int
    kind: str
    detail: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything known now. Every measured field is a Reading."""

    link: LinkState
    link_reason: str
    driver: str | None
    identity_key: str | None
    boot_id: int | None
    state: Reading[State]
    mode: Reading[Mode]
    lockouts: Reading[int]
    pressure_kpa: Reading[int]
    moving: Reading[bool]
    since_injection_s: Reading[int]
    alarm_priority: Reading[int]
    power: Reading[int]
    scanner: Reading[int]
    flow_ul_per_s: Reading[tuple[int, ...]]
    delivered_ul: Reading[tuple[int, ...]]
    uptime_ms: Reading[int]
    sample: Reading[int]
    generation: Generation
    channels: tuple[Channel, ...]
    counters: LineCounters
    findings: tuple[str, ...]
    """Plausibility rules that fired in the last 60 s."""
    lease: Lease | None
