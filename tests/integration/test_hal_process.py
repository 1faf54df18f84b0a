"""tidewaiter-hal as a process, with the simulated injector as a process on a pseudo terminal."""

import json
import os
import subprocess
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_core.audit import verify
from tidewaiter_core.varlink import Client, VarlinkError, load_interface

from tests.sim.hal import HalProcess
from tests.sim.injector import InjectorSimulator

pytestmark = pytest.mark.integration


@pytest.fixture
def injector(tmp_path: Path) -> Iterator[InjectorSimulator]:
    with InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim") as injector:
        yield injector


@pytest.fixture
def hal(tmp_path: Path, injector: InjectorSimulator) -> Iterator[HalProcess]:
    with HalProcess(tmp_path / "hal", injector.link) as hal:
        hal.until_link("up")
        yield hal


def _state(hal: HalProcess) -> str | None:
    state: str | None = ((hal.snapshot() or {}).get("state") or {}).get("value")
    return state


def test_the_state_of_the_injector_is_followed(hal: HalProcess, injector: InjectorSimulator) -> None:
    injector.do("load")
    hal.until(lambda: _state(hal) == "loading", "loading is seen", timeout_s=3)
    injector.wait_state("READY")
    for action, state in (("arm", "armed"), ("start", "injecting"), ("hold", "hold"), ("abort", "aborted")):
        injector.do(action)
        hal.until(lambda state=state: _state(hal) == state, f"{state} is seen", timeout_s=3)  # type: ignore[misc]
    assert not hal.decision()["allow"]
    assert "state-not-idle" in hal.decision()["reasons"]


def test_an_idle_injector_is_allowed_locked_and_given_back(
    hal: HalProcess, injector: InjectorSimulator
) -> None:
    hal.until_allowed()
    with hal.hold("reboot") as replies:
        lease = next(replies)["lease"]
        assert injector.state()["lockouts"] == 15
        assert (hal.snapshot() or {})["lease"]["lease_id"] == lease["lease_id"]
        with pytest.raises(VarlinkError) as busy, hal.hold("reboot") as second:
            next(second)
        assert busy.value.name == "io.tidewaiter.Interlock.Busy"
        assert hal.order("Check", purpose="reboot")["decision"]["allow"]
    hal.until(lambda: injector.state()["lockouts"] == 0, "the lease ends with its connection", timeout_s=3)
    hal.until(lambda: hal.order("GetLease")["lease"] is None, "the hal notices that, too", timeout_s=3)


def test_a_sealed_lease_is_found_after_a_reboot_of_the_host(
    tmp_path: Path, injector: InjectorSimulator
) -> None:
    with HalProcess(tmp_path / "hal", injector.link, boot_id="a" * 32) as hal:
        hal.until_allowed()
        with hal.hold("reboot") as replies:
            lease_id = next(replies)["lease"]["lease_id"]
            assert hal.order("Seal", lease_id=lease_id, budget_ms=60_000)["lease"]["sealed"]
            hal.kill()
    assert injector.state()["lockouts"] == 15
    with HalProcess(tmp_path / "hal", injector.link, boot_id="b" * 32) as hal:
        hal.until_link("up")
        lease = hal.order("GetLease")["lease"]
        assert (lease["lease_id"], lease["from_previous_boot"]) == (lease_id, True)
        hal.order("Release", lease_id=lease_id)
        hal.until(lambda: injector.state()["lockouts"] == 0, "released after commit", timeout_s=3)


def test_a_hal_that_is_killed_leaves_no_lease_for_long(tmp_path: Path, injector: InjectorSimulator) -> None:
    with HalProcess(tmp_path / "hal", injector.link, boot_id="a" * 32) as hal:
        hal.until_allowed()
        with hal.hold("reboot") as replies:
            next(replies)
            hal.kill()
    assert injector.state()["lockouts"] == 15
    with HalProcess(tmp_path / "hal", injector.link, boot_id="a" * 32) as hal:
        hal.until(lambda: injector.state()["lockouts"] == 0, "the next instance releases it", timeout_s=8)


def test_unplug_replug_under_a_new_node_is_up_within_three_seconds(
    hal: HalProcess, injector: InjectorSimulator
) -> None:
    old = os.readlink(injector.link)
    holder = os.openpty()  # takes the number that becomes free, so that the new node is another one
    injector.unplug()
    took_s = hal.until_link("closed", timeout_s=3)
    assert took_s < 1.0
    assert "link-down" in hal.decision()["reasons"]
    time.sleep(6)  # long enough for the back-off to grow beyond three seconds
    injector.plug()
    assert hal.until_link("up", timeout_s=5) < 3.0
    for fd in holder:
        os.close(fd)
    assert old


