"""Listening sockets: inherited by name, or bound when nobody answers there."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tidewaiter_core import activation
from tidewaiter_core.errors import ConfigError, SecondInstanceError

# systemd sets LISTEN_PID after the fork; this does the same before it becomes the program.
LAUNCHER = """
import fcntl, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",")]
high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in fds]
for index, fd in enumerate(high):
    os.dup2(fd, 3 + index, inheritable=True)
os.environ["LISTEN_PID"] = str(os.getpid())
os.environ["LISTEN_FDS"] = str(len(fds))
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""

REPORT = """
import json, os, sys
from tidewaiter_core import activation
from tidewaiter_core.errors import ConfigError
try:
    found = activation.listen_fds()
except ConfigError as err:
    print(json.dumps({"error": str(err)}))
    sys.exit(0)
print(json.dumps({
    "names": {name: one.getsockname() for name, one in found.items()},
    "cloexec": [not os.get_inheritable(one.fileno()) for one in found.values()],
    "again": len(activation.listen_fds()),
    "left": [key for key in os.environ if key.startswith("LISTEN_")],
}))
"""


def launch(sockets: list[socket.socket], names: str) -> dict[str, object]:
    fds = [one.fileno() for one in sockets]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, ",".join(map(str, fds)), REPORT],
        pass_fds=fds,
        env={**os.environ, "LISTEN_FDNAMES": names},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def listening(path: Path) -> socket.socket:
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.bind(str(path))
    one.listen()
    return one


def test_inherited_sockets_are_found_by_name_and_only_once(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as first, listening(tmp_path / "b") as second:
        answer = launch([first, second], "relay:local")
    assert answer == {
        "names": {"relay": str(tmp_path / "a"), "local": str(tmp_path / "b")},
        "cloexec": [True, True],
        "again": 0,
        "left": [],
    }


def test_two_sockets_of_one_name_are_refused(tmp_path: Path) -> None:
    with listening(tmp_path / "a") as first, listening(tmp_path / "b") as second:
        assert "two descriptors are named 'relay'" in str(launch([first, second], "relay:relay"))


def test_a_network_socket_is_refused() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as inet:
        inet.bind(("127.0.0.1", 0))
        inet.listen()
        assert "this device accepts no network connection" in str(launch([inet], "relay"))


def test_a_socket_that_does_not_listen_is_refused() -> None:
    first, second = socket.socketpair()
    with first, second:
        assert "is not a listening Unix socket" in str(launch([first], "relay"))


def test_descriptors_for_another_process_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "relay")
    assert activation.listen_fds() == {}
    assert "LISTEN_FDS" not in os.environ


def test_an_inherited_socket_is_preferred_to_the_path(tmp_path: Path) -> None:
    with listening(tmp_path / "inherited") as one:
        assert activation.listener("relay", tmp_path / "path", inherited={"relay": one}) is one
    assert not (tmp_path / "path").exists()


def test_a_stand_alone_listener_has_its_mode_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "agent" / "relay.sock"
    with activation.listener("relay", path, mode=0o600, group=str(os.getgid())):
        assert path.stat().st_mode & 0o777 == 0o600
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(str(path))


def test_a_socket_nobody_answers_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    listening(path).close()
    with activation.listener("relay", path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(path))


def test_a_socket_somebody_answers_on_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with listening(path), pytest.raises(SecondInstanceError, match="another process answers on this socket"):
        activation.listener("relay", path)
    assert path.is_socket()


def test_a_process_too_busy_to_answer_is_there_nevertheless(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(SecondInstanceError):
            activation.listener("relay", path)


def test_something_that_is_no_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket has this name"):
        activation.listener("relay", path)
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a socket path has at most 107 bytes"):
        activation.listener("relay", tmp_path / ("x" * 120))


def test_a_group_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="group 'no-such-group': does not exist"):
        activation.listener("relay", tmp_path / "relay.sock", group="no-such-group")
