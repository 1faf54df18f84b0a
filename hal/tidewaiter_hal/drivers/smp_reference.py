"""Driver for the SMP reference protocol (hal-and-hil.md 7 and 8). Pure: bytes and time in, requests and updates out.

One request in flight. A reply counts only if version, op, group, sequence number and command are those of that
request and its CRC-32 ties it to them; everything else is counted and dropped. Each retry has a new number.
"""

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tidewaiter_hal import cbor
from tidewaiter_hal.drivers import smp_messages as messages
from tidewaiter_hal.drivers.smp_table import PROTOCOL_MAJOR, TABLE, SmpCodec, is_enveloped
from tidewaiter_hal.errors import QueueFullError
from tidewaiter_hal.frames import smp
from tidewaiter_hal.injector import (
    LOG_COMMANDS,
    STALE_REPLY,
    AlarmList,
    Answered,
    BadInput,
    DriverType,
    LineSettings,
    Payload,
    PortInfo,
    ProtocolUnknown,
    Question,
    Refused,
    Request,
    Unanswered,
    Update,
)
from tidewaiter_hal.model import Capabilities, StateSample

QUEUE_LIMIT: Final = 16
SYNC_INTERVAL_S: Final = 0.2
SLOW_INTERVAL_S: Final = 10.0
SECOND_SLOW_S: Final = 3.0
BUSY_RETRY_S: Final = 1.0
BUSY_TRIES: Final = 5
RC_BUSY: Final = 4
RC_CRC: Final = 10
_NEVER: Final = float("inf")
_OPENING: Final = ("parameters", "groups", "identity", "capabilities")
_SLOW: Final = ("channels", "counters", "selftest")
_LOGS: Final = {command: log for log, command in LOG_COMMANDS.items()}
_STOP_ON: Final = frozenset({1, 2, 3, 5, 8})
"""Error codes after which an optional command is not asked again before the next restart."""


@dataclass(slots=True, kw_only=True)
class _Job:
    """One thing to ask, over all its tries."""

    command: str
    body: Mapping[str, int | bytes] = field(default_factory=dict)
    question: Question | None = None
    tries: int = 0
    busy: int = 0
    not_before_s: float = 0.0