def test_half_open_line_is_down_in_three_seconds_and_comes_back(
    hal: HalProcess, injector: InjectorSimulator
) -> None:
    injector.fault("freeze_comm")
    assert hal.until(lambda: (hal.snapshot() or {})["link"] in ("down", "syncing"), "down", timeout_s=6) < 4.5
    assert not hal.decision()["allow"]
    injector.fault("freeze_comm", on=False)
    hal.until_link("up")


def test_hal_starts_and_answers_without_an_injector(tmp_path: Path) -> None:
    with HalProcess(tmp_path / "hal", tmp_path / "no-injector") as hal:
        snapshot = hal.snapshot() or {}
        assert snapshot["link"] == "closed"
        assert snapshot["state"] == {"value": None, "quality": "invalid", "age_ms": None}
        assert "link-down" in hal.decision()["reasons"]
        with pytest.raises(VarlinkError) as down:
            hal.ask("GetIdentity")
        assert down.value.name == "io.tidewaiter.Injector.LinkDown"
        with pytest.raises(VarlinkError) as denied, hal.hold() as replies:
            next(replies)
        assert denied.value.name == "io.tidewaiter.Interlock.Denied"
        assert hal.stop() == 0


def test_hal_watches_the_injector_although_nothing_can_be_recorded(
    tmp_path: Path, injector: InjectorSimulator
) -> None:
    (tmp_path / "hal/audit").mkdir(parents=True)
    (tmp_path / "hal/audit/hal").write_text("a file where the chain's directory belongs")
    with HalProcess(tmp_path / "hal", injector.link) as hal:
        hal.until_link("up")
        hal.until(lambda: bool(hal.decision()["allow"]), "idle is proven", timeout_s=15)
        with pytest.raises(VarlinkError) as denied, hal.hold() as replies:
            next(replies)
        assert denied.value.parameters["reasons"] == ["audit.unavailable"]


def test_a_second_instance_is_refused_with_exit_75(hal: HalProcess) -> None:
    second = subprocess.run(hal.command, capture_output=True, text=True, timeout=20)
    assert second.returncode == 75
    assert str(hal.process.pid) in second.stderr
    assert hal.snapshot() is not None


def test_a_wrong_configuration_is_refused_with_exit_78_and_names_the_key(tmp_path: Path) -> None:
    from tests.sim.hal import write_config

    config = write_config(tmp_path / "hal", tmp_path / "injector", hal={"baud": 1234})
    command = ["tidewaiter_hal.main", "--config", str(config), "--conf-dir", str(tmp_path / "hal/conf.d")]
    import sys

    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 78
    assert "hal.baud = 1234" in ended.stderr


def test_an_unreadable_serial_number_is_refused_with_exit_78_and_left_as_found(tmp_path: Path) -> None:
    import sys

    from tests.sim.hal import write_config

    config = write_config(tmp_path / "hal", tmp_path / "injector")
    with config.open("rb") as file:
        provisioned = Path(tomllib.load(file)["device"]["provisioned_file"])
    provisioned.write_bytes(b'{"schema": 1, "serial"')
    command = ["tidewaiter_hal.main", "--config", str(config), "--conf-dir", str(tmp_path / "hal/conf.d")]
    ended = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=20)
    assert ended.returncode == 78
    assert str(provisioned) in ended.stderr
    assert "Traceback" not in ended.stderr
    assert provisioned.read_bytes() == b'{"schema": 1, "serial"'


def test_a_driver_nobody_installed_leaves_a_service_that_denies(tmp_path: Path) -> None:
    hal_settings = {"driver": "ghost", "driver_allow": [{"name": "ghost", "distribution": "tidewaiter"}]}
    with HalProcess(tmp_path / "hal", tmp_path / "injector", hal=hal_settings) as hal:
        assert (hal.snapshot() or {})["link_reason"] == "hal.no-driver"
        assert "no-driver" in hal.decision()["reasons"]


