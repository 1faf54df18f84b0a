"""io.tidewaiter.Updater over a real socket: peer rules, answers, errors, streams, and the two units."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.varlink import Authorize, Client, NotReachable, Peer, VarlinkError
from tidewaiter_updater import units
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.service import INTERFACE, UpdaterService, authorize_agent, authorize_local

from tests.sim.clock import FakeClock
from tests.sim.device import Device, Made
from tests.sim.varlink import serving

AGENT = Peer(pid=1, uid=990, gid=990, groups=frozenset({990}))
OPERATOR = Peer(pid=2, uid=1000, gid=1000, groups=frozenset({1000, 985}))
UPDATER = Peer(pid=3, uid=991, gid=991, groups=frozenset({991, 985}))
STRANGER = Peer(pid=4, uid=1001, gid=1001, groups=frozenset({1001}))
AGENT_SOCKET = authorize_agent(990)
LOCAL_SOCKET = authorize_local(operator_gid=985, updater_uid=991)


def allows(rule: Authorize, peer: Peer, method: str) -> bool:
    try:
        rule(peer, f"{INTERFACE}.{method}")
    except VarlinkError as err:
        assert err.name == f"{INTERFACE}.NotAllowed"
        return False
    return True


@pytest.mark.parametrize(
    "method", ["Check", "Install", "Activate", "Pause", "Resume", "Cancel", "GetStatus", "Watch"]
)
def test_only_the_agent_may_use_its_socket(method: str) -> None:
    assert allows(AGENT_SOCKET, AGENT, method)
    assert not any(allows(AGENT_SOCKET, peer, method) for peer in (OPERATOR, UPDATER, STRANGER))


@pytest.mark.parametrize("method", ["Consent", "Reject", "ClearQuarantine", "RepairEnv", "Health", "Commit"])
def test_the_agents_socket_carries_nothing_local(method: str) -> None:
    assert not allows(AGENT_SOCKET, AGENT, method)


@pytest.mark.parametrize("method", ["Consent", "Reject", "ClearQuarantine", "RepairEnv", "Install", "Watch"])
def test_operators_use_the_local_socket(method: str) -> None:
    assert allows(LOCAL_SOCKET, OPERATOR, method)
    assert not allows(LOCAL_SOCKET, STRANGER, method)


@pytest.mark.parametrize("method", ["Health", "Commit"])
def test_health_and_commit_are_for_the_updaters_units(method: str) -> None:
    assert allows(LOCAL_SOCKET, UPDATER, method)
    assert not allows(LOCAL_SOCKET, OPERATOR, method)


class Served:
    """A device whose updater answers on a socket."""

    def __init__(self, device: Device, engine: Engine, path: Path) -> None:
        self.device = device
        self.engine = engine
        self.path = path

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        with Client(self.path) as client:
            return client.call(f"{INTERFACE}.{method}", parameters)

    def refused(self, method: str, **parameters: Any) -> VarlinkError:
        with pytest.raises(VarlinkError) as caught:
            self.call(method, **parameters)
        return caught.value


@contextmanager
def served(folder: Path, device: Device, *, is_local: bool = True) -> Iterator[Served]:
    engine = device.engine or device.power_on()
    device.work()
    with serving(folder, UpdaterService(engine, is_local=is_local).handlers()) as world:
        yield Served(device, engine, world.path)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def made(device: Device) -> Made:
    return device.make("2.0", 2, notes={"en": "Fixes the display."})


def test_check_tells_what_is_offered(device: Device, made: Made, tmp_path: Path) -> None:
    with served(tmp_path, device, is_local=False) as updater:
        offer = updater.call("Check", source="relay", release=made.path)["offer"]
    assert (offer["installable"], offer["target"], offer["release"]["notes"]) == (
        True,
        "B",
        {"en": "Fixes the display."},
    )


@pytest.mark.parametrize("source", ["directory:/media/stick", "https://elsewhere", "directory:relative"])
def test_the_agent_offers_from_the_relay_only(
    device: Device, made: Made, tmp_path: Path, source: str
) -> None:
    with served(tmp_path, device, is_local=False) as updater:
        assert updater.refused("Check", source=source, release=made.path).name.endswith("InvalidParameter")


def test_a_refusal_carries_code_detail_and_retryable(device: Device, made: Made, tmp_path: Path) -> None:
    with served(tmp_path, device) as updater:
        error = updater.refused("Install", digest=str(made.release.digest), consent=None)
    assert error.name == f"{INTERFACE}.Refused"
    assert (error.code, error.retryable) == ("release.unknown", False)
    assert "call Check" in error.parameters["detail"]


def test_busy_names_the_phase(device: Device, made: Made, tmp_path: Path) -> None:
    other = device.make("3.0", 3)
    with served(tmp_path, device) as updater:
        for release in (made, other):
            updater.call("Check", source="relay", release=release.path)
        updater.call("Install", digest=str(made.release.digest), consent=None)
        device.work()
        error = updater.refused("Install", digest=str(other.release.digest), consent=None)
    assert (error.name, error.parameters) == (f"{INTERFACE}.Busy", {"phase": "STAGED"})


def test_a_digest_that_is_none_is_an_invalid_parameter(device: Device, tmp_path: Path) -> None:
    with served(tmp_path, device) as updater:
        assert updater.refused("Cancel", digest="ABC").parameters == {"parameter": "digest"}


def test_install_with_more_reports_until_the_release_is_staged(
    device: Device, made: Made, tmp_path: Path
) -> None:
    with served(tmp_path, device) as updater:
        updater.call("Check", source="relay", release=made.path)
        threading.Timer(0.3, device.work).start()
        with Client(updater.path) as client:
            parameters = {"digest": str(made.release.digest), "consent": None}
            phases = [
                reply["status"]["phase"]
                for reply in client.more(f"{INTERFACE}.Install", parameters, timeout_s=15)
            ]
    assert phases[0] == "WAIT_CONSENT"
    assert phases[-1] == "STAGED"


def test_a_status_fits_the_interface_in_every_rest(device: Device, made: Made, tmp_path: Path) -> None:
    with served(tmp_path, device) as updater:
        assert updater.call("GetStatus")["status"]["phase"] == "IDLE"
        updater.call("Check", source="relay", release=made.path)
        updater.call("Install", digest=str(made.release.digest), consent=None)
        device.work()
        status = updater.call("GetStatus")["status"]
    assert status["last"]["code"] == "update.staged"
    assert status["release"]["version"] == "2.0"
    assert status["running"] == {"version": "1.0", "sequence": 1, "digest": None}


def test_consent_over_the_local_socket_is_local_and_limited(device: Device, tmp_path: Path) -> None:
    made = device.make(
        "2.0",
        2,
        policy={
            "consent": "local",
            "risk": "routine",
            "tries": 3,
            "activation": "any",
            "max_fetch_bytes": 10**6,
        },
    )
    digest = str(made.release.digest)
    scope = ["install", "activate"]
    with served(tmp_path, device) as updater:
        updater.call("Check", source="relay", release=made.path)
        updater.call("Install", digest=digest, consent=None)
        device.work()
        for until in ("2026-11-23T00:00:00Z", "2030-01-01T00:00:00Z", "tomorrow"):
            assert updater.refused("Consent", digest=digest, scope=scope, until=until).name.endswith(
                "InvalidParameter"
            )
        updater.call("Consent", digest=digest, scope=scope, until="2026-11-25T00:00:00Z")
        device.work()
        assert updater.call("GetStatus")["status"]["phase"] == "STAGED"
    consent = device.storage.documents["journal"]["consent"]
    assert (consent["channel"], consent["who"]) == ("local", f"uid:{os.getuid()}")


def test_what_the_agent_says_of_a_local_consent_is_a_claim(
    device: Device, made: Made, tmp_path: Path
) -> None:
    digest = str(made.release.digest)
    claim = {
        "digest": digest,
        "scope": ["install"],
        "channel": "local",
        "who": "nurse",
        "given_utc": "2026-11-24T00:00:00Z",
        "expires_utc": "2026-11-25T00:00:00Z",
    }
    with served(tmp_path, device, is_local=False) as updater:
        updater.call("Check", source="relay", release=made.path)
        updater.call("Install", digest=digest, consent=claim)
    consent = device.storage.documents["journal"]["consent"]
    assert (consent["channel"], consent["who"]) == ("site", "agent's claim: nurse")


def test_pause_and_resume_are_seen(device: Device, tmp_path: Path) -> None:
    with served(tmp_path, device) as updater:
        assert updater.call("Pause")["status"]["paused"] is True
        assert updater.call("Resume")["status"]["paused"] is False


# --- the units ---


def to_trial(device: Device, made: Made) -> None:
    device.power_on()
    device.work()
    device.offer(made)
    device.power_off()
    device.power_on()


def test_outside_a_trial_both_units_end_at_once(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(tmp_path, device) as updater:
        assert units.health(updater.path, FakeClock()) == 0
        assert units.commit(updater.path, FakeClock()) == 0
    assert capsys.readouterr().out == "not a trial boot, nothing to check\nnot a trial boot\n"


def test_the_units_of_a_healthy_trial_commit_it(
    device: Device, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to_trial(device, made)
    with served(tmp_path, device) as updater:
        assert units.health(updater.path, FakeClock()) == 0
        assert units.commit(updater.path, FakeClock()) == 0
    assert "committed 2.0" in capsys.readouterr().out


def test_the_health_unit_of_a_sick_trial_fails_and_commit_is_refused(
    device: Device, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device.health.sick = lambda identity: identity.version == "2.0"
    to_trial(device, made)
    with served(tmp_path, device) as updater:
        assert units.health(updater.path, FakeClock()) == units.EXIT_NO
        assert updater.refused("Commit").code == "health.failed"
    assert "fail     hal" in capsys.readouterr().out


def test_a_unit_waits_a_minute_for_the_updater_and_then_says_so(tmp_path: Path) -> None:
    clock = FakeClock()
    began_s = clock.boottime_s()
    with pytest.raises(NotReachable):
        units.health(tmp_path / "none", clock)
    assert clock.boottime_s() - began_s >= units.CONNECT_LIMIT_S


def test_a_wrong_configuration_ends_a_unit_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.toml").write_text("[device]\nnonsense = 1\n")
    code = units.commit_main(["--config", str(tmp_path / "bad.toml"), "--conf-dir", str(tmp_path / "none")])
    assert code == units.EXIT_CONFIG
    assert "nonsense" in capsys.readouterr().err


def test_a_local_consent_that_comes_with_install_is_bounded_like_any_other(
    device: Device, made: Made, tmp_path: Path
) -> None:
    consent = {
        "digest": str(made.release.digest),
        "scope": ["install"],
        "channel": "local",
        "who": "me",
        "given_utc": "1999-01-01T00:00:00.000Z",
        "expires_utc": "2099-01-01T00:00:00.000Z",
    }
    with served(tmp_path, device) as updater:
        updater.call("Check", source="relay", release=made.path)
        error = updater.refused("Install", digest=str(made.release.digest), consent=consent)
        assert error.parameters == {"parameter": "until"}
        consent["expires_utc"] = "2026-11-25T00:00:00.000Z"
        updater.call("Install", digest=str(made.release.digest), consent=consent)
    assert device.storage.documents["journal"]["consent"]["given_utc"] != consent["given_utc"]