class SmpReferenceDriver:
    """See `injector.Driver`."""

    def __init__(self, line: LineSettings, first_seq: int) -> None:
        self.pending: Request | None = None
        self._line = line
        self._seq = first_seq & 0xFF
        self._frames = smp.Reassembler()
        self._counted: Counter[str] = Counter()
        self._job: _Job | None = None
        self._again: _Job | None = None
        self._opening: deque[str] = deque()
        self._questions: deque[Question] = deque()
        self._interval_s = SYNC_INTERVAL_S
        self._next_state_s = _NEVER
        self._next_slow_s: dict[str, float] = {}
        self._slow_seen: set[str] = set()
        self._alarms_seen: int | None = None
        self._alarms_now: int | None = None
        self._foreign = False

    def restart(self, now_s: float) -> None:
        """Begin again with who is there; unanswered questions are forgotten, their askers time out."""
        self.pending = self._job = self._again = None
        self._frames.reset()
        self._opening = deque(_OPENING)
        self._questions.clear()
        self._interval_s = SYNC_INTERVAL_S
        self._next_state_s = now_s
        self._next_slow_s = {}
        self._slow_seen = set()
        self._alarms_seen = self._alarms_now = None
        self._foreign = False

    def pace(self, interval_s: float) -> None:
        """Ask for the state this often; the next poll moves forward if it would come too late."""
        if interval_s < self._interval_s and self._next_state_s != _NEVER:
            self._next_state_s -= self._interval_s - interval_s
        self._interval_s = interval_s

    def ask(self, question: Question) -> None:
        """Queue a question; the same monitor question twice is asked once for each asker, in turn."""
        if len(self._questions) >= QUEUE_LIMIT:
            raise QueueFullError(
                f"injector line: {QUEUE_LIMIT} questions wait already; {question.command} was not queued, try later"
            )
        self._questions.append(question)

    def due(self, now_s: float) -> Request | None:
        """The next request in order of urgency: a retry, the opening, the state poll, a question, the rest."""
        if self.pending is not None:
            return None
        job = self._next_job(now_s)
        if job is None:
            return None
        job.tries += 1
        self._seq = (self._seq + 1) & 0xFF
        self._job = job
        self.pending = Request(
            command=job.command,
            seq=self._seq,
            body=cbor.encode(job.body),
            sent_s=now_s,
            timeout_s=self._timeout_s(job.command),
            permit=job.question.permit if job.question else None,
        )
        return self.pending

    def deadline(self) -> float:
        """When something is due or times out."""
        if self.pending is not None:
            return self.pending.deadline_s
        if self._again is not None:
            return self._again.not_before_s
        if self._opening or (self._questions and not self._foreign):
            return 0.0
        if self._foreign or self._next_state_s == _NEVER:
            return self._next_state_s
        return min(self._next_state_s, *self._next_slow_s.values(), _NEVER if self._alarms_known else 0.0)

    @property
    def _alarms_known(self) -> bool:
        return self._alarms_now == self._alarms_seen

    def _next_job(self, now_s: float) -> _Job | None:
        if self._again is not None:
            if now_s < self._again.not_before_s:
                return None
            job, self._again = self._again, None
            return job
        if self._opening:
            return _Job(command=self._opening.popleft())
        if now_s >= self._next_state_s:
            if self._foreign:
                self._next_state_s = now_s + SLOW_INTERVAL_S
                return _Job(command="identity")
            self._next_state_s = now_s + self._interval_s
            return _Job(command="state")
        if self._foreign:
            return None
        while self._questions:
            question = self._questions.popleft()
            if now_s <= question.expires_s:
                return _Job(command=question.command, body=question.body, question=question)
        if not self._alarms_known:
            self._alarms_seen = self._alarms_now
            return _Job(command="alarms")
        for command, when_s in self._next_slow_s.items():
            if now_s >= when_s:
                self._next_slow_s[command] = now_s + self._slow_interval_s(command)
                return _Job(command=command)
        return None

    def _slow_interval_s(self, command: str) -> float:
        # Two plunger positions prove standstill, so the second follows soon.
        first = command not in self._slow_seen
        self._slow_seen.add(command)
        return SECOND_SLOW_S if first else SLOW_INTERVAL_S

    def _timeout_s(self, command: str) -> float:
        row = TABLE[command]
        wire_s = (row.answer_limit_bytes * 4 / 3 + 64) / self._line.bytes_per_s
        return max(row.timeout_s, 3 * wire_s + 0.15)

    def receive(self, data: bytes, now_s: float) -> list[Update]:
        """Take bytes in any split."""
        updates: list[Update] = []
        for packet in self._frames.feed(data, now_s):
            updates += self._take(packet, now_s)
        return [*self._new_damage(), *updates]

    def _new_damage(self) -> list[Update]:
        fresh = self._frames.damage - self._counted
        self._counted = Counter(self._frames.damage)
        return [BadInput(kind=kind, count=count) for kind, count in fresh.items()]

    def _take(self, packet: smp.Packet, now_s: float) -> list[Update]:
        request, job = self.pending, self._job
        if request is None or job is None or not _matches(packet, request):
            return [BadInput(kind=STALE_REPLY, count=1)]
        try:
            body = cbor.decode_map(packet.body)
        except cbor.CborError:
            return self._invalid(request, job, smp.Damage.CBOR, now_s)
        error = _error_of(body)
        if error is not None:
            return self._refused(request, job, error, now_s)
        if is_enveloped(packet.group):
            inner = smp.unwrap(body, group=packet.group, command=packet.command, seq=packet.seq)
            if inner is None:
                return self._invalid(request, job, smp.Damage.CRC32, now_s)
            try:
                body = cbor.decode_map(inner)
            except cbor.CborError:
                return self._invalid(request, job, smp.Damage.CBOR, now_s)
        try:
            update = self._understand(request, job, body, now_s)
        except messages.BodyError:
            return self._invalid(request, job, smp.Damage.MISSING_KEY, now_s)
        self.pending = self._job = None
        return [update]

    def _invalid(self, request: Request, job: _Job, kind: str, now_s: float) -> list[Update]:
        """A frame that cannot be believed counts as no answer, at once."""
        self._frames.damage[kind] += 1
        return [*self._new_damage(), *self._no_answer(request, job, now_s)]

    def _refused(
        self, request: Request, job: _Job, error: tuple[int | None, int], now_s: float
    ) -> list[Update]:
        group, code = error
        self.pending = self._job = None
        if code == RC_BUSY and job.busy < BUSY_TRIES:
            job.busy, job.tries, job.not_before_s = job.busy + 1, 0, now_s + BUSY_RETRY_S
            self._again = job
        elif code == RC_CRC and job.tries < TABLE[job.command].tries:
            self._again = job
        elif code in _STOP_ON:
            self._next_slow_s.pop(job.command, None)
        final = self._again is None
        return [Refused(request=request, group=group, code=code, final=final, question=job.question)]

    def timed_out(self, request: Request, now_s: float) -> list[Update]:
        """No answer in time."""
        if request is not self.pending or self._job is None:
            return []
        return self._no_answer(request, self._job, now_s)

    def _no_answer(self, request: Request, job: _Job, now_s: float) -> list[Update]:
        self.pending = self._job = None
        final = job.tries >= TABLE[job.command].tries
        if not final:
            job.not_before_s = now_s
            self._again = job
        return [Unanswered(request=request, final=final, question=job.question)]

    def _understand(self, request: Request, job: _Job, body: messages.Body, now_s: float) -> Update:
        command = request.command
        if command == "identity":
            version = messages.protocol_version(body)
            self._foreign = version[0] != PROTOCOL_MAJOR
            if self._foreign:
                self._opening.clear()
                self._next_state_s = now_s + SLOW_INTERVAL_S
                return ProtocolUnknown(major=version[0], minor=version[1])
        payload = _payload(command, request, body)
        if isinstance(payload, StateSample):
            self._alarms_now = payload.alarm_changes
        elif isinstance(payload, Capabilities):
            self._next_slow_s = {slow: now_s + 0.5 for slow in _SLOW if slow in payload.features}
        elif isinstance(payload, AlarmList):
            self._alarms_seen = payload.changes
        return Answered(request=request, payload=payload, question=job.question)


