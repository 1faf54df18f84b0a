"""The SMP reference driver: what it believes, what it drops, how it retries."""

import base64
import binascii
import struct
from typing import Any

import cbor2
import pytest
from tidewaiter_hal.drivers import smp_messages as messages
from tidewaiter_hal.drivers.smp_reference import QUEUE_LIMIT, SmpReferenceDriver, driver
from tidewaiter_hal.drivers.smp_table import TABLE, SmpCodec
from tidewaiter_hal.errors import QueueFullError
from tidewaiter_hal.frames import smp
from tidewaiter_hal.injector import (
    STALE_REPLY,
    Answered,
    BadInput,
    ProtocolUnknown,
    Question,
    Refused,
    Request,
    Unanswered,
    Update,
)
from tidewaiter_hal.model import Generation, Identity, State, StateSample

STATE: dict[str, Any] = {
    "bo": 77, "ms": 5000, "n": 5000, "ag": 3, "st": 4, "md": 0, "lk": 0, "pk": 12, "fl": [0, 0], "vd": [0, 0],
    "mv": False, "id": None, "al": 0, "ac": 0, "fc": 0, "ic": 0, "ec": 0, "pw": 1, "sc": 0, "ls": [0, 0],
}  # fmt: skip
IDENTITY: dict[str, Any] = {
    "bo": 77, "ms": 5000, "pv": [1, 0], "vn": "V", "md": "M", "sn": "S-1", "bc": 3, "rr": 1, "lg": 9,
    "fw": [["control", "1.0", None, 0]],
}  # fmt: skip
CAPABILITIES: dict[str, Any] = {
    "bo": 77, "ms": 5000, "cl": 2, "nc": 2, "pl": 2070, "fm": 10000, "ft": ["pressure", "lease"], "gn": 0,
}  # fmt: skip
PLAIN: dict[str, dict[str, Any]] = {"parameters": {"buf_size": 1024}, "groups": {"groups": [0, 10]}}
ALARMS: dict[str, Any] = {"bo": 77, "ms": 5000, "ac": 0, "e": [], "mo": False}
ENVELOPED = {"identity": IDENTITY, "capabilities": CAPABILITIES, "state": STATE, "alarms": ALARMS}


def independent_reply(request: Request, body: dict[str, Any], **changes: int) -> bytes:
    """A reply made without our codec and framing: cbor2, struct and zlib only."""
    op, group, command = TABLE[request.command].rule
    seq = changes.get("seq", request.seq)
    content = cbor2.dumps(body)
    if group >= 0x5457 and "err" not in body and "rc" not in body:
        crc = binascii.crc32(struct.pack(">HBB", group, command, seq) + content) ^ changes.get("crc", 0)
        content = cbor2.dumps({"b": content, "c": struct.pack(">I", crc)})
    op, group, command = op + 1, changes.get("group", group), changes.get("command", command)
    packet = struct.pack(">BBHHBB", 8 | op, 0, len(content), group, seq, command) + content
    packet += struct.pack(">H", binascii.crc_hqx(packet, 0))
    raw, out = struct.pack(">H", len(packet)) + packet, b""
    for start in range(0, len(raw), 90):
        out += (
            (b"\x06\x09" if start == 0 else b"\x04\x14") + base64.b64encode(raw[start : start + 90]) + b"\n"
        )
    return out


