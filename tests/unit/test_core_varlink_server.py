"""The server on a real socket: answers, streams, upgrades, and peers that do not behave."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.errors import DeadlineError
from tidewaiter_core.varlink import Call, Client, Handler, NotReachable, Upgrade, VarlinkError

from tests.sim.varlink import Serving, serving

INTERLOCK = "io.tidewaiter.Interlock"
LEASE = {
    "lease_id": "l-1",
    "purpose": "activate",
    "sealed": False,
    "remaining_ms": 5,
    "from_previous_boot": False,
}


class Interlock:
    """Handlers that show what the server does with them."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.block = threading.Event()
        self.seen: list[Call] = []

    def get_lease(self, call: Call) -> dict[str, Any]:
        self.seen.append(call)
        return {"lease": None}

    def hold(self, call: Call) -> Iterator[dict[str, Any]]:
        try:
            while not call.closed():
                yield {"lease": LEASE}
                call.wait_closed(0.01)
        finally:
            self.released.set()

    def check(self, call: Call) -> dict[str, Any]:
        match call.parameters["purpose"]:
            case "bug":
                raise KeyError("slot")
            case "deadline":
                raise DeadlineError("link: no answer in 2 s")
            case "denied":
                raise VarlinkError(f"{INTERLOCK}.Denied", {"reasons": ["armed"]})
            case "large":
                return {"decision": decision(["x" * 1000] * 100)}
            case "block":
                self.block.wait(20)
        return {"decision": decision([])}

    def seal(self, call: Call) -> Generator[dict[str, Any], None, dict[str, Any]]:
        for budget in (3, 2):
            yield {"lease": {**LEASE, "remaining_ms": budget}}
        return {"lease": {**LEASE, "remaining_ms": 1}}

    def release(self, call: Call) -> None:
        self.seen.append(call)

    def fetch(self, call: Call) -> Upgrade:
        if call.parameters["path"] == "broken":
            return Upgrade(
                {"status": "ok", "detail": "", "offset": 0, "total": 6, "length": 6}, self._broken_body()
            )
        head = {"status": "ok", "detail": "", "offset": 0, "total": 6, "length": 6}
        return Upgrade(head, self._body())

    def _broken_body(self) -> Iterator[bytes]:
        yield b"abc"
        raise DeadlineError("the server sent nothing for 30 s")

    def _body(self) -> Iterator[bytes]:
        try:
            yield b"abc"
            yield b"\0\xff!"
        finally:
            self.released.set()


def decision(reasons: list[str]) -> dict[str, Any]:
    return {"allow": not reasons, "purpose": "x", "reasons": reasons, "evidence": {}, "ttl_ms": 1}


@pytest.fixture
def interlock() -> Interlock:
    return Interlock()


@pytest.fixture
def world(tmp_path: Path, interlock: Interlock) -> Iterator[Serving]:
    with service(tmp_path, interlock) as running:
        yield running


