"""Readings of this computer, the injector and the updater: a value, or the reason why there is none. Never an old value.

psutil is imported here only. Each source is asked at most once per call, with a short time limit.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.varlink import Client

from tidewaiter_agent.updater_client import UpdaterStatus, status_from

logger = logging.getLogger(__name__)

ASK_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no reading, and why."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """One board of the injector and its firmware."""

    name: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectorIdentity:
    """What the injector says it is."""

    vendor: str
    model: str
    serial: str
    firmware: tuple[Board, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectorState:
    """The injector's state with its quality."""

    value: str | None
    quality: str
    age_s: float | None
    link: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Resources of this computer; None where the kernel does not say."""

    cpu_ratio: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    disk_free_bytes: int | None
    temperature_c: float | None
    uptime_s: int


class Machine:
    """psutil, with every value optional: a sandbox or a small board may hide any of them."""

    def __init__(self, state_dir: Path, *, boottime_s: Callable[[], float]) -> None:
        self._state_dir = state_dir
        self._boottime_s = boottime_s
        # The first call has nothing to compare with and returns 0.0.
        _try(lambda: psutil.cpu_percent(interval=None))

    def health(self) -> Health:
        """Resources now; cpu_ratio covers the time since the last call."""
        memory = _try(psutil.virtual_memory)
        disk = _try(lambda: psutil.disk_usage(str(self._state_dir)))
        cpu = _try(lambda: psutil.cpu_percent(interval=None))
        return Health(
            cpu_ratio=None if cpu is None else round(cpu / 100, 3),
            memory_used_bytes=None if memory is None else memory.total - memory.available,
            memory_total_bytes=None if memory is None else memory.total,
            disk_free_bytes=None if disk is None else disk.free,
            temperature_c=_try(_hottest_c),
            uptime_s=int(self._boottime_s()),
        )

    def host_name(self) -> str:
        """Only asked for when the site allows it."""
        return socket.gethostname()

    def addresses(self) -> tuple[str, ...]:
        """IP addresses of this computer, without loopback and link-local ones; only when the site allows it."""
        return tuple(
            entry.address
            for entries in psutil.net_if_addrs().values()
            for entry in entries
            if entry.family in (socket.AF_INET, socket.AF_INET6)
            and not entry.address.startswith(("127.", "::1", "fe80:", "169.254."))
        )

    def hardware_addresses(self) -> tuple[str, ...]:
        """MAC addresses; only when the site allows it."""
        return tuple(
            entry.address
            for entries in psutil.net_if_addrs().values()
            for entry in entries
            if entry.family == psutil.AF_LINK and entry.address != "00:00:00:00:00:00"
        )


class Devices:
    """The injector (through the hal) and the updater, asked for readings only."""

    def __init__(self, *, hal_socket: Path, updater_socket: Path) -> None:
        self._hal_socket = hal_socket
        self._updater_socket = updater_socket

    def injector_identity(self) -> InjectorIdentity | Missing:
        """Who the injector is."""
        reply = _ask(self._hal_socket, "io.tidewaiter.Injector.GetIdentity")
        if isinstance(reply, Missing):
            return reply
        identity = reply["identity"]
        return InjectorIdentity(
            vendor=identity["vendor"],
            model=identity["model"],
            serial=identity["serial"],
            firmware=tuple(
                Board(name=board["board"], version=board["version"]) for board in identity["firmware"]
            ),
        )

    def injector_state(self) -> InjectorState | Missing:
        """What the injector does, as the hal knows it."""
        reply = _ask(self._hal_socket, "io.tidewaiter.Injector.GetSnapshot")
        if isinstance(reply, Missing):
            return reply
        snapshot = reply["snapshot"]
        state = snapshot["state"]
        age_ms = state.get("age_ms")
        return InjectorState(
            value=state.get("value"),
            quality=state["quality"],
            age_s=None if age_ms is None else age_ms / 1000,
            link=snapshot["link"],
            reason=snapshot["link_reason"],
        )

    def updater_status(self) -> UpdaterStatus | Missing:
        """Where the updater stands."""
        reply = _ask(self._updater_socket, "io.tidewaiter.Updater.GetStatus")
        return reply if isinstance(reply, Missing) else status_from(reply["status"])


def _ask(path: Path, method: str) -> Mapping[str, Any] | Missing:
    client = Client(path, timeout_s=ASK_TIMEOUT_S)
    try:
        return client.call(method)
    except TidewaiterError as err:
        logger.debug("%s: %s", method, err)
        return Missing(err.code)
    finally:
        client.close()


def _hottest_c() -> float | None:
    sensors: Mapping[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    values = [entry.current for entries in sensors.values() for entry in entries if entry.current]
    return round(max(values), 1) if values else None


def _try(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (OSError, psutil.Error, NotImplementedError, ValueError) as err:
        logger.debug("reading not available: %s", err)
        return None