class Talk:
    """A driver whose clock and peer are the test."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.driver = SmpReferenceDriver(driver.line(115_200), 41)
        self.driver.restart(self.now_s)

    def next(self) -> Request:
        request = self.driver.due(self.now_s)
        while request is None:
            self.now_s = max(self.now_s + 0.001, self.driver.deadline())
            request = self.driver.due(self.now_s)
        return request

    def reply(self, request: Request, body: dict[str, Any], **changes: int) -> list[Update]:
        return self.driver.receive(independent_reply(request, body, **changes), self.now_s)

    def answer_until(self, command: str) -> Request:
        """Answer everything until `command` is asked."""
        while (request := self.next()).command != command:
            body = PLAIN.get(request.command) or ENVELOPED.get(request.command)
            assert body is not None, request.command
            self.reply(request, body)
        return request


@pytest.fixture
def talk() -> Talk:
    return Talk()


def _payload(updates: list[Update]) -> object:
    (answered,) = [update for update in updates if isinstance(update, Answered)]
    return answered.payload


def test_driver_reads_state_from_an_independent_smp_server_codec(talk: Talk) -> None:
    request = talk.answer_until("state")
    sample = _payload(talk.reply(request, STATE))
    assert isinstance(sample, StateSample)
    assert (sample.state, sample.pressure_kpa, sample.boot_id) == (State.IDLE, 12, 77)
    assert sample.taken_s == pytest.approx(request.sent_s - 0.003)


def test_the_opening_asks_who_is_there_before_it_asks_for_the_state(talk: Talk) -> None:
    asked: list[str] = []
    while not asked or asked[-1] != "state":
        request = talk.next()
        asked.append(request.command)
        talk.reply(request, PLAIN.get(request.command) or ENVELOPED[request.command])
    assert asked == ["parameters", "groups", "identity", "capabilities", "state"]


def test_an_independent_parser_reads_our_requests(talk: Talk) -> None:
    request = talk.next()
    line = SmpCodec().encode(TABLE[request.command], request)
    raw = base64.b64decode(line[2:-1], validate=True)
    assert struct.unpack(">H", raw[:2])[0] == len(raw) - 2
    assert binascii.crc_hqx(raw[2:], 0) == 0
    assert struct.unpack(">BBHHBB", raw[2:10]) == (8, 0, 1, 0, request.seq, 6)
    assert cbor2.loads(raw[10:-2]) == {}


@pytest.mark.parametrize("change", [{"seq": 200}, {"group": 0x5458}, {"command": 2}])
def test_reply_with_wrong_seq_group_or_command_is_dropped_as_stale(
    talk: Talk, change: dict[str, int]
) -> None:
    request = talk.answer_until("state")
    assert talk.reply(request, STATE, **change) == [BadInput(kind=STALE_REPLY, count=1)]
    assert talk.driver.pending is request


def test_a_reply_after_the_time_out_is_stale(talk: Talk) -> None:
    request = talk.answer_until("state")
    talk.now_s = request.deadline_s
    talk.driver.timed_out(request, talk.now_s)
    assert talk.reply(request, STATE) == [BadInput(kind=STALE_REPLY, count=1)]


def test_reply_with_good_crc16_and_bad_crc32_is_rejected(talk: Talk) -> None:
    request = talk.answer_until("state")
    damage, unanswered = talk.reply(request, STATE, crc=1)
    assert damage == BadInput(kind=smp.Damage.CRC32, count=1)
    assert isinstance(unanswered, Unanswered)


def test_each_try_has_a_new_sequence_number_and_the_third_is_the_last(talk: Talk) -> None:
    request = talk.answer_until("state")
    seen, finals = [], []
    for _ in range(3):
        seen.append(request.seq)
        talk.now_s = request.deadline_s
        (update,) = talk.driver.timed_out(request, talk.now_s)
        assert isinstance(update, Unanswered)
        finals.append(update.final)
        request = talk.next()
    assert len(set(seen)) == 3
    assert finals == [False, False, True]


def test_unknown_keys_and_longer_entries_are_ignored(talk: Talk) -> None:
    request = talk.answer_until("identity")
    body = {**IDENTITY, "zz": {"new": [1]}, "fw": [["control", "1.0", None, 0, "new", 5]], "pv": [1, 7]}
    identity = _payload(talk.reply(request, body))
    assert isinstance(identity, Identity)
    assert identity.firmware[0].version == "1.0"


def test_unknown_enumeration_becomes_unknown_not_last_value(talk: Talk) -> None:
    talk.reply(talk.answer_until("state"), STATE)
    sample = _payload(talk.reply(talk.answer_until("state"), {**STATE, "st": 99, "pw": 9}))
    assert isinstance(sample, StateSample)
    assert sample.state is State.UNKNOWN
    assert sample.unknown_enums == {"st", "pw"}


@pytest.mark.parametrize(
    "key", ["bo", "ms", "n", "ag", "st", "md", "lk", "mv", "id", "al", "ac", "fc", "pw", "sc"]
)
def test_a_state_without_a_required_key_is_no_answer(talk: Talk, key: str) -> None:
    request = talk.answer_until("state")
    body = {name: value for name, value in STATE.items() if name != key}
    damage, unanswered = talk.reply(request, body)
    assert damage == BadInput(kind=smp.Damage.MISSING_KEY, count=1)
    assert isinstance(unanswered, Unanswered)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n", -1),
        ("n", 1 << 32),
        ("n", True),
        ("st", "idle"),
        ("mv", 1),
        ("bo", 0),
        ("id", "never"),
        ("fl", 5),
        ("pk", "9"),
    ],
)
def test_a_value_of_another_type_or_range_is_no_answer(key: str, value: object) -> None:
    with pytest.raises(messages.BodyError):
        messages.state({**STATE, key: value}, 0.0)  # type: ignore[dict-item]


def test_a_generation_nobody_knows_is_not_real() -> None:
    assert messages.capabilities({**CAPABILITIES, "gn": 9}).generation is Generation.UNKNOWN


def test_another_major_version_is_reported_and_only_the_identity_is_asked_again(talk: Talk) -> None:
    updates = talk.reply(talk.answer_until("identity"), {**IDENTITY, "pv": [2, 0]})
    assert updates == [ProtocolUnknown(major=2, minor=0)]
    before_s = talk.now_s
    assert talk.next().command == "identity"
    assert talk.now_s - before_s == pytest.approx(10.0)


@pytest.mark.parametrize("body", [{"err": {"group": 0x5457, "rc": 5}}, {"rc": 5}])
def test_both_forms_of_an_error_reply_are_understood(talk: Talk, body: dict[str, Any]) -> None:
    (refused,) = talk.reply(talk.answer_until("state"), body)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.final) == (5, True)


def test_a_busy_injector_is_asked_again_after_a_second(talk: Talk) -> None:
    request = talk.answer_until("state")
    (refused,) = talk.reply(request, {"err": {"group": 0x5457, "rc": 4}})
    assert isinstance(refused, Refused)
    assert not refused.final
    before_s = talk.now_s
    assert talk.next().command == "state"
    assert talk.now_s - before_s == pytest.approx(1.0)


def test_the_seventeenth_question_is_refused_instead_of_blocking(talk: Talk) -> None:
    for _ in range(QUEUE_LIMIT):
        talk.driver.ask(Question(command="channels"))
    with pytest.raises(QueueFullError):
        talk.driver.ask(Question(command="channels"))


def test_a_question_nobody_waits_for_any_more_is_not_asked(talk: Talk) -> None:
    talk.reply(talk.answer_until("state"), STATE)
    talk.driver.ask(Question(command="counters", expires_s=talk.now_s - 1))
    asked = [talk.next().command]
    talk.reply(talk.driver.pending or _missing(), ALARMS)
    asked.append(talk.next().command)
    assert asked == ["alarms", "state"]


def test_a_log_page_that_goes_back_is_invalid() -> None:
    from tidewaiter_hal.model import Log

    page: messages.Body = {"lg": 1, "from": 5, "first": 1, "head": 9, "e": [[5, 1, 2, 3, 4, 5]]}
    with pytest.raises(messages.BodyError):
        messages.log_page(Log.EVENTS, page)


def test_time_outs_follow_the_line_speed() -> None:
    slow = SmpReferenceDriver(driver.line(9600), 0)
    slow.restart(0.0)
    fast = SmpReferenceDriver(driver.line(115_200), 0)
    fast.restart(0.0)
    assert (fast.due(0.0) or _missing()).timeout_s == 0.25
    assert (slow.due(0.0) or _missing()).timeout_s > 0.5


def _missing() -> Request:
    raise AssertionError("a request was expected")
