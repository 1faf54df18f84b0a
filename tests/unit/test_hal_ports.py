"""The serial port on a pseudo terminal: one owner, one error for every way to lose it."""

import fcntl
import os
import resource
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_hal.errors import PortAbsentError, PortBusyError, PortLostError
from tidewaiter_hal.injector import LineSettings
from tidewaiter_hal.ports import SerialOpener, SerialPort
from tidewaiter_hal.sim.line import PtyLine

LINE = LineSettings(baud=115_200)


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[PtyLine]:
    line = PtyLine(tmp_path / "injector")
    line.plug()
    yield line
    line.unplug()


@pytest.fixture
def opener(cable: PtyLine, tmp_path: Path) -> SerialOpener:
    return SerialOpener(tmp_path / "injector", LINE, node_must_be_private=True)


@pytest.fixture
def port(opener: SerialOpener) -> Iterator[SerialPort]:
    port = opener.open()
    yield port
    port.close()


def _read(cable: PtyLine | SerialPort, count: int) -> bytes:
    data = b""
    end_s = time.monotonic() + 2
    while len(data) < count and time.monotonic() < end_s:
        data += cable.read()
    return data


def test_bytes_pass_unchanged_in_both_directions(cable: PtyLine, port: SerialPort) -> None:
    everything = bytes(range(256))
    port.write(everything)
    assert _read(cable, 256) == everything
    cable.write(everything)
    assert _read(port, 256) == everything
    assert port.read() == b""


def test_second_owner_is_refused_with_flock_and_with_tiocexcl(
    opener: SerialOpener, port: SerialPort, tmp_path: Path
) -> None:
    with pytest.raises(PortBusyError):
        opener.open()
    fd = os.open(os.readlink(tmp_path / "injector"), os.O_RDWR | os.O_NOCTTY) if os.geteuid() == 0 else None
    if fd is None:
        with pytest.raises(OSError):
            os.open(os.readlink(tmp_path / "injector"), os.O_RDWR | os.O_NOCTTY)
        return
    try:  # root passes TIOCEXCL, so the lock has to hold
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(fd)


def test_the_exclusive_flag_is_set_on_the_line(port: SerialPort) -> None:
    tiocgexcl = 0x80045440
    buffer = bytearray(4)
    fcntl.ioctl(port.fileno(), tiocgexcl, buffer)
    assert int.from_bytes(buffer, "little") == 1


def test_a_closed_port_can_be_opened_again(opener: SerialOpener) -> None:
    opener.open().close()
    opener.open().close()


def test_an_absent_node_is_absent(tmp_path: Path) -> None:
    opener = SerialOpener(tmp_path / "nothing", LINE, node_must_be_private=True)
    assert opener.marker() is None
    with pytest.raises(PortAbsentError, match="waiting"):
        opener.open()


def test_a_regular_file_is_no_port(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PortAbsentError, match="terminal"):
        SerialOpener(tmp_path / "file", LINE, node_must_be_private=True).open()


def test_a_node_others_may_open_is_refused_outside_a_bench(opener: SerialOpener, tmp_path: Path) -> None:
    (tmp_path / "injector").resolve().chmod(0o620)
    with pytest.raises(PortBusyError, match="0620"):
        opener.open()
    SerialOpener(tmp_path / "injector", LINE, node_must_be_private=False).open().close()


def test_an_unplugged_port_is_lost_on_read_write_and_discard(cable: PtyLine, port: SerialPort) -> None:
    cable.unplug()
    for action in (port.read, lambda: port.write(b"x"), port.discard):
        with pytest.raises(PortLostError):
            action()
    port.close()


def test_a_replug_shows_in_the_marker(cable: PtyLine, opener: SerialOpener) -> None:
    before = opener.marker()
    cable.unplug()
    assert opener.marker() is None
    cable.plug()
    assert opener.marker() not in (None, before)


def test_stuck_peer_blocks_no_write(port: SerialPort) -> None:
    started_s = time.monotonic()
    for _ in range(500):
        port.write(b"x" * 1000)
    assert time.monotonic() - started_s < 1.0


def test_fd_above_1024_works(cable: PtyLine, opener: SerialOpener) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1200:
        pytest.skip(f"needs a file limit of 1200, this shell allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    fillers = [os.open(os.devnull, os.O_RDONLY) for _ in range(1030)]
    try:
        port = opener.open()
        assert port.fileno() > 1023
        cable.write(b"hello")
        assert _read(port, 5) == b"hello"
        port.close()
    finally:
        for fd in fillers:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_hang_up_on_close_is_off(port: SerialPort) -> None:
    assert not termios.tcgetattr(port.fileno())[2] & termios.HUPCL
