"""Regular readings for the server: one snapshot per interval into the outbox. Missing is sent as missing, with its reason."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.errors import StateWriteError
from tidewaiter_core.heartbeat import Beat
from tidewaiter_core.workers import Stop

from tidewaiter_agent.errors import OutboxFullError
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.outbox_item import Item, ItemClass
from tidewaiter_agent.readings import Devices, InjectorState, Machine, Missing

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Takes snapshots."""

    machine: Machine
    devices: Devices
    outbox: Outbox
    clock: Clock
    boot_id: str
    stamp: Callable[[], Mapping[str, Any]]
    interval_s: int

    def run(self, stop: Stop, beat: Beat) -> None:
        """One snapshot per interval; the first one after one interval, when the rest of the device has started."""
        while not beat.wait(stop.event, self.interval_s):
            self.take()

    def take(self) -> None:
        """One snapshot; a full disk costs this snapshot and nothing else."""
        body = self.snapshot()
        item = Item(
            id=f"{self.boot_id}-{int(self.clock.boottime_s() * 1000)}",
            kind=ItemClass.TELEMETRY,
            rel="tw:telemetry",
            path_args={},
            body=body,
            stamp=self.stamp(),
        )
        try:
            self.outbox.put(item)
        except (OutboxFullError, StateWriteError) as err:
            logger.warning("telemetry snapshot lost: %s", err)

    def snapshot(self) -> dict[str, Any]:
        """The readings now."""
        health = self.machine.health()
        updater = self.devices.updater_status()
        stats = self.outbox.stats()
        body: dict[str, Any] = {
            **self.stamp(),
            "at_utc": format_utc(self.clock.now_utc()),
            "boot_id": self.boot_id,
            "uptime_s": health.uptime_s,
            "cpu_ratio": health.cpu_ratio,
            "memory_bytes": health.memory_used_bytes,
            "disk_free_bytes": health.disk_free_bytes,
            "temperature_c": health.temperature_c,
            "injector": _injector(self.devices.injector_state()),
            "outbox": {kind.value: entry.items for kind, entry in stats.items()},
        }
        if isinstance(updater, Missing):
            body |= {"release": None, "slot": None, "phase": None, "updater_reason": updater.reason}
        else:
            body |= {"release": updater.running_version, "slot": updater.booted, "phase": updater.phase}
        return body


def _injector(state: InjectorState | Missing) -> dict[str, Any]:
    if isinstance(state, Missing):
        return {"value": None, "quality": "na", "age_s": None, "reason": state.reason}
    return {
        "value": state.value,
        "quality": state.quality,
        "age_s": state.age_s,
        "link": state.link,
        "reason": state.reason,
    }
