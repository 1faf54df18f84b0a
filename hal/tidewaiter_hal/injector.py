"""The ports of the HAL: what the product sees of an injector, and what a driver must offer. Pure.

`Injector` has no transmitting method; `Driver` has no way to reach the port. Both are on purpose (chapter 5).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from tidewaiter_hal.errors import DriverTableError
from tidewaiter_hal.model import (
    Alarm,
    Capabilities,
    ChannelList,
    Cursor,
    DeviceCounters,
    Fault,
    Identity,
    InjectionSummary,
    LeaseReply,
    Log,
    LogPage,
    SelfTest,
    Snapshot,
    StateSample,
)

if TYPE_CHECKING:
    from tidewaiter_hal.events import Subscription


class Injector(Protocol):
    """The injector as the rest of the product sees it. Nothing here transmits anything that moves a piston."""

    def identity(self) -> Identity | None: ...
    def capabilities(self) -> Capabilities | None: ...
    def snapshot(self) -> Snapshot: ...
    def faults(self, after: Cursor | None, limit: int) -> tuple[Sequence[Fault], Cursor | None]: ...
    def injections(
        self, after: Cursor | None, limit: int
    ) -> tuple[Sequence[InjectionSummary], Cursor | None]: ...
    def self_test_result(self) -> SelfTest: ...
    def subscribe(self) -> "Subscription": ...


class CommandKind(StrEnum):
    """What a command can do. A kind other than MONITOR needs a permit of that kind at the gate."""

    MONITOR = "monitor"
    RESTRICT = "restrict"
    UPDATE = "update"


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """Lets one kind of request through the gate. Made by `lease` (RESTRICT) and `firmware` (UPDATE) only."""

    kind: CommandKind
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A row of a driver's table: the only frames this driver can ever send."""

    name: str
    kind: CommandKind
    rule: Sequence[int]
    """The exact wire rule; for SMP (op, group, command)."""
    body_keys: Mapping[str, type]
    """Keys the request may carry, with their type; nothing else passes the gate."""
    side_effects: str
    """What asking changes in the device; empty is a promise that it changes nothing."""
    feeds_watchdog: bool
    timeout_s: float
    tries: int
    answer_limit_bytes: int


