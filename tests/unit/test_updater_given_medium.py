"""A medium on the local socket: given as an open directory, refused in every other form, and never kept longer than needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.varlink import Client, VarlinkError
from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.service import INTERFACE, UpdaterService, authorize_agent, authorize_local
from tidewaiter_updater.sources import hashed_path

from tests.sim.device import Device, Made
from tests.sim.varlink import serving
from tests.unit.test_updater_service import AGENT, OPERATOR, STRANGER, allows

STICK = "directory:/media/stick"


@dataclass
class Bench:
    """A served updater and a stick that holds its release."""

    device: Device
    made: Made
    stick: Path
    bay: MediaBay
    path: Path

    def call(self, method: str, *, opened: Path | None = None, **parameters: Any) -> dict[str, Any]:
        """Call with the stick, or another directory, as descriptor 0."""
        descriptor = os.open(opened or self.stick, os.O_PATH)
        try:
            with Client(self.path) as client:
                return client.call(f"{INTERFACE}.{method}", parameters, descriptors=(descriptor,))
        finally:
            os.close(descriptor)

    def refused(self, method: str, **parameters: Any) -> VarlinkError:
        with pytest.raises(VarlinkError) as caught:
            self.call(method, **parameters)
        return caught.value

    def install(self, **changes: Any) -> dict[str, Any]:
        digest = str(self.made.release.digest)
        return self.call(
            "Install", **{"digest": digest, "consent": None, "source": STICK, "medium": 0, **changes}
        )

    def is_kept(self) -> bool:
        try:
            self.bay.medium(STICK)
        except SourceError:
            return False
        return True


@contextmanager
def bench_on(folder: Path, *, is_local: bool) -> Iterator[Bench]:
    device = Device()
    made = device.make("2.0", 2)
    engine = device.power_on()
    device.work()
    stick = folder / "stick"
    target = stick / "targets" / hashed_path(made.path, made.release.digest)
    target.parent.mkdir(parents=True)
    target.write_bytes(made.data)
    (stick / "metadata").mkdir()
    (stick / "metadata/timestamp.json").write_bytes(b"{}")
    bay = MediaBay()
    service = UpdaterService(engine, is_local=is_local, bay=bay)
    with serving(folder, service.handlers(), max_descriptors=1 if is_local else 0) as world:
        yield Bench(device, made, stick, bay, world.path)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with bench_on(tmp_path, is_local=True) as bench:
        yield bench


def test_a_stick_is_listed_checked_and_installed_from(bench: Bench) -> None:
    listed = bench.call("List", source=STICK, medium=0)["releases"]
    assert {"path": bench.made.path, "digest": str(bench.made.release.digest)} in listed
    offer = bench.call("Check", source=STICK, release=bench.made.path, medium=0)["offer"]
    assert offer["installable"]
    assert bench.install()["status"]["source"] == STICK


def test_a_medium_is_kept_for_an_installation_only(bench: Bench) -> None:
    bench.call("List", source=STICK, medium=0)
    bench.call("Check", source=STICK, release=bench.made.path, medium=0)
    assert not bench.is_kept()
    bench.install()
    assert bench.is_kept()


@pytest.mark.parametrize(
    "parameters",
    [
        pytest.param({"source": STICK, "medium": None}, id="no_descriptor_named"),
        pytest.param({"source": STICK, "medium": 1}, id="a_descriptor_that_did_not_come"),
        pytest.param({"source": STICK, "medium": -1}, id="counted_from_behind"),
        pytest.param({"source": "relay", "medium": 0}, id="the_relay_is_no_medium"),
        pytest.param({"source": "https://elsewhere", "medium": 0}, id="no_source"),
        pytest.param({"source": "directory:/a\nb", "medium": 0}, id="two_lines"),
        pytest.param({"source": "directory:" + "a" * 300, "medium": 0}, id="too_long"),
    ],
)
def test_a_medium_that_is_not_one_open_directory_is_refused(bench: Bench, parameters: dict[str, Any]) -> None:
    assert bench.refused("List", **parameters).name.endswith("InvalidParameter")
    assert not bench.is_kept()


def test_an_open_file_is_no_medium(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = bench.refused("List", opened=tmp_path / "file", source=STICK, medium=0)
    assert error.name.endswith("InvalidParameter")


def test_a_directory_without_a_repository_is_refused_with_its_reason(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    error = bench.refused("List", opened=tmp_path / "empty", source=STICK, medium=0)
    assert (error.code, "no update medium" in error.parameters["detail"]) == ("source.vanished", True)


def test_a_medium_without_the_release_in_hand_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.call("Check", source=STICK, release=bench.made.path, medium=0)
    bench.install()
    kept = bench.bay.medium(STICK)
    other = tmp_path / "other"
    (other / "metadata").mkdir(parents=True)
    (other / "metadata/timestamp.json").write_bytes(b"{}")
    error = bench.refused(
        "Install",
        opened=other,
        digest=str(bench.made.release.digest),
        consent=None,
        source=STICK,
        medium=0,
    )
    assert (error.code, error.retryable) == ("source.vanished", True)
    assert bench.bay.medium(STICK) is kept


def test_the_agents_socket_takes_no_medium(tmp_path: Path) -> None:
    with bench_on(tmp_path, is_local=False) as bench:
        assert bench.refused("Check", source=STICK, release=bench.made.path, medium=0).name.endswith(
            "InvalidParameter"
        )


def test_the_agent_installs_from_the_relay_whoever_checked_last(tmp_path: Path) -> None:
    with bench_on(tmp_path, is_local=False) as bench:
        engine = bench.device.engine or pytest.fail("off")
        engine.check("relay", bench.made.path)
        engine.check(STICK, bench.made.path, is_local=True)
        assert bench.install(source=None, medium=None)["status"]["source"] == "relay"


def test_listing_is_for_operators() -> None:
    local = authorize_local(operator_gid=985, updater_uid=991)
    assert allows(local, OPERATOR, "List")
    assert not allows(local, STRANGER, "List")
    assert not allows(authorize_agent(990), AGENT, "List")