@pytest.mark.parametrize(("bench", "allowed"), [(False, False), (True, True)])
def test_a_demo_injector_satisfies_the_interlock_on_a_bench_only(
    tmp_path: Path, bench: bool, allowed: bool
) -> None:
    with (
        InjectorSimulator(tmp_path / "injector", home=tmp_path / "sim", generation="demo") as injector,
        HalProcess(tmp_path / "hal", injector.link, hal={"bench": bench}) as hal,
    ):
        hal.until_link("up")
        hal.until(
            lambda: set(hal.decision()["reasons"]) <= {"not-real"}, "nothing else is missing", timeout_s=15
        )
        assert hal.decision()["allow"] is allowed


def test_watch_tells_a_change_at_once(hal: HalProcess, injector: InjectorSimulator) -> None:
    with Client(hal.monitor, timeout_s=12.0) as client:
        replies = client.more("io.tidewaiter.Injector.Watch", timeout_s=12.0)
        assert next(replies)["events"] == []
        injector.do("load")
        seen: list[str] = []
        while "StateChanged" not in seen:
            seen += [event["kind"] for event in next(replies)["events"]]


def test_lists_and_self_test_come_from_the_injector(hal: HalProcess, injector: InjectorSimulator) -> None:
    injector.do("fail")
    hal.until(
        lambda: bool(hal.ask("ListFaults", after=None, limit=8)["faults"]), "the fault is listed", timeout_s=5
    )
    answer = hal.ask("ListFaults", after=None, limit=8)
    assert hal.ask("ListFaults", after=answer["next"], limit=8)["faults"] == []
    with pytest.raises(VarlinkError) as bad:
        hal.ask("ListFaults", after={**answer["next"], "log_id": 1}, limit=8)
    assert bad.value.name == "io.tidewaiter.Injector.BadCursor"
    hal.until(
        lambda: hal.ask("GetSelfTest")["self_test"]["result"] == "pass", "the self-test is known", timeout_s=5
    )


def test_what_happened_is_in_an_intact_audit_chain(hal: HalProcess, injector: InjectorSimulator) -> None:
    injector.do("fail")
    chain = hal.home / "audit/hal"

    def kinds() -> set[str]:
        lines = [line for path in chain.glob("*.jsonl") for line in path.read_text().splitlines()]
        return {json.loads(line)["kind"] for line in lines}

    hal.until(lambda: "injector.fault" in kinds(), "the fault is recorded", timeout_s=8)
    assert {"process.started", "injector.link"} <= kinds()
    hal.stop()
    assert verify(chain).intact


def test_a_flood_leaves_the_service_answering_and_cheap(tmp_path: Path, injector: InjectorSimulator) -> None:
    with HalProcess(tmp_path / "hal", injector.link) as hal:
        hal.until_link("up")
        injector.stop()
        master, slave = os.openpty()
        os.set_blocking(master, False)
        os.fchmod(slave, 0o600)
        injector.link.unlink(missing_ok=True)
        injector.link.symlink_to(os.ttyname(slave))
        hal.until(lambda: (hal.snapshot() or {})["link"] == "syncing", "opened", timeout_s=5)
        before_s, started_s = _cpu_s(hal.process.pid), time.monotonic()
        while time.monotonic() - started_s < 4:
            try:
                os.write(master, os.urandom(2048) + b"\x06\x09AAAA\n")
            except BlockingIOError:
                time.sleep(0.001)
        spent = (_cpu_s(hal.process.pid) - before_s) / (time.monotonic() - started_s)
        assert spent <= 0.20, f"{spent:.0%} of a core"
        assert hal.snapshot() is not None
        os.close(master)
        os.close(slave)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_service_matches_its_varlink(hal: HalProcess) -> None:
    for path, name in ((hal.monitor, "io.tidewaiter.Injector"), (hal.control, "io.tidewaiter.Interlock")):
        with Client(path) as client:
            text = client.call("org.varlink.service.GetInterfaceDescription", {"interface": name})[
                "description"
            ]
        assert text.strip() == load_interface(name).description.strip()


def test_hal_listens_on_no_network_socket(hal: HalProcess) -> None:
    inodes = {
        os.readlink(fd).removeprefix("socket:[").removesuffix("]")
        for fd in Path(f"/proc/{hal.process.pid}/fd").iterdir()
        if os.readlink(fd).startswith("socket:[")
    }
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = (
            Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if Path(f"/proc/net/{table}").exists()
            else []
        )
        assert not inodes & {row.split()[9] for row in rows}


def test_the_simulator_saw_no_forbidden_frame(hal: HalProcess, injector: InjectorSimulator) -> None:
    hal.until_allowed()
    with hal.hold() as replies:
        next(replies)
    seen = injector.seen()
    assert seen["total"] > 10
    assert seen["violations"] == []
