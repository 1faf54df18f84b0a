"""The interlock's client against a HAL that answers, refuses, loses the lease, or is not there."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.varlink import Call, VarlinkError
from tidewaiter_updater.errors import InterlockError
from tidewaiter_updater.hal_client import INTERLOCK, HalInterlock, HalView
from tidewaiter_updater.model import Decision

from tests.sim.clock import FakeClock
from tests.sim.varlink import serving


class FakeHal:
    """The control socket of a HAL."""

    def __init__(self) -> None:
        self.allow = True
        self.hold_error: VarlinkError | None = None
        self.released = threading.Event()
        self.sealed = False
        self.release_calls: list[str] = []
        self.lose = threading.Event()

    def handlers(self) -> dict[str, dict[str, Any]]:
        return {
            INTERLOCK: {
                "Check": self.check,
                "Hold": self.hold,
                "Seal": self.seal,
                "Release": self.release,
                "GetLease": self.get_lease,
            }
        }

    def check(self, call: Call) -> dict[str, Any]:
        reasons = [] if self.allow else ["state-not-idle"]
        purpose = call.parameters["purpose"]
        return {
            "decision": {
                "allow": self.allow,
                "purpose": purpose,
                "reasons": reasons,
                "evidence": {},
                "ttl_ms": 2000,
            }
        }

    def hold(self, call: Call) -> Iterator[dict[str, Any]]:
        if self.hold_error is not None:
            raise self.hold_error
        return self._held(call)

    def _held(self, call: Call) -> Iterator[dict[str, Any]]:
        while not self.released.is_set() and not call.closed():
            if self.lose.is_set():
                raise VarlinkError(f"{INTERLOCK}.LeaseLost", {"why": "operator"})
            yield {"lease": self.lease()}
            call.wait_closed(0.02)

    def seal(self, call: Call) -> dict[str, Any]:
        self.sealed = True
        return {"lease": self.lease()}

    def release(self, call: Call) -> dict[str, Any]:
        self.release_calls.append(call.parameters["lease_id"])
        self.released.set()
        return {}

    def get_lease(self, call: Call) -> dict[str, Any]:
        return {"lease": self.lease() if self.sealed else None}

    def lease(self) -> dict[str, Any]:
        return {
            "lease_id": "L1",
            "purpose": "activate",
            "sealed": self.sealed,
            "remaining_ms": 60000,
            "from_previous_boot": False,
        }


@contextmanager
def hal(folder: Path) -> Iterator[tuple[FakeHal, HalInterlock]]:
    fake = FakeHal()
    with serving(folder, fake.handlers()) as world:
        client = HalInterlock(world.path, folder / "none", clock=FakeClock())
        yield fake, client
        fake.released.set()


def test_the_answer_of_the_hal_is_the_decision(tmp_path: Path) -> None:
    with hal(tmp_path) as (fake, client):
        assert client.check("activate") == Decision(allow=True, ttl_ms=2000)
        fake.allow = False
        assert client.check("activate").reasons == ("state-not-idle",)


def test_no_answer_is_a_no(tmp_path: Path) -> None:
    client = HalInterlock(tmp_path / "none", tmp_path / "none", clock=FakeClock())
    assert client.check("activate") == Decision(allow=False, reasons=("hal-unreachable",))
    assert client.newer_sample(None) is None
    assert client.lease() is None
    client.release()
    with pytest.raises(InterlockError):
        client.hold("activate")
    with pytest.raises(InterlockError):
        client.seal("L1")


def test_a_hold_lasts_until_it_is_released(tmp_path: Path) -> None:
    with hal(tmp_path) as (fake, client):
        held = client.hold("activate")
        assert held is not None
        assert client.is_held()
        client.seal(held.lease_id)
        client.release()
        assert not client.is_held()
        assert fake.release_calls == ["L1"]


def test_a_lost_lease_is_noticed(tmp_path: Path) -> None:
    with hal(tmp_path) as (fake, client):
        assert client.hold("activate") is not None
        ended = client._hold._ended if client._hold else threading.Event()
        fake.lose.set()
        assert ended.wait(5)
        assert not client.is_held()


@pytest.mark.parametrize(
    ("name", "parameters", "reason"),
    [
        ("Denied", {"reasons": ["alarm"]}, "alarm"),
        ("Busy", {"holder": "someone"}, "firmware-busy"),
        ("LeaseLost", {"why": "expired"}, "lease-lost"),
    ],
)
def test_a_refused_hold_says_why(tmp_path: Path, name: str, parameters: dict[str, Any], reason: str) -> None:
    with hal(tmp_path) as (fake, client):
        fake.hold_error = VarlinkError(f"{INTERLOCK}.{name}", parameters)
        with pytest.raises(InterlockError) as caught:
            client.hold("activate")
        assert caught.value.reasons == (reason,)
        assert not client.is_held()


def test_an_injector_without_lease_is_told_apart(tmp_path: Path) -> None:
    with hal(tmp_path) as (fake, client):
        fake.hold_error = VarlinkError(f"{INTERLOCK}.Unsupported", {"what": "lease"})
        assert client.hold("activate") is None


def test_an_unreachable_hal_does_not_stop_a_transfer(tmp_path: Path) -> None:
    assert HalView(tmp_path / "none", clock=FakeClock()).is_injecting() is False