def _payload(command: str, request: Request, body: messages.Body) -> Payload:
    if command in _LOGS:
        return messages.log_page(_LOGS[command], body)
    if command.startswith("lease-"):
        return messages.lease_reply(command, body)
    match command:
        case "identity":
            return messages.identity(body)
        case "state":
            return messages.state(body, request.sent_s)
        case "capabilities":
            return messages.capabilities(body)
        case "channels":
            return messages.channels(body)
        case "alarms":
            return messages.alarms(body)
        case "selftest":
            return messages.self_test(body)
        case "counters":
            return messages.counters(body)
        case _:
            return None


def _matches(packet: smp.Packet, request: Request) -> bool:
    op, group, command = TABLE[request.command].rule
    return (packet.version, packet.op, packet.group, packet.command, packet.seq) == (
        1,
        op + 1,
        group,
        command,
        request.seq,
    )


def _error_of(body: messages.Body) -> tuple[int | None, int] | None:
    """(group, code) of an error reply; both forms occur under version 2, and rc 0 is success."""
    error = body.get("err")
    if isinstance(error, dict):
        group, code = error.get("group"), error.get("rc")
        if isinstance(code, int) and code != 0:
            return (group if isinstance(group, int) else None), code
        return None
    code = body.get("rc")
    return (None, code) if isinstance(code, int) and not isinstance(code, bool) and code != 0 else None


def _match(info: PortInfo) -> int:
    """An FTDI or CDC port that udev named injector is likely; nothing is certain without asking."""
    return 60 if info.kernel_driver in {"ftdi_sio", "cdc_acm"} else 50


driver: Final = DriverType(
    name="smp-reference",
    commands=TABLE,
    codec=SmpCodec(),
    baud_rates=frozenset({9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600}),
    static_by_state=False,
    match=_match,
    line=lambda baud: LineSettings(baud=baud),
    create=SmpReferenceDriver,
)
