"""What this device tells the server about itself (configData).

Strings only, at most 64 keys of at most 128 characters. Host name, addresses and MACs are absent unless the site switches them
on:
`tests` read every body the agent sends and look for them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from tidewaiter_core.settings import Settings

from tidewaiter_agent.readings import Health, InjectorIdentity, Machine, Missing
from tidewaiter_agent.updater_client import UpdaterStatus

MISSING = "missing: "
"""Starts the value of a reading that is not there; its reason follows."""
KEY_LIMIT = 64
TEXT_LIMIT_CHARS = 128
BOARD_LIMIT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateFacts:
    """What only goes out when the site policy says so; empty otherwise."""

    host_name: str = ""
    addresses: tuple[str, ...] = ()
    hardware_addresses: tuple[str, ...] = ()


def config_data(
    settings: Settings,
    *,
    serial: str,
    agent_version: str,
    updater: UpdaterStatus | Missing,
    injector: InjectorIdentity | Missing,
    health: Health,
    private: PrivateFacts,
) -> dict[str, str]:
    """The attributes, in a stable order."""
    device = settings.device
    data = {
        "serial": serial,
        "product": device.product,
        "model": device.model,
        "hw": device.hw,
        "udi_di": device.udi_di,
        "agent_version": agent_version,
        "consent.update": str(settings.consent.update),
        "features": ",".join(name for name in ("updates", "telemetry") if getattr(settings.features, name)),
    }
    data |= _release(updater) | _injector(injector) | _health(health)
    if settings.privacy.send_hostname:
        data["host_name"] = private.host_name
    if settings.privacy.send_local_ip:
        data["addresses"] = " ".join(private.addresses)
    if settings.privacy.send_mac:
        data["hardware_addresses"] = " ".join(private.hardware_addresses)
    short = {
        key[:TEXT_LIMIT_CHARS]: _printable(value)[:TEXT_LIMIT_CHARS] for key, value in data.items() if value
    }
    return dict(list(short.items())[:KEY_LIMIT])


def private_facts(settings: Settings, machine: Machine) -> PrivateFacts:
    """Read only what may be sent: what was never read cannot leak."""
    privacy = settings.privacy
    return PrivateFacts(
        host_name=machine.host_name() if privacy.send_hostname else "",
        addresses=machine.addresses() if privacy.send_local_ip else (),
        hardware_addresses=machine.hardware_addresses() if privacy.send_mac else (),
    )


def fingerprint(data: Mapping[str, str]) -> str:
    """Changes when something changed that the server should hear of without asking; resources change all the time."""
    lasting = {key: value for key, value in data.items() if not key.startswith("health.")}
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()


def _release(updater: UpdaterStatus | Missing) -> dict[str, str]:
    if isinstance(updater, Missing):
        return {"release": MISSING + updater.reason, "slot": MISSING + updater.reason}
    return {
        "release": updater.running_version,
        "release_digest": updater.running_digest,
        "slot": updater.booted,
        "slot_committed": updater.committed,
    }


def _injector(injector: InjectorIdentity | Missing) -> dict[str, str]:
    if isinstance(injector, Missing):
        return {"injector": MISSING + injector.reason}
    data = {
        "injector.vendor": injector.vendor,
        "injector.model": injector.model,
        "injector.serial": injector.serial,
    }
    for board in injector.firmware[:BOARD_LIMIT]:
        data[f"injector.firmware.{board.name}"] = board.version
    return data


def _health(health: Health) -> dict[str, str]:
    values = {
        "health.memory_total_bytes": health.memory_total_bytes,
        "health.disk_free_bytes": health.disk_free_bytes,
        "health.temperature_c": health.temperature_c,
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def _printable(text: str) -> str:
    """What an injector or a board reports is input like any other."""
    return "".join(c if c.isprintable() else "?" for c in text)
