"""What the device tells about itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tidewaiter_agent.inventory import PrivateFacts, config_data, fingerprint
from tidewaiter_agent.readings import Board, Health, InjectorIdentity, Missing
from tidewaiter_core import config
from tidewaiter_core.settings import Settings

HEALTH = Health(
    cpu_ratio=0.1,
    memory_used_bytes=1,
    memory_total_bytes=2,
    disk_free_bytes=3,
    temperature_c=None,
    uptime_s=4,
)
NO_HAL = Missing("core.not-reachable")
PRIVATE = PrivateFacts(
    host_name="ct-room-3", addresses=("10.1.2.3",), hardware_addresses=("00:11:22:33:44:55",)
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    file = tmp_path / "t.toml"
    file.write_text(
        '[device]\nproduct="contrast-injector"\nhw="rev-c"\nmodel="Injector 200"\n'
        '[server]\nurl="https://s.example"\nca_file="/ca.pem"\n'
        '[updater]\nslot_a="/a"\nslot_b="/b"\nboot_env="/e"\n'
    )
    return config.load(file, tmp_path / "none")


def told(settings: Settings, injector: InjectorIdentity | Missing = NO_HAL) -> dict[str, str]:
    return config_data(
        settings,
        serial="INJ-1",
        agent_version="0.1",
        updater=Missing("core.not-reachable"),
        injector=injector,
        health=HEALTH,
        private=PRIVATE,
    )


def test_nothing_private_is_told_by_default(settings: Settings) -> None:
    text = str(told(settings))
    assert not any(word in text for word in ("ct-room-3", "10.1.2.3", "00:11:22"))


def test_site_can_switch_each_private_fact_on(settings: Settings) -> None:
    privacy = dataclasses.replace(settings.privacy, send_hostname=True, send_local_ip=True, send_mac=True)
    data = told(dataclasses.replace(settings, privacy=privacy))
    assert (data["host_name"], data["addresses"], data["hardware_addresses"]) == (
        "ct-room-3",
        "10.1.2.3",
        "00:11:22:33:44:55",
    )


def test_missing_reading_is_told_as_missing_with_its_reason(settings: Settings) -> None:
    assert told(settings)["injector"] == "missing: core.not-reachable"


def test_hostile_injector_cannot_break_the_document(settings: Settings) -> None:
    boards = tuple(Board(name=f"b{n}" + "x" * 300, version="1\x00\x1b[31m" + "y" * 300) for n in range(100))
    data = told(settings, InjectorIdentity(vendor="v" * 500, model="m", serial="s", firmware=boards))
    assert len(data) <= 64
    assert all(len(key) <= 128 and len(value) <= 128 for key, value in data.items())
    assert not any("\x1b" in value or "\x00" in value for value in data.values())


def test_fingerprint_ignores_resources_that_change_all_the_time(settings: Settings) -> None:
    data = told(settings)
    assert fingerprint(data) == fingerprint({**data, "health.disk_free_bytes": "9"})
    assert fingerprint(data) != fingerprint({**data, "release": "9"})
