"""Our server and client against the public `varlink` Python package, over a real socket, both ways."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
import varlink
from tidewaiter_core.varlink import Call, Client, VarlinkError, load_interface

from tests.sim.varlink import serving

INTERLOCK = "io.tidewaiter.Interlock"


def decision(call: Call) -> dict[str, Any]:
    if call.parameters["purpose"] == "nonsense":
        raise VarlinkError(f"{INTERLOCK}.Unsupported", {"what": "nonsense"})
    purpose = call.parameters["purpose"]
    return {
        "decision": {
            "allow": True,
            "purpose": purpose,
            "reasons": [],
            "evidence": {"state": "IDLE"},
            "ttl_ms": 5,
        }
    }


def lease(remaining_ms: int) -> dict[str, Any]:
    return {
        "lease": {
            "lease_id": "l",
            "purpose": "p",
            "sealed": False,
            "remaining_ms": remaining_ms,
            "from_previous_boot": False,
        }
    }


def hold(call: Call) -> Generator[dict[str, Any], None, dict[str, Any]]:
    yield lease(2)
    yield lease(1)
    return lease(0)


@pytest.fixture
def their_client(tmp_path: Path) -> Iterator[Any]:
    with (
        serving(tmp_path, {INTERLOCK: {"Check": decision, "Hold": hold}}) as world,
        varlink.Client.new_with_address(f"unix:{world.path}") as client,
    ):
        yield client


def test_their_client_reads_our_service_information(their_client: Any) -> None:
    their_client.get_interface(INTERLOCK)
    assert set(their_client.get_interfaces()) == {INTERLOCK, "org.varlink.service"}


def test_their_client_gets_our_description_word_for_word(their_client: Any) -> None:
    assert their_client.get_interface(INTERLOCK).get_description() == load_interface(INTERLOCK).description


def test_their_client_calls_our_method(their_client: Any) -> None:
    with their_client.open(INTERLOCK) as connection:
        assert connection.Check("reboot")["decision"]["evidence"] == {"state": "IDLE"}


def test_their_client_reads_our_stream_to_its_end(their_client: Any) -> None:
    with their_client.open(INTERLOCK) as connection:
        replies = [reply["lease"]["remaining_ms"] for reply in connection.Hold("p", 1, _more=True)]
    assert replies == [2, 1, 0]


def test_their_client_understands_our_errors(their_client: Any) -> None:
    with their_client.open(INTERLOCK) as connection:
        with pytest.raises(varlink.VarlinkError) as caught:
            connection.Check("nonsense")
        assert caught.value.error() == f"{INTERLOCK}.Unsupported"
        assert caught.value.parameters() == {"what": "nonsense"}
        with pytest.raises(varlink.MethodNotImplemented):
            connection.GetLease()


def their_handler(folder: Path) -> type:
    """A service of the public package that implements our interface file."""
    (folder / f"{INTERLOCK}.varlink").write_text(load_interface(INTERLOCK).description)
    service = varlink.Service(
        vendor="other", product="peer", version="1", url="https://peer.example", interface_dir=str(folder)
    )

    @service.interface(INTERLOCK)
    class _Interlock:
        def Check(self, purpose: str) -> dict[str, Any]:
            if purpose == "nonsense":
                raise varlink.InvalidParameter("purpose")
            return decision_like(purpose)

        def Hold(self, purpose: str, ttl_ms: int, _more: bool = True) -> Iterator[dict[str, Any]]:
            for remaining in (2, 1):
                yield {**lease(remaining), "_continues": True}
            yield {**lease(0), "_continues": False}

    class Handler(varlink.RequestHandler):  # type: ignore[misc]
        pass

    Handler.service = service
    return Handler


def decision_like(purpose: str) -> dict[str, Any]:
    return {"decision": {"allow": False, "purpose": purpose, "reasons": ["x"], "evidence": {}, "ttl_ms": 1}}


@pytest.fixture
def their_service(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "theirs"
    server = varlink.ThreadingServer(f"unix:{path};mode=0660", their_handler(tmp_path))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield path
    finally:
        server.shutdown()
        server.server_close()
        thread.join(3)


def test_our_client_reads_their_service_information(their_service: Path) -> None:
    with Client(their_service) as client:
        assert client.call("org.varlink.service.GetInfo")["vendor"] == "other"


def test_our_client_calls_their_method(their_service: Path) -> None:
    with Client(their_service) as client:
        assert client.call(f"{INTERLOCK}.Check", {"purpose": "reboot"}) == decision_like("reboot")


def test_our_client_reads_their_stream_to_its_end(their_service: Path) -> None:
    with Client(their_service) as client:
        stream = client.more(f"{INTERLOCK}.Hold", {"purpose": "p", "ttl_ms": 1})
        assert [reply["lease"]["remaining_ms"] for reply in stream] == [2, 1, 0]
        assert client.call(f"{INTERLOCK}.Check", {"purpose": "reboot"})["decision"]["allow"] is False


def test_our_client_understands_their_errors(their_service: Path) -> None:
    with Client(their_service) as client:
        with pytest.raises(VarlinkError) as caught:
            client.call(f"{INTERLOCK}.Check", {"purpose": "nonsense"})
        assert caught.value.name == "org.varlink.service.InvalidParameter"
        assert caught.value.parameters == {"parameter": "purpose"}