class CommandTable:
    """The rows of one driver, checked when the driver is imported."""

    def __init__(self, rows: Sequence[Command]) -> None:
        self._rows = {row.name: row for row in rows}
        if len(self._rows) != len(rows):
            raise DriverTableError("command table: a name occurs twice; the driver cannot be used")
        if len({tuple(row.rule) for row in rows}) != len(rows):
            raise DriverTableError("command table: a wire rule occurs twice; the driver cannot be used")
        for row in rows:
            if (
                not row.name
                or not row.rule
                or row.timeout_s <= 0
                or row.tries < 1
                or row.answer_limit_bytes < 1
            ):
                raise DriverTableError(
                    f"command table: row {row.name!r} is incomplete; the driver cannot be used"
                )

    def __getitem__(self, name: str) -> Command:
        return self._rows[name]

    def find(self, name: str) -> Command | None:
        """The row of that name, or None."""
        return self._rows.get(name)

    def rows(self) -> Sequence[Command]:
        """All rows in table order."""
        return tuple(self._rows.values())

    @property
    def with_side_effects(self) -> bool:
        """Whether observing through this table can change the device."""
        return any(row.side_effects or row.feeds_watchdog for row in self._rows.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class LineSettings:
    """How the port is configured; there is never flow control."""

    baud: int
    data_bits: int = 8
    parity: str = "N"
    stop_bits: int = 1
    resync: bytes = b"\n"
    """Bytes that end a half-received line at the peer and mean nothing else."""

    @property
    def bytes_per_s(self) -> float:
        """Start, data, parity and stop bits counted."""
        return self.baud / (1 + self.data_bits + (self.parity != "N") + self.stop_bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortInfo:
    """What is known of a port without sending a byte."""

    path: str
    vendor_id: int | None = None
    product_id: int | None = None
    serial: str | None = None
    kernel_driver: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One frame to send: a row of the table, its sequence number and encoded body."""

    command: str
    seq: int
    body: bytes
    sent_s: float
    timeout_s: float
    permit: Permit | None = None

    @property
    def deadline_s(self) -> float:
        """When an answer no longer counts."""
        return self.sent_s + self.timeout_s


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Question:
    """Something a caller wants asked besides the poll. Compared by identity."""

    command: str
    body: Mapping[str, int | bytes] = field(default_factory=dict)
    permit: Permit | None = None
    expires_s: float = float("inf")
    """After this time nobody waits for the answer: the driver does not ask any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmList:
    """The alarm list at change counter `changes`."""

    changes: int
    alarms: tuple[Alarm, ...]
    more: bool


Payload = (
    Identity
    | Capabilities
    | StateSample
    | ChannelList
    | AlarmList
    | SelfTest
    | DeviceCounters
    | LogPage
    | LeaseReply
    | None
)


# What a driver reports. One class per thing that the owner of the driver treats differently.
@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A valid answer to `request` arrived; carries what it said, if it belongs to the picture."""

    request: Request
    payload: Payload
    question: Question | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """No valid answer within the time-out of one try. `final` when no further try follows."""

    request: Request
    final: bool
    question: Question | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The injector answered with an error."""

    request: Request
    group: int | None
    code: int
    final: bool
    """False when the driver asks again by itself (busy, damaged request)."""
    question: Question | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BadInput:
    """Input that was dropped: damaged frames by kind, or replies that match no request."""

    kind: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtocolUnknown:
    """The injector speaks another major version."""

    major: int
    minor: int


Update = Answered | Unanswered | Refused | BadInput | ProtocolUnknown

STALE_REPLY = "stale-reply"
"""`BadInput.kind` of a well-formed reply to another request."""


class Driver(Protocol):
    """A protocol as a state machine: gets bytes and time, gives requests and updates."""

    @property
    def pending(self) -> Request | None:
        """The one request in flight."""

    def restart(self, now_s: float) -> None:
        """Forget everything in flight and begin with the questions that establish who is there."""

    def pace(self, interval_s: float) -> None:
        """Ask for the state this often from now on."""

    def ask(self, question: Question) -> None:
        """Queue a question.

        Raises:
            QueueFullError: Sixteen questions wait already.
        """

    def due(self, now_s: float) -> Request | None:
        """The next request, which is in flight from now on, or None."""

    def deadline(self) -> float:
        """When `due` or `timed_out` must be called again at the latest."""

    def receive(self, data: bytes, now_s: float) -> list[Update]:
        """Take bytes. Never raises for bad input."""

    def timed_out(self, request: Request, now_s: float) -> list[Update]:
        """The time-out of `request` passed."""


class FrameCodec(Protocol):
    """How a driver's requests look on the wire; the gate uses both directions to check one against the other."""

    def encode(self, command: Command, request: Request) -> bytes: ...
    def classify(self, frame: bytes) -> tuple[Sequence[int], Mapping[str, object]]:
        """Wire rule and body of an encoded frame. Raises GateRefusedError for anything but one whole frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverType:
    """What a driver package offers through its entry point."""

    name: str
    commands: CommandTable
    codec: FrameCodec
    baud_rates: frozenset[int]
    static_by_state: bool
    """Whether IDLE alone proves that nothing moves, where the device has no pressure or motion sensor."""
    match: Callable[[PortInfo], int]
    """0..100 from what is known of a port; no byte is sent while matching."""
    line: Callable[[int], LineSettings]
    create: Callable[[LineSettings, int], Driver]
    """A driver for a line; the integer is a random first sequence number."""


LOG_COMMANDS: Mapping[Log, str] = {Log.FAULTS: "faults", Log.INJECTIONS: "injections", Log.EVENTS: "events"}
"""Names every driver uses for the commands that read a log."""
