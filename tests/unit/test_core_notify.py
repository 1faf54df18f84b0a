"""Messages to the service manager, on a real socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_core.notify import Notifier

from tests.sim.service_manager import ServiceManager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    with ServiceManager(tmp_path / "notify") as one:
        yield one


@pytest.fixture
def notifier(manager: ServiceManager, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifier]:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    one = Notifier.from_environment()
    yield one
    one.close()


def test_messages_arrive_one_per_datagram(manager: ServiceManager, notifier: Notifier) -> None:
    notifier.ready()
    notifier.status("polling")
    notifier.watchdog()
    notifier.watchdog_trigger()
    notifier.stopping()
    assert manager.received() == ["READY=1", "STATUS=polling", "WATCHDOG=1", "WATCHDOG=trigger", "STOPPING=1"]


def test_a_status_in_another_script_is_sent_as_ascii(manager: ServiceManager, notifier: Notifier) -> None:
    assert notifier.status("Gerät läuft\nREADY=1\x1b 東京")
    assert manager.received() == ["STATUS=Ger?t l?uft?READY=1? ??"]


def test_a_service_manager_that_never_reads_does_not_block(
    manager: ServiceManager, notifier: Notifier
) -> None:
    results: list[bool] = []
    sender = threading.Thread(
        target=lambda: results.extend(notifier.watchdog() for _ in range(3000)), daemon=True
    )
    sender.start()
    sender.join(10)
    assert not sender.is_alive(), "the sender waits for a reader"
    assert results[0]
    assert not results[-1]
    assert notifier.missed == results.count(False)


def test_a_message_that_was_missed_is_delivered_later(manager: ServiceManager, notifier: Notifier) -> None:
    while notifier.watchdog():
        pass
    manager.received()
    assert notifier.watchdog()
    assert manager.received() == ["WATCHDOG=1"]


def test_without_a_service_manager_everything_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier.from_environment()
    assert not notifier.connected
    assert notifier.ready() and notifier.watchdog() and notifier.barrier(1)
    assert notifier.missed == 0


# sdnotify drops its socket without closing it when the connection fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_notification_socket_that_does_not_exist_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notifier = Notifier.from_environment()
    assert not notifier.connected
    assert "notify.unreachable" in caplog.text


def test_a_service_manager_that_went_away_is_a_miss(manager: ServiceManager, notifier: Notifier) -> None:
    manager.close()
    assert not notifier.watchdog()
    assert notifier.missed == 1


def test_an_abstract_address_works(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"tidewaiter-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind("\0" + name)
        server.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notifier = Notifier.from_environment()
        notifier.ready()
        assert server.recv(100) == b"READY=1"
        notifier.close()


def test_a_stored_descriptor_arrives_with_its_name(manager: ServiceManager, notifier: Notifier) -> None:
    reader, writer = os.pipe()
    assert notifier.fdstore("lease", writer)
    message, fd = manager.receive_with_fd()
    os.write(fd, b"same pipe")
    assert message == "FDSTORE=1\nFDNAME=lease"
    assert os.read(reader, 100) == b"same pipe"
    for one in (reader, writer, fd):
        os.close(one)


def test_a_stored_descriptor_is_taken_back_by_name(manager: ServiceManager, notifier: Notifier) -> None:
    notifier.fdstore_remove("lease")
    assert manager.received() == ["FDSTOREREMOVE=1\nFDNAME=lease"]


@pytest.mark.parametrize("name", ["", "a:b", "a\nREADY=1", "ä", "x" * 256])
def test_a_descriptor_name_that_systemd_would_refuse_is_refused(notifier: Notifier, name: str) -> None:
    with pytest.raises(ValueError, match="descriptor name"):
        notifier.fdstore_remove(name)


def test_a_barrier_waits_until_the_service_manager_has_read(
    manager: ServiceManager, notifier: Notifier
) -> None:
    def answer() -> None:
        assert manager.receive() == "READY=1"
        _, fd = manager.receive_with_fd()
        os.close(fd)

    reader = threading.Thread(target=answer)
    notifier.ready()
    reader.start()
    assert notifier.barrier(10)
    reader.join()


def test_a_barrier_nobody_reads_ends_with_its_time(notifier: Notifier) -> None:
    assert not notifier.barrier(0.01)
