"""The client against services that are absent, slow, restarted or lying."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.varlink import Call, Client, Handler, NotReachable, ProtocolError, VarlinkError

from tests.sim.varlink import serving

RELEASE = "io.tidewaiter.Interlock.Release"
LEASE = "io.tidewaiter.Interlock.GetLease"


@contextmanager
def scripted(folder: Path, script: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A service that accepts one connection, reads one request and then does what `script` says."""
    path = folder / "liar"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            script(connection)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield path
    finally:
        thread.join(5)
        listener.close()


def hang(done: threading.Event) -> None:
    done.wait(5)


def answer(message: object) -> Callable[[socket.socket], None]:
    data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\0"
    return lambda connection: connection.sendall(data)


def test_a_socket_that_does_not_exist_is_not_reachable(tmp_path: Path) -> None:
    with (
        Client(tmp_path / "none") as client,
        pytest.raises(NotReachable, match="none: cannot connect") as caught,
    ):
        client.call(LEASE)
    assert caught.value.retryable
    assert caught.value.code == "core.not-reachable"


def test_no_answer_in_time_says_that_the_effect_is_unknown(tmp_path: Path) -> None:
    done = threading.Event()
    with scripted(tmp_path, lambda connection: hang(done)) as path:
        with (
            Client(path) as client,
            pytest.raises(NotReachable, match=r"within 0\.1 s; its effect is unknown"),
        ):
            client.call(LEASE, timeout_s=0.1)
        done.set()


def test_a_service_that_ends_without_an_answer_is_not_reachable(tmp_path: Path) -> None:
    with (
        scripted(tmp_path, lambda connection: None) as path,
        Client(path) as client,
        pytest.raises(NotReachable, match="ended the connection without answering"),
    ):
        client.call(LEASE)


@pytest.mark.parametrize(
    ("message", "finding"),
    [
        (b"<html>blocked</html>\0", "is not Varlink"),
        (b"x" * 70000, "is not Varlink"),
        ({"parameters": []}, "is not a Varlink reply"),
        ({"parameters": {}, "continues": 1}, "is not a Varlink reply"),
        ({"error": 5}, "an error without a name"),
        ({"parameters": {"lease": {"lease_id": 7}}}, "does not fit its interface: lease.lease_id"),
    ],
)
def test_an_answer_that_is_not_varlink_or_not_the_interface_is_a_protocol_error(
    tmp_path: Path, message: object, finding: str
) -> None:
    with (
        scripted(tmp_path, answer(message)) as path,
        Client(path) as client,
        pytest.raises(ProtocolError, match=finding) as caught,
    ):
        client.call(LEASE)
    assert not caught.value.retryable


def test_an_error_reply_becomes_an_exception_with_its_parameters(tmp_path: Path) -> None:
    reply = {
        "error": "io.tidewaiter.Updater.Refused",
        "parameters": {"code": "trust.expired", "detail": "old", "retryable": True},
    }
    with (
        scripted(tmp_path, answer(reply)) as path,
        Client(path) as client,
        pytest.raises(VarlinkError) as caught,
    ):
        client.call(LEASE)
    assert caught.value.name == "io.tidewaiter.Updater.Refused"
    assert (caught.value.code, caught.value.retryable) == ("trust.expired", True)
    assert str(caught.value) == "io.tidewaiter.Updater.Refused: old"


def test_a_field_of_a_newer_service_is_dropped(tmp_path: Path) -> None:
    with scripted(tmp_path, answer({"parameters": {"new": 1}})) as path, Client(path) as client:
        assert client.call(LEASE) == {"lease": None}


def test_the_client_connects_again_after_the_service_was_restarted(tmp_path: Path) -> None:
    handlers = {"io.tidewaiter.Interlock": {"GetLease": lambda call: {"lease": None}}}
    with Client(tmp_path / "s") as client:
        for _ in range(2):
            with serving(tmp_path, handlers):
                assert client.call(LEASE) == {"lease": None}


def test_an_error_in_a_stream_ends_it_and_leaves_the_connection_usable(tmp_path: Path) -> None:
    def hold(call: Call) -> Iterator[dict[str, Any]]:
        yield {
            "lease": {
                "lease_id": "l",
                "purpose": "p",
                "sealed": False,
                "remaining_ms": 1,
                "from_previous_boot": False,
            }
        }
        raise VarlinkError("io.tidewaiter.Interlock.LeaseLost", {"why": "link"})

    handlers: dict[str, dict[str, Handler]] = {
        "io.tidewaiter.Interlock": {"Hold": hold, "GetLease": lambda call: {"lease": None}}
    }
    with serving(tmp_path, handlers) as world, Client(world.path) as client:
        stream = client.more("io.tidewaiter.Interlock.Hold", {"purpose": "p", "ttl_ms": 1})
        assert next(stream)["lease"]["lease_id"] == "l"
        with pytest.raises(VarlinkError, match="LeaseLost"):
            next(stream)
        assert client.call(LEASE) == {"lease": None}


def test_bytes_that_arrive_with_the_upgrade_reply_are_not_lost(tmp_path: Path) -> None:
    head = {"parameters": {"status": "ok", "detail": "", "offset": 0, "total": 3, "length": 3}}
    with scripted(tmp_path, answer(json.dumps(head).encode() + b"\0abc")) as path, Client(path) as client:
        _, reader = client.upgrade("io.tidewaiter.Relay.Fetch", {"path": "p", "offset": 0, "max_bytes": 3})
        with reader:
            assert [reader.recv(2), reader.recv(2), reader.recv(2)] == [b"ab", b"c", b""]


def test_a_body_that_stops_coming_is_not_reachable(tmp_path: Path) -> None:
    head = {"parameters": {"status": "ok", "detail": "", "offset": 0, "total": 3, "length": 3}}
    done = threading.Event()

    def stall(connection: socket.socket) -> None:
        answer(head)(connection)
        done.wait(5)

    with scripted(tmp_path, stall) as path, Client(path) as client:
        _, reader = client.upgrade("io.tidewaiter.Relay.Fetch", {"path": "p", "offset": 0, "max_bytes": 3})
        with reader:
            reader.settimeout(0.05)
            with pytest.raises(NotReachable, match=r"no bytes within 0\.05 s"):
                reader.recv(1)
        done.set()


def test_a_request_beyond_the_limit_is_a_mistake_of_the_caller(tmp_path: Path) -> None:
    with Client(tmp_path / "none") as client, pytest.raises(ValueError, match="the limit is 65536"):
        client.call(RELEASE, {"lease_id": "x" * 70000})


def test_a_oneway_call_returns_without_an_answer(tmp_path: Path) -> None:
    called = threading.Event()
    handlers = {"io.tidewaiter.Interlock": {"Release": lambda call: called.set()}}
    with serving(tmp_path, handlers) as world, Client(world.path) as client:
        client.notify(RELEASE, {"lease_id": "l"})
        assert called.wait(2)
