"""The simulated injector: it behaves like one, and sees what it must never see."""

from pathlib import Path

import pytest
from tidewaiter_hal import cbor
from tidewaiter_hal.frames import smp
from tidewaiter_hal.model import State
from tidewaiter_hal.sim import scenario
from tidewaiter_hal.sim.faults import UnknownFaultError
from tidewaiter_hal.sim.panel import Panel
from tidewaiter_hal.sim.physics import ActionError, Injector
from tidewaiter_hal.sim.simulator import Simulator, UnknownPathError


@pytest.fixture
def sim() -> Simulator:
    return Simulator(Injector(now_s=0.0, seed=3))


def _send(
    sim: Simulator, op: int, group: int, command: int, body: bytes = b"\xa0", at_s: float = 1.0
) -> smp.Packet:
    sim.server.receive(smp.encode(smp.Packet(op=op, group=group, command=command, seq=5, body=body)), at_s)
    (packet,) = smp.Reassembler().feed(sim.server.due(at_s + 1), at_s)
    return packet


def test_an_injection_runs_through_its_states_and_delivers_what_was_planned(sim: Simulator) -> None:
    now_s, states = 0.0, [State.IDLE]
    for action in ("load", "arm", "start"):
        sim.do(action, now_s)
        for _ in range(100):
            now_s += 0.05
            sim.injector.advance(now_s)
            if sim.injector.state is not states[-1]:
                states.append(sim.injector.state)
    while sim.injector.state is not State.IDLE:
        now_s += 0.5
        sim.injector.advance(now_s)
        if sim.injector.state is not states[-1]:
            states.append(sim.injector.state)
    assert states == [
        State.IDLE, State.LOADING, State.READY, State.ARMED, State.INJECTING, State.COMPLETE, State.IDLE,
    ]  # fmt: skip
    assert [round(piston.delivered_ul) for piston in sim.injector.pistons] == [60_000, 40_000]


def test_pressure_rises_with_flow_and_falls_at_rest(sim: Simulator) -> None:
    sim.do("arm", 0.0)
    sim.do("start", 0.0)
    sim.injector.advance(5.0)
    assert 600 < sim.injector.sample.pressure_kpa < 1200
    sim.do("hold", 5.0)
    sim.injector.advance(10.0)
    assert sim.injector.sample.pressure_kpa < 20
    assert not sim.injector.sample.moving


@pytest.mark.parametrize(("action", "state"), [("start", "ARMED"), ("resume", "HOLD"), ("hold", "INJECTING")])
def test_an_impossible_action_says_where_it_is_possible(sim: Simulator, action: str, state: str) -> None:
    with pytest.raises(ActionError, match=state):
        sim.do(action, 1.0)
    assert sim.injector.state is State.IDLE


def test_a_fault_in_an_injection_ends_it_and_is_logged(sim: Simulator) -> None:
    for action in ("arm", "start"):
        sim.do(action, 0.0)
    sim.do("fail", 3.0)
    assert sim.injector.state is State.FAULT
    assert sim.injector.alarm_priority == 3
    assert sim.injector.logs.faults.head == 1
    assert sim.injector.logs.injections.entries[-1][-1] == 3


def test_the_same_seed_gives_the_same_machine() -> None:
    first, second = (Injector(now_s=0.0, seed=9) for _ in range(2))
    assert first.boot_id == second.boot_id
    assert first.boot_id != Injector(now_s=0.0, seed=10).boot_id


def test_a_power_cut_gives_a_new_boot_id_and_comes_back_idle(sim: Simulator) -> None:
    old = sim.injector.boot_id
    sim.do("power_cut", 1.0)
    sim.injector.advance(5.0)
    assert sim.injector.boot_id not in (0, old)
    assert sim.injector.state is State.IDLE


def test_a_write_to_the_monitor_group_is_refused_and_a_violation(sim: Simulator) -> None:
    packet = _send(sim, smp.Op.WRITE, 0x5457, 1)
    assert cbor.decode_map(packet.body) == {"err": {"group": 0x5457, "rc": 2}}
    assert len(sim.server.monitor.violations) == 1


@pytest.mark.parametrize(("group", "command"), [(0, 5), (0, 0), (1, 1), (8, 0), (9, 0), (0x5457, 1), (63, 0)])
def test_every_other_write_is_a_violation(sim: Simulator, group: int, command: int) -> None:
    _send(sim, smp.Op.WRITE, group, command)
    assert len(sim.server.monitor.violations) == 1