def service(folder: Path, interlock: Interlock, **options: Any) -> Any:
    handlers: Mapping[str, Mapping[str, Handler]] = {
        INTERLOCK: {
            "GetLease": interlock.get_lease,
            "Hold": interlock.hold,
            "Check": interlock.check,
            "Seal": interlock.seal,
            "Release": interlock.release,
        },
        "io.tidewaiter.Relay": {"Fetch": interlock.fetch},
    }
    return serving(folder, handlers, **options)


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send and read until the first NUL or the end."""
    connection.sendall(data)
    return read_message(connection)


def read_message(connection: socket.socket) -> bytes:
    found = b""
    while not found.endswith(b"\0"):
        piece = connection.recv(1)
        if not piece:
            break
        found += piece
    return found


def request(method: str, **more: Any) -> bytes:
    return json.dumps({"method": method, **more}).encode() + b"\0"


def is_serving(world: Serving) -> bool:
    with Client(world.path) as client:
        return client.call(f"{INTERLOCK}.GetLease") == {"lease": None}


def test_a_reply_on_the_wire_has_parameters_and_nothing_else(world: Serving) -> None:
    with world.raw() as peer:
        assert exchange(peer, request(f"{INTERLOCK}.GetLease")) == b'{"parameters":{}}\0'


def test_requests_sent_together_are_answered_in_order(world: Serving) -> None:
    with world.raw() as peer:
        peer.sendall(
            request(f"{INTERLOCK}.GetLease")
            + request(f"{INTERLOCK}.Nope")
            + request(f"{INTERLOCK}.GetLease", parameters=None)
        )
        answers = [json.loads(read_message(peer)[:-1]) for _ in range(3)]
    assert [answer.get("error") for answer in answers] == [None, "org.varlink.service.MethodNotFound", None]


def test_the_handler_is_told_who_calls(world: Serving, interlock: Interlock) -> None:
    assert is_serving(world)
    assert interlock.seen[0].peer.uid >= 0
    assert interlock.seen[0].peer.pid > 0


def test_a_oneway_call_is_carried_out_and_not_answered(world: Serving, interlock: Interlock) -> None:
    with world.raw() as peer:
        data = request(f"{INTERLOCK}.Release", oneway=True, parameters={"lease_id": "l-7"})
        data += request(f"{INTERLOCK}.Release", oneway=True, parameters={"wrong": 1})
        assert exchange(peer, data + request(f"{INTERLOCK}.GetLease")) == b'{"parameters":{}}\0'
    assert interlock.seen[0].parameters == {"lease_id": "l-7"}


def test_a_stream_marks_every_reply_but_the_last_with_continues(world: Serving) -> None:
    with world.raw() as peer:
        peer.sendall(request(f"{INTERLOCK}.Seal", more=True, parameters={"lease_id": "l", "budget_ms": 1}))
        answers = [json.loads(read_message(peer)[:-1]) for _ in range(3)]
        assert [answer.get("continues", False) for answer in answers] == [True, True, False]
        assert [answer["parameters"]["lease"]["remaining_ms"] for answer in answers] == [3, 2, 1]
        assert exchange(peer, request(f"{INTERLOCK}.GetLease")) == b'{"parameters":{}}\0'


def test_without_more_a_stream_is_its_first_reply(world: Serving, interlock: Interlock) -> None:
    with Client(world.path) as client:
        assert client.call(f"{INTERLOCK}.Hold", {"purpose": "activate", "ttl_ms": 1}) == {"lease": LEASE}
        assert interlock.released.wait(2)


def test_a_client_that_hangs_up_ends_the_stream_behind_it(world: Serving, interlock: Interlock) -> None:
    with Client(world.path) as client:
        stream = client.more(f"{INTERLOCK}.Hold", {"purpose": "activate", "ttl_ms": 1})
        assert next(stream) == {"lease": LEASE}
        assert not interlock.released.is_set()
    assert interlock.released.wait(2)


def test_raw_bytes_follow_an_upgrade_reply_and_then_the_connection_ends(world: Serving) -> None:
    with Client(world.path) as client:
        reply, reader = client.upgrade(
            "io.tidewaiter.Relay.Fetch", {"path": "a", "offset": 0, "max_bytes": 9}
        )
        with reader:
            assert reply["length"] == 6
            data = b""
            while piece := reader.recv(4):
                data += piece
            assert data == b"abc\0\xff!"


def test_a_body_that_fails_ends_early_and_nothing_else_is_written_into_it(world: Serving) -> None:
    with Client(world.path) as client:
        _, reader = client.upgrade(
            "io.tidewaiter.Relay.Fetch", {"path": "broken", "offset": 0, "max_bytes": 9}
        )
        with reader:
            data = b""
            while piece := reader.recv(100):
                data += piece
    assert data == b"abc"
    assert is_serving(world)


def test_an_upgrade_method_called_plainly_says_so_and_closes_its_source(
    world: Serving, interlock: Interlock
) -> None:
    with Client(world.path) as client, pytest.raises(VarlinkError, match="ExpectedUpgrade"):
        client.call("io.tidewaiter.Relay.Fetch", {"path": "a", "offset": 0, "max_bytes": 9})
    assert is_serving(world)


@pytest.mark.parametrize(
    ("purpose", "name", "code"),
    [
        ("denied", f"{INTERLOCK}.Denied", "core.varlink-error"),
        ("deadline", "io.tidewaiter.Failed", "core.deadline"),
        ("large", "io.tidewaiter.Failed", "core.varlink-too-large"),
    ],
)
def test_an_error_of_ours_is_answered_and_the_connection_goes_on(
    world: Serving, purpose: str, name: str, code: str
) -> None:
    with Client(world.path) as client:
        with pytest.raises(VarlinkError) as caught:
            client.call(f"{INTERLOCK}.Check", {"purpose": purpose})
        assert (caught.value.name, caught.value.code) == (name, code)
        assert client.call(f"{INTERLOCK}.GetLease") == {"lease": None}


def test_a_bug_in_a_handler_is_answered_and_ends_run_with_it(world: Serving) -> None:
    with Client(world.path) as client, pytest.raises(VarlinkError, match="InternalError"):
        client.call(f"{INTERLOCK}.Check", {"purpose": "bug"})
    world.thread.join(2)
    assert isinstance(world.failure, KeyError)


def test_a_composition_may_take_bugs_itself(tmp_path: Path, interlock: Interlock) -> None:
    bugs: list[BaseException] = []
    with service(tmp_path, interlock, on_bug=bugs.append) as world:
        with Client(world.path) as client, pytest.raises(VarlinkError, match="InternalError"):
            client.call(f"{INTERLOCK}.Check", {"purpose": "bug"})
        assert is_serving(world)
    assert [type(bug) for bug in bugs] == [KeyError]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n\0",
        b"\xff\xfe\0",
        b"\0",
        b"[]\0",
        b"[" * 60000 + b"\0",
        b'{"a":' * 10000 + b"1" + b"}" * 10000 + b"\0",
        b"x" * 70000,
        b'{"method":5}\0',
        b'{"method":"nodot"}\0',
        b'{"method":"' + b"a." * 300 + b'B"}\0',
        b'{"method":"a.B","more":"yes"}\0',
        b'{"method":"a.B","method":"c.D"}\0',
        b'{"method":"a.B","parameters":{"x":NaN}}\0',
    ],
)
def test_garbage_costs_the_peer_its_connection_and_nothing_else(world: Serving, data: bytes) -> None:
    with world.raw() as peer, suppress(ConnectionError):  # bytes behind the garbage were never read
        assert exchange(peer, data) == b""
    assert is_serving(world)


def test_half_a_message_and_silence_times_out_while_others_are_served(
    tmp_path: Path, interlock: Interlock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with service(tmp_path, interlock, call_timeout_s=0.2) as world, world.raw() as peer:
        peer.sendall(b'{"method":')
        assert is_serving(world)
        assert peer.recv(1) == b""
    assert "half a message, then nothing for 0.2 s" in caplog.text


def test_a_peer_that_never_says_anything_is_closed_after_the_call_time(
    tmp_path: Path, interlock: Interlock
) -> None:
    with service(tmp_path, interlock, call_timeout_s=0.1) as world, world.raw() as peer:
        assert peer.recv(1) == b""


def test_a_peer_that_drips_bytes_gains_no_time(tmp_path: Path, interlock: Interlock) -> None:
    with service(tmp_path, interlock, call_timeout_s=0.2) as world, world.raw(0.02) as peer:
        started = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError, StopIteration)):
            while time.monotonic() - started < 5:
                peer.sendall(b" ")
                try:
                    if peer.recv(1) == b"":
                        raise StopIteration
                except TimeoutError:
                    continue
        assert time.monotonic() - started < 2


def test_a_client_that_never_reads_its_replies_is_cut_off(
    tmp_path: Path, interlock: Interlock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with service(tmp_path, interlock, call_timeout_s=0.2) as world, world.raw() as peer:
        flood = request(f"{INTERLOCK}.Nope") * 20000
        with pytest.raises(OSError):
            while True:
                peer.sendall(flood)
        assert is_serving(world)
    assert "did not take its reply" in caplog.text


def test_the_connection_over_the_limit_is_closed_with_a_clear_log(
    tmp_path: Path, interlock: Interlock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with service(tmp_path, interlock, max_connections=2) as world:
        with world.raw() as first, world.raw() as second, world.raw() as third:
            for peer in (first, second):
                assert exchange(peer, request(f"{INTERLOCK}.GetLease")) == b'{"parameters":{}}\0'
            assert third.recv(1) == b""
            assert "2 connections are open, which is the limit" in caplog.text
            assert exchange(first, request(f"{INTERLOCK}.GetLease")) == b'{"parameters":{}}\0'
        wait_until(lambda: world.server.connections == 0)
        assert is_serving(world)


def test_a_peer_that_leaves_in_the_middle_of_a_message_is_only_logged(world: Serving) -> None:
    with world.raw() as peer:
        peer.sendall(b'{"method":')
    assert is_serving(world)


def test_stop_ends_run_within_a_second_with_idle_streaming_and_hanging_clients(
    world: Serving, interlock: Interlock
) -> None:
    with world.raw() as idle, world.raw() as hanging, Client(world.path) as streaming:
        exchange(idle, request(f"{INTERLOCK}.GetLease"))
        hanging.sendall(request(f"{INTERLOCK}.Check", parameters={"purpose": "block"}))
        stream = streaming.more(f"{INTERLOCK}.Hold", {"purpose": "activate", "ttl_ms": 1})
        next(stream)
        wait_until(lambda: world.server.connections == 3)
        started = time.monotonic()
        world.stop.event.set()
        world.thread.join(3)
        assert time.monotonic() - started < 1.0
        assert interlock.released.is_set()
        assert world.failure is None
        with pytest.raises(NotReachable, match="cannot connect"):
            is_serving(world)
    interlock.block.set()


def test_the_accept_loop_beats(tmp_path: Path, interlock: Interlock) -> None:
    beaten = threading.Event()
    with service(tmp_path, interlock, beat=beaten.set):
        assert beaten.wait(2)


def wait_until(condition: Any) -> None:
    until = time.monotonic() + 3
    while not condition():
        assert time.monotonic() < until
        threading.Event().wait(0.01)
