"""The log: priorities, redaction, escaping, rate."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator

import pytest
from tidewaiter_core.log import RateLimit, Secret, escape, make_handler, redact

CANARY = "c4n4ryK3y"


class Log:
    """A logger of its own, with our handler on a text in memory."""

    def __init__(self, *, journal: bool) -> None:
        self.stream = io.StringIO()
        self.logger = logging.getLogger(f"test.{uuid.uuid4().hex}")
        self.logger.propagate = False
        self.logger.setLevel(logging.DEBUG)
        self.handler = make_handler("agent", stream=self.stream, journal=journal)
        self.logger.addHandler(self.handler)

    @property
    def lines(self) -> list[str]:
        return self.stream.getvalue().split("\n")[:-1]

    def messages(self) -> list[str]:
        return [line.split(": ", 1)[1] for line in self.lines]


@pytest.fixture
def log() -> Iterator[Log]:
    one = Log(journal=True)
    yield one
    one.handler.close()


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7)],
)
def test_levels_become_priorities_of_the_journal(log: Log, level: int, priority: int) -> None:
    log.logger.log(level, "poll.ok")
    assert log.lines == [f"<{priority}>{log.logger.name}: poll.ok"]


def test_outside_the_journal_a_line_has_time_component_and_level() -> None:
    log = Log(journal=False)
    log.logger.warning("poll.failed: %s", "x")
    assert log.lines[0][4] == "-"
    assert log.lines[0][23:].startswith("Z agent WARNING  test.")


@pytest.mark.parametrize(
    "injected", ["\n", "\r", "\x1b[2J", "\x85", "\u2028", "\u2029", "\x9b", "\u202e", "\x00", "\ud800"]
)
def test_a_message_cannot_start_a_second_line_or_move_the_terminal(log: Log, injected: str) -> None:
    log.logger.info("serial: %s", f"A{injected}<2>forged")
    assert len(log.lines) == 1
    assert log.lines[0].isprintable()


def test_escapes_are_visible() -> None:
    assert escape("a\tb\r\n\x1b\x85\u2028\u202e") == "a\\tb\\r\\n\\x1b\\x85\\u2028\\u202e"


def test_text_in_other_scripts_is_not_escaped() -> None:
    assert escape("Zürich 東京 α") == "Zürich 東京 α"


def test_lines_of_a_trace_are_marked_and_a_text_in_it_cannot_pose_as_an_event(log: Log) -> None:
    def fail() -> None:
        raise ValueError("bad\nforged: event")

    try:
        fail()
    except ValueError:
        log.logger.exception("worker.failed")
    assert log.lines[0] == f"<3>{log.logger.name}: worker.failed"
    assert all(line.startswith("<3>  | ") for line in log.lines[1:])
    assert "<3>  | forged: event" in log.lines


def test_secrets_in_a_chained_cause_are_removed(log: Log) -> None:
    def connect() -> None:
        raise OSError(f"connect https://user:{CANARY}@proxy failed")

    try:
        try:
            connect()
        except OSError as err:
            raise ValueError("poll failed") from err
    except ValueError:
        log.logger.exception("poll.failed")
    assert CANARY not in log.stream.getvalue()
    assert "direct cause" in log.stream.getvalue()


def test_a_trace_of_a_runaway_recursion_is_shortened(log: Log) -> None:
    def fall(depth: int) -> None:
        if depth == 0:
            raise ValueError(*["\n".join("x" * 1000)])
        fall(depth - 1)

    try:
        fall(3)
    except ValueError:
        log.logger.exception("worker.failed")
    assert len(log.lines) == 202
    assert any("lines left out" in line for line in log.lines)


def test_a_log_call_with_the_wrong_arguments_loses_neither_the_event_nor_a_secret(log: Log) -> None:
    log.handler.handle(
        logging.LogRecord(log.logger.name, logging.INFO, "f", 1, "poll.ok %d", (CANARY,), None)
    )
    assert log.messages() == ["poll.ok %d (the arguments of this log call do not fit)"]


@pytest.mark.parametrize(
    "text",
    [
        f"password={CANARY}",
        f"password: {CANARY} rest",
        f"PASSWORD = '{CANARY}'",
        f'{{"device_secret": "{CANARY}"}}',
        f"{{'attach_token': '{CANARY}'}}",
        f"db_passwd={CANARY}&x=1",
        f"?api_key={CANARY}",
        f"Cookie: {CANARY}",
        f"Authorization: Basic {CANARY}==",
        f"'Authorization': 'TargetToken {CANARY}'",
        f'Proxy-Authorization: Digest username="u", response="{CANARY}"',
        f"sent Bearer {CANARY}x",
        f"TargetToken {CANARY}",
        f"Basic {CANARY}",
        f"https://user:{CANARY}@host/path",
        f"https://{CANARY}@host/path",
        f"https://user:a@{CANARY}@host/path",
        f"jwt eyJhbGciOiJub25lIn0.{CANARY}.x",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----",
        f"-----BEGIN EC PRIVATE KEY-----\n{CANARY}",
        f"PatientName: {CANARY}",
        f"patient name = {CANARY} John",
        f"'PatientBirthDate': {CANARY}",
        f"(0010,0010) PN [{CANARY}]",
        f"PID|1||{CANARY}^^^MRN||DOE^JOHN",
        "DOE^" + CANARY,
        f"MRN 4711{CANARY}",
        f"mrn={CANARY}",
    ],
)
def test_a_canary_does_not_leave(text: str) -> None:
    assert CANARY not in redact(f"before {text} after")
    assert redact(f"before {text}").startswith("before ")


@pytest.mark.parametrize(
    "text",
    [
        "poll.ok: device INJ-000123 version 2.4.1 slot B",
        "injector-2.4.1.img: stream ended at 104857600 of 268435456 bytes; slot B stays disabled",
        "https://updates.example.com:8443/default/controller/v1/INJ-000123",
        "connect to [::1]:8443 failed",
        "basic configuration is complete",
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "mail operator@example.com",
    ],
)
def test_identities_serial_numbers_and_addresses_stay(text: str) -> None:
    assert redact(text) == text


def test_what_follows_a_removed_pem_object_stays() -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    assert redact(f"a {pem} b {pem} c") == "a <PEM removed> b <PEM removed> c"


def test_redaction_is_done_once_however_often_it_is_applied() -> None:
    once = redact(f"password={CANARY} https://u:p@h PatientName: X Y")
    assert redact(once) == once


def test_a_long_line_is_cut_and_marked() -> None:
    assert redact("x" * 10_000) == "x" * 8192 + "... (cut, 10000 characters)"


@pytest.mark.parametrize(
    "unit",
    ["a", "A^", "aa^", "://", "://a", "token", "token=", 'token="', "token:'", "eyJ", "patient ", "MRN ", "basic ", "basic a",
     "bearer ", "-----BEGIN A", "-----BEGIN A-----", " ", '"', "authorization ", "PID", "(0010,", "password" + " " * 8],
)  # fmt: skip
def test_redaction_costs_linear_time(unit: str) -> None:
    line = (unit * 8192)[:8192]
    start_s = time.perf_counter()
    redact("\n".join([line] * 10))
    assert time.perf_counter() - start_s < 1.0, (
        "80 KiB of the worst case; a quadratic expression takes many seconds"
    )


def test_a_secret_shows_itself_only_on_request() -> None:
    secret = Secret(CANARY)
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>10}",
        str.__mod__("%s", (secret,)),
        repr({"a": secret}),
        repr([secret]),
    ]
    assert CANARY not in "".join(shown)
    assert str(secret) == "<set>"
    assert secret.reveal() == CANARY


def test_secrets_compare_by_content_and_only_with_secrets() -> None:
    assert Secret("ü") == Secret("ü")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert (bool(Secret("")), repr(Secret(""))) == (False, "<empty>")


def test_a_secret_cannot_be_pickled_or_hashed() -> None:
    import pickle

    with pytest.raises(TypeError, match="not stored or sent"):
        pickle.dumps(Secret("a"))
    with pytest.raises(TypeError):
        hash(Secret("a"))


def test_a_flood_of_one_event_is_limited_and_the_rest_is_counted() -> None:
    now_s = [0.0]
    limit = RateLimit(now_s=lambda: now_s[0])

    def passes(message: str, argument: int) -> logging.LogRecord | None:
        record = logging.LogRecord("x", logging.INFO, "f", 1, message, (argument,), None)
        return record if limit.filter(record) else None

    assert sum(passes("link.down: %d", n) is not None for n in range(1000)) == 20
    assert passes("link.up: %d", 1) is not None, "another event is not affected"
    now_s[0] = 11.0
    record = passes("link.down: %d", 1)
    assert record is not None
    assert record.suppressed == 980  # type: ignore[attr-defined]


def test_the_count_of_suppressed_events_is_printed(log: Log) -> None:
    record = log.logger.makeRecord(log.logger.name, logging.INFO, "f", 1, "link.down", (), None)
    record.suppressed = 980
    log.logger.handle(record)
    # The filter of the handler sets its own count only when a window ends; ours is printed as it is.
    assert log.messages() == ["link.down (980 more like this were suppressed)"]


def test_an_endless_variety_of_events_does_not_fill_the_memory() -> None:
    limit = RateLimit(now_s=lambda: 0.0)
    for number in range(5000):
        limit.filter(logging.LogRecord("x", logging.INFO, "f", 1, f"event {number}", (), None))
    assert len(limit._events) <= 1024


def test_an_uncaught_exception_of_the_program_is_redacted_too() -> None:
    program = (
        "from tidewaiter_core import log; log.configure('hal', journal=True)\n"
        f"raise OSError('https://user:{CANARY}@proxy')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert "<2>tidewaiter: process.uncaught: OSError" in done.stderr
    assert f"user:{CANARY}" not in done.stderr


def test_journal_prefixes_appear_only_if_the_stream_is_the_journal() -> None:
    program = (
        "import os, sys; st = os.fstat(2); os.environ['JOURNAL_STREAM'] = sys.argv[1] or f'{st.st_dev}:{st.st_ino}'\n"
        "from tidewaiter_core import log; import logging; log.configure('hal'); logging.getLogger('a').info('b')"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program, stream], capture_output=True, text=True, timeout=20
        ).stderr
        for stream in ("", "1:2")
    ]
    assert outputs[0] == "<6>a: b\n"
    assert outputs[1].endswith("Z hal INFO     a: b\n")
