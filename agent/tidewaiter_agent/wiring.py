"""The rows of the table in `main`: how one worker, one socket, one line to the server is made from the configuration."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import tidewaiter_core
from tidewaiter_core import activation, config, strictjson
from tidewaiter_core.clock import Clock, ClockState, TimeFloor, parse_utc
from tidewaiter_core.errors import ConfigError, TidewaiterError
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.settings import Settings
from tidewaiter_core.varlink import Server, allow_users, group_id
from tidewaiter_core.workers import Worker

from tidewaiter_agent import inventory, proxy
from tidewaiter_agent.courier import CourierWorker
from tidewaiter_agent.identity import Identity
from tidewaiter_agent.poller import Poller
from tidewaiter_agent.readings import Devices, Machine
from tidewaiter_agent.relay import Relay
from tidewaiter_agent.service import INTERFACE, LocalService, authorize_operator
from tidewaiter_agent.telemetry import Telemetry
from tidewaiter_agent.transport import HttpsTransport, Limits
from tidewaiter_agent.updates import Updates

logger = logging.getLogger(__name__)

POLLER_DEADLINE_S = 180.0
COURIER_DEADLINE_S = 180.0
ACCEPT_DEADLINE_S = 30.0
TELEMETRY_DEADLINE_S = 60.0
UPDATES_DEADLINE_S = 400.0


def poll_worker(poller: Poller, heartbeat: Heartbeat) -> Worker:
    """Asks the server."""
    beat = heartbeat.beat("poller", deadline_s=POLLER_DEADLINE_S)
    return Worker("poller", lambda stop: poller.run(stop, beat), on_stop=poller.poll_now)


def courier_thread(courier: CourierWorker, heartbeat: Heartbeat) -> Worker:
    """Empties the outbox."""
    beat = heartbeat.beat("outbox", deadline_s=COURIER_DEADLINE_S)
    return Worker("outbox", lambda stop: courier.run(stop, beat), on_stop=courier.wake)


def updates_worker(updates: Updates, heartbeat: Heartbeat) -> Worker:
    """Carries the action. Not required for the watchdog: Check has its own limit, the 300 s of a whole trust session."""
    beat = heartbeat.beat("updates", deadline_s=UPDATES_DEADLINE_S, required=False)
    return Worker("updates", lambda stop: updates.run(stop, beat), on_stop=updates.wake)


def telemetry_worker(telemetry: Telemetry, heartbeat: Heartbeat) -> Worker:
    """Takes readings."""
    beat = heartbeat.beat("telemetry", deadline_s=TELEMETRY_DEADLINE_S)
    return Worker("telemetry", lambda stop: telemetry.run(stop, beat))


def relay_server(
    settings: Settings, relay: Relay, heartbeat: Heartbeat, inherited: dict[str, socket.socket]
) -> Worker:
    """Repository bytes for the updater's user, nobody else."""
    beat = heartbeat.beat("relay", deadline_s=ACCEPT_DEADLINE_S)
    server = Server(
        activation.listener("relay", settings.paths.relay_socket, inherited=inherited),
        {"io.tidewaiter.Relay": relay.handlers()},
        authorize=allow_users(settings.peers.updater_user),
        name="relay",
        beat=beat.step,
    )
    return Worker("relay", server.run)


def local_server(
    settings: Settings, service: LocalService, heartbeat: Heartbeat, inherited: dict[str, socket.socket]
) -> Worker:
    """Status and consent for people at the device."""
    beat = heartbeat.beat("local", deadline_s=ACCEPT_DEADLINE_S)
    group = settings.peers.operator_group
    server = Server(
        activation.listener("local", settings.paths.agent_local_socket, group=group, inherited=inherited),
        {INTERFACE: service.handlers()},
        authorize=authorize_operator(group_id(group), group),
        name="local",
        beat=beat.step,
    )
    return Worker("local", server.run)


def transport_for(
    settings: Settings,
    *,
    identity: Identity,
    clock: Clock,
    floor: TimeFloor,
    routes: Callable[[], Sequence[proxy.Route]],
    limits: Limits,
    pool_size: int,
) -> HttpsTransport:
    """One line to the server."""
    return HttpsTransport(
        url=settings.server.url,
        ca_file=settings.server.ca_file,
        identity=identity,
        routes=routes,
        clock=clock,
        limits=limits,
        clock_unset=lambda: floor.state(clock) is ClockState.UNSET,
        user_agent=f"tidewaiter-agent/{tidewaiter_core.__version__}",
        pool_size=pool_size,
    )


def route_reader(image_file: Path, conf_dir: Path, settings: Settings) -> Callable[[], Sequence[proxy.Route]]:
    """The proxy routes as the site's files say now: a changed proxy needs no restart. A broken file keeps the last good ones."""
    last = proxy.parse_routes(settings.network.proxy_route)

    def routes() -> Sequence[proxy.Route]:
        nonlocal last
        try:
            last = proxy.parse_routes(config.load(image_file, conf_dir).network.proxy_route)
        except TidewaiterError as err:
            logger.warning("proxy routes are not re-read, the last ones stay in use: %s", err)
        return last

    return routes


def inventory_of(settings: Settings, serial: str, devices: Devices, machine: Machine) -> Mapping[str, str]:
    """What this device tells about itself now."""
    return inventory.config_data(
        settings,
        serial=serial,
        agent_version=tidewaiter_core.__version__,
        updater=devices.updater_status(),
        injector=devices.injector_identity(),
        health=machine.health(),
        private=inventory.private_facts(settings, machine),
    )


def image_time(image_identity: Path) -> datetime:
    """When this image was built: the clock cannot be before that. Without an identity file nothing is known."""
    try:
        document = strictjson.loads(image_identity.read_bytes(), limit_bytes=64 * 1024, depth=8)
        return parse_utc(document["built_utc"])
    except (OSError, ValueError, KeyError, TypeError) as err:
        logger.warning("%s: no build time (%s); a wrong clock is noticed later", image_identity, err)
        return datetime(1970, 1, 1, tzinfo=UTC)


def make_private(directory: Path) -> None:
    """The state folder, 0700; ConfigError names what is in the way."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as err:
        raise ConfigError(
            f"{directory}: expected a folder this agent may write ({err}); it does not start"
        ) from err