def test_reads_of_the_monitor_and_lease_commands_are_no_violation(sim: Simulator) -> None:
    _send(sim, smp.Op.READ, 0x5457, 1)
    body = cbor.encode({"tk": bytes(8), "tt": 5000, "pu": 1})
    _send(sim, smp.Op.WRITE, 0x5458, 1, smp.wrap(body, group=0x5458, command=1, seq=5))
    assert sim.injector.lease is not None
    assert sim.server.monitor.violations == []


def test_a_lease_request_with_a_damaged_envelope_is_refused(sim: Simulator) -> None:
    body = cbor.encode({"tk": bytes(8), "tt": 5000, "pu": 1})
    packet = _send(sim, smp.Op.WRITE, 0x5458, 1, smp.wrap(body, group=0x5458, command=1, seq=6))
    assert cbor.decode_map(packet.body) == {"err": {"group": 0x5458, "rc": 10}}
    assert sim.injector.lease is None


def test_the_full_state_body_and_its_frame_have_the_documented_size(sim: Simulator) -> None:
    packet = _send(sim, smp.Op.READ, 0x5457, 1)
    assert len(smp.encode(packet)) < 260


def test_an_unknown_fault_or_path_is_refused_by_name(sim: Simulator) -> None:
    with pytest.raises(UnknownFaultError, match="wrong_seq"):
        sim.fault("gremlin", {}, 1.0, on=True)
    with pytest.raises(UnknownPathError, match="pressure_kpa"):
        sim.set("gremlin", "1", 1.0)
    with pytest.raises(UnknownPathError, match="JSON"):
        sim.set("power", "mains", 1.0)


def test_a_value_can_be_shadowed_and_given_back(sim: Simulator) -> None:
    sim.set("pressure_kpa", "900", 1.0)
    assert sim.server.bodies.state()["pk"] == 900
    sim.set("pressure_kpa", "reset", 1.0)
    assert sim.server.bodies.state()["pk"] == 8


def test_the_panel_tells_a_change_once(sim: Simulator) -> None:
    panel = Panel(sim, title="SIM")
    assert panel.change_line(listener=False) is not None
    assert panel.change_line(listener=False) is None
    sim.do("arm", 1.0)
    assert "ARMED" in (panel.change_line(listener=False) or "")


def test_every_row_of_the_screen_has_one_width(sim: Simulator) -> None:
    import re

    panel = Panel(sim, title="SIM-000001 · real")
    for action in ("arm", "start"):
        sim.do(action, 1.0)
    sim.injector.advance(3.0)
    rows = [
        re.sub(r"\x1b\[[0-9;]*[mKJH]", "", row) for row in panel.screen(listener=True).split("\r\n") if row
    ]
    assert {len(row) for row in rows} == {76}
    assert any("INJECTING" in row for row in rows)


def test_a_scenario_file_is_read_in_order_of_time(tmp_path: Path) -> None:
    path = tmp_path / "story.toml"
    path.write_text(
        '[[step]]\nat_ms = 2000\nfault = { name = "wrong_seq", count = 3 }\n'
        '[[step]]\nat_ms = 500\ndo = "load"\n[[step]]\nat_ms = 700\nset = { power = 3 }\n'
    )
    steps = scenario.load(path)
    assert [(step.at_s, step.kind) for step in steps] == [(0.5, "do"), (0.7, "set"), (2.0, "fault")]
    assert steps[2].values == {"count": "3"}


@pytest.mark.parametrize(
    "text",
    [
        "steps = 1",
        "[[step]]\ndo = 'arm'",
        "[[step]]\nat_ms = 1",
        "[[step]]\nat_ms = 1\ndo = 'a'\nset = {}",
        "[[step",
    ],
)
def test_a_file_that_is_no_scenario_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(scenario.ScenarioError, match=r"bad\.toml"):
        scenario.load(path)


def test_nothing_outside_the_simulator_imports_it() -> None:
    import tidewaiter_hal

    root = Path(tidewaiter_hal.__file__).parent
    for path in root.rglob("*.py"):
        if "sim" not in path.relative_to(root).parts:
            assert "tidewaiter_hal.sim" not in path.read_text(), path
