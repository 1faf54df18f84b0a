"""What a device refuses is told to the server with its stable code, and costs it nothing: server, agent and updater are real."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sim.loop import tool
from tests.sim.machine import Machine
from tests.sim.plant import FACTORY_VERSION, Plant, ReleasePlan

pytestmark = pytest.mark.integration

SERIAL = "INJ-000301"
CLOSED = {"FINISHED", "ERROR", "CANCELED"}
LIMIT_S = 120.0


@pytest.fixture
def plant(tmp_path: Path) -> Iterator[Plant]:
    tool("mke2fs", "e2fsprogs")
    world = Plant(
        tmp_path,
        image_bytes=12 << 20,
        ballast_bytes=1 << 20,
        site={"poll": {"clamp_min_s": 1, "interval_min_s": 1, "interval_max_s": 1}},
    )
    world.open()
    try:
        yield world
    finally:
        world.close()


def publish(plant: Plant, version: str, **options: Any) -> int:
    """The factory's image again, under another document."""
    sequence = int(version.partition(".")[0])
    plant.enterprise.build(
        plant.image_path(FACTORY_VERSION),
        plant.build_dir(version),
        version=version,
        sequence=sequence,
        **options,
    )
    return plant.publish(version)


def outcome(plant: Plant, release: int) -> tuple[str, str]:
    """State of the action once it is closed, and everything that was reported on it."""
    deployment = plant.enterprise.deploy(release, SERIAL)
    end_s = time.monotonic() + LIMIT_S
    while (action := plant.enterprise.action(SERIAL, deployment))["state"] not in CLOSED:
        assert time.monotonic() < end_s, (action, plant.machines[SERIAL].log("agent")[-3000:])
        time.sleep(0.2)
    return action["state"], str(action)


def slots(machine: Machine) -> list[bytes]:
    return [machine.slot_path(name).read_bytes() for name in "AB"]


def test_wrong_hardware_predecessor_and_epoch_close_the_action_with_their_code_and_the_next_release_installs(
    plant: Plant,
) -> None:
    machine = plant.add_device(SERIAL)
    machine.power_on()
    before, decided = slots(machine), set()
    for version, options, code in (
        ("2.0.0", {"hw": "inj-z9"}, "release.hw"),
        ("3.0.0", {"from_min": 2, "from_max": 2}, "release.from"),
        ("4.0.0", {"security_epoch": 0}, "release.epoch"),
    ):
        state, told = outcome(plant, publish(plant, version, **options))
        assert state == "ERROR", told
        assert f"'{code}'" in told, told
        assert slots(machine) == before, "the other slot is untouched"
        decided.add(machine.env_path.read_bytes())
    assert len(decided) == 1, "no decision was written since the first start raised the epoch"
    plant.build([ReleasePlan(version="5.0.0", sequence=5)])
    state, told = outcome(plant, plant.publish("5.0.0"))
    assert (state, machine.version()) == ("FINISHED", "5.0.0"), told
