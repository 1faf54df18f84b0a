"""Open files that travel with a call: only where a service wants them, and none is ever left behind."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.varlink import Call, Client, NotReachable
from tidewaiter_core.varlink.framing import encode

from tests.sim.varlink import serving

INTERLOCK = "io.tidewaiter.Interlock"
CHECK = f"{INTERLOCK}.Check"
DECISION = {"allow": True, "purpose": "activate", "reasons": [], "evidence": {}, "ttl_ms": 1000}


class Reader:
    """Reads the first bytes of each file that comes with a call."""

    def __init__(self) -> None:
        self.read: list[bytes] = []
        self.kept: list[int] = []
        self.calls = 0

    def check(self, call: Call) -> dict[str, Any]:
        self.calls += 1
        self.read += [os.pread(descriptor, 5, 0) for descriptor in call.descriptors]
        self.kept += [os.dup(descriptor) for descriptor in call.descriptors]
        return {"decision": DECISION}


@pytest.fixture
def letter(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "letter").write_bytes(b"hello world")
    descriptor = os.open(tmp_path / "letter", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


@contextlib.contextmanager
def reading(folder: Path, *, most: int) -> Iterator[tuple[Reader, Path]]:
    reader = Reader()
    handlers = {INTERLOCK: {"Check": reader.check}}
    with serving(folder, handlers, max_descriptors=most) as world:
        yield reader, world.path
    for descriptor in reader.kept:
        os.close(descriptor)


def open_on(name: str) -> int:
    """How many descriptors of this process lead to a file called `name`."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sum(link.endswith(f"/{name}") for link in links)


def test_a_handler_reads_the_file_that_came_with_the_call(tmp_path: Path, letter: int) -> None:
    with reading(tmp_path, most=1) as (reader, path), Client(path) as client:
        client.call(CHECK, {"purpose": "activate"}, descriptors=(letter,))
    assert reader.read == [b"hello"]


def test_what_a_handler_does_not_duplicate_is_closed_when_the_call_is_over(
    tmp_path: Path, letter: int
) -> None:
    with reading(tmp_path, most=1) as (reader, path), Client(path) as client:
        for _ in range(3):
            client.call(CHECK, {"purpose": "activate"}, descriptors=(letter,))
        client.call(CHECK, {"purpose": "activate"})
        assert open_on("letter") == 1 + len(reader.kept)


def test_a_received_file_is_not_inherited_by_a_child(tmp_path: Path, letter: int) -> None:
    with reading(tmp_path, most=1) as (reader, path), Client(path) as client:
        client.call(CHECK, {"purpose": "activate"}, descriptors=(letter,))
        assert not os.get_inheritable(reader.kept[0])


def test_a_service_that_wants_no_files_gets_none(tmp_path: Path, letter: int) -> None:
    with reading(tmp_path, most=0) as (reader, path), Client(path) as client:
        client.call(CHECK, {"purpose": "activate"}, descriptors=(letter,))
    assert (reader.calls, reader.read) == (1, [])


@pytest.mark.parametrize("number", [2, 3, 50])
def test_more_files_than_allowed_cost_the_connection_and_stay_nowhere(
    tmp_path: Path, letter: int, number: int
) -> None:
    with reading(tmp_path, most=1) as (reader, path), Client(path) as client:
        with pytest.raises(NotReachable):
            client.call(CHECK, {"purpose": "activate"}, descriptors=[letter] * number)
        assert (reader.calls, open_on("letter")) == (0, 1)


def test_files_dripping_in_with_the_pieces_of_one_message_are_counted_together(
    tmp_path: Path, letter: int
) -> None:
    with reading(tmp_path, most=1) as (reader, path), socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(3)
        peer.connect(str(path))
        message = encode({"method": CHECK, "parameters": {"purpose": "activate"}})
        with contextlib.suppress(OSError):
            for at in range(len(message)):
                socket.send_fds(peer, [message[at : at + 1]], [letter])
        with contextlib.suppress(ConnectionResetError):
            assert peer.recv(1) == b""
        assert (reader.calls, open_on("letter")) == (0, 1)


def test_a_file_whose_message_never_ends_is_closed_with_the_connection(tmp_path: Path, letter: int) -> None:
    with reading(tmp_path, most=1) as (reader, path):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            socket.send_fds(peer, [b'{"method":'], [letter])
        with Client(path) as client:
            client.call(CHECK, {"purpose": "activate"})
    assert (reader.read, open_on("letter")) == ([], 1)
