"""tidewaiter-hal: composition only. Reads like the table of the process.

Threads: main (heartbeat), port, lease, logs, monitor and control with a thread per connection.
"""

import argparse
import logging
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidewaiter_core import config, log
from tidewaiter_core.activation import listen_fds, listener
from tidewaiter_core.audit import Actor, AuditLog, Outcome
from tidewaiter_core.clock import Clock, SystemClock, boot_id
from tidewaiter_core.durable import InstanceLock, load_document
from tidewaiter_core.errors import ConfigError, SecondInstanceError, StateError, TidewaiterError
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.notify import Notifier
from tidewaiter_core.settings import Settings
from tidewaiter_core.varlink import Server, allow_any, allow_group, allow_users
from tidewaiter_core.workers import Stop, Worker, run

from tidewaiter_hal import registry, service
from tidewaiter_hal.conversation import Conversation
from tidewaiter_hal.errors import DriverNotAllowedError, DriverTableError, NoDriverError
from tidewaiter_hal.events import EventBus
from tidewaiter_hal.injector import DriverType
from tidewaiter_hal.interlock import Policy
from tidewaiter_hal.lease import LeaseKeeper, Recorder
from tidewaiter_hal.link import BACKOFF_CAP_S
from tidewaiter_hal.logs import LinkRecorder, LogReader
from tidewaiter_hal.picture import Picture
from tidewaiter_hal.plausibility import Plausibility
from tidewaiter_hal.port_thread import Line, NoLine, PortThread
from tidewaiter_hal.ports import SerialOpener, port_info
from tidewaiter_hal.state_file import StateFile
from tidewaiter_hal.view import InjectorView

logger = logging.getLogger(__name__)

EXIT_SECOND_INSTANCE = 75
EXIT_CONFIG = 78
PORT_BEAT_S = BACKOFF_CAP_S
WORKER_BEAT_S = 8.0
TURN_S = 1.0
LOWEST_BAUD = 9600


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tidewaiter-hal", description="Owns the injector's serial line; answers on two Unix sockets."
    )
    parser.add_argument("--config", type=Path, default=config.DEFAULT_IMAGE_FILE, help="image configuration")
    parser.add_argument("--conf-dir", type=Path, default=config.DEFAULT_CONF_DIR, help="site configuration")
    arguments = parser.parse_args(argv)
    log.configure("hal")
    try:
        settings = config.load(arguments.config, arguments.conf_dir)
        return serve(settings)
    except (ConfigError, StateError) as err:
        sys.stderr.write(f"tidewaiter-hal: {err}\n")
        return EXIT_CONFIG
    except SecondInstanceError as err:
        sys.stderr.write(f"tidewaiter-hal: {err}\n")
        return EXIT_SECOND_INSTANCE


def serve(settings: Settings) -> int:
    """Build everything and run until the end."""
    clock = SystemClock()
    notifier = Notifier.from_environment()
    state_dir = settings.paths.hal_state_dir
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with InstanceLock(state_dir / "lock"), _audit(settings, clock) as audit:
        heartbeat = Heartbeat(clock, notifier, last_gasp=state_dir / "last_gasp")
        workers = _workers(settings, clock=clock, audit=audit, heartbeat=heartbeat)
        _quietly(audit, "process.started", {})
        code = run(workers, heartbeat=heartbeat, notifier=notifier)
        _quietly(audit, "process.stopped", {"exit_code": code})
        return code


def _workers(settings: Settings, *, clock: Clock, audit: AuditLog, heartbeat: Heartbeat) -> list[Worker]:
    driver, problem = _driver(settings)
    events = EventBus()
    picture = Picture(
        driver=driver.name if driver else None,
        plausibility=Plausibility(settings.hal.idle_pressure_limit_kpa),
        events=events,
    )
    state = StateFile(settings.paths.hal_state_dir / "state.json")
    links = LinkRecorder(events.subscribe(), chain=audit, driver=picture.knowledge.driver)
    port = _port(settings, driver, clock=clock, picture=picture, events=events)
    line: Line = port or NoLine(picture, problem)
    keeper = LeaseKeeper(
        line,
        state=state,
        policy=Policy(
            idle_pressure_limit_kpa=settings.hal.idle_pressure_limit_kpa,
            quiet_after_injection_s=settings.hal.quiet_after_injection_s,
            bench=settings.hal.bench,
            static_by_state=driver.static_by_state if driver else False,
        ),
        clock=clock,
        recorder=audit,
        host_boot=boot_id(),
        random_bytes=os.urandom,
    )
    view = InjectorView(line, clock=clock, events=events, lease=keeper.current)
    logs = LogReader(line, state=state, chain=audit, events=events)
    monitor, control = _servers(settings, view=view, keeper=keeper, clock=clock)

    lease_beat = heartbeat.beat("lease", deadline_s=WORKER_BEAT_S)
    logs_beat = heartbeat.beat("logs", deadline_s=WORKER_BEAT_S, required=False)

    def watch_lease(stop: Stop) -> None:
        while not stop.wait(TURN_S):
            keeper.tick()
            lease_beat.step()

    def read_logs(stop: Stop) -> None:
        while not stop.wait(TURN_S):
            links.turn()
            logs.turn()
            logs_beat.step()

    workers = [
        Worker("lease", watch_lease),
        Worker("logs", read_logs),
        Worker("monitor", monitor.run),
        Worker("control", control.run),
    ]
    if port is not None:
        port_beat = heartbeat.beat("port", deadline_s=PORT_BEAT_S)
        workers.insert(0, Worker("port", lambda stop: port.run(stop.event, port_beat), port.wake))
    return workers


def _driver(settings: Settings) -> tuple[DriverType | None, str]:
    """The driver, or why there is none: the service runs without one and the interlock denies."""
    try:
        driver = registry.load(
            settings.hal.driver,
            [(allowed.name, allowed.distribution) for allowed in settings.hal.driver_allow],
            port=port_info(settings.hal.device),
            accepted_side_effects=settings.hal.accept_side_effects,
        )
    except (NoDriverError, DriverNotAllowedError, DriverTableError) as err:
        logger.error("%s", err)  # noqa: TRY400 - the message says all
        return None, err.code
    if settings.hal.baud not in driver.baud_rates or settings.hal.baud < LOWEST_BAUD:
        rates = ", ".join(str(rate) for rate in sorted(driver.baud_rates))
        raise ConfigError(
            f"hal.baud = {settings.hal.baud} is not one of {rates} that driver {driver.name} supports"
        )
    return driver, ""


def _port(
    settings: Settings,
    driver: DriverType | None,
    *,
    clock: Clock,
    picture: Picture,
    events: EventBus,
) -> PortThread | None:
    if driver is None:
        return None
    line = driver.line(settings.hal.baud)
    rng = random.Random()  # noqa: S311 - spreads retries and the first sequence number, guards nothing
    return PortThread(
        SerialOpener(settings.hal.device, line, node_must_be_private=not settings.hal.bench),
        picture=picture,
        clock=clock,
        conversation=lambda write, settled: Conversation(
            driver, line, picture=picture, events=events, rng=rng, write=write, settled=settled
        ),
    )


def _servers(
    settings: Settings, *, view: InjectorView, keeper: LeaseKeeper, clock: Clock
) -> tuple[Server, Server]:
    inherited = listen_fds()
    paths, peers = settings.paths, settings.peers
    paths.hal_monitor_socket.parent.mkdir(parents=True, exist_ok=True)
    monitor = Server(
        listener("monitor", paths.hal_monitor_socket, group=peers.monitor_group, inherited=inherited),
        service.monitor_interfaces(view, keeper, clock),
        authorize=allow_any(
            allow_users(peers.agent_user, peers.updater_user), allow_group(peers.monitor_group)
        ),
        name="hal-monitor",
    )
    control = Server(
        listener("control", paths.hal_control_socket, inherited=inherited),
        service.control_interfaces(keeper),
        authorize=allow_users(peers.updater_user),
        name="hal-control",
    )
    return monitor, control


def _audit(settings: Settings, clock: Clock) -> AuditLog:
    return AuditLog.open(
        settings.paths.audit_dir / "hal",
        component="hal",
        clock=clock,
        origin=f"tidewaiter/device/{_serial(settings.device.provisioned_file)}/hal",
        boot_id=boot_id(),
        budget_bytes=settings.audit.budget_bytes_hal,
        segment_bytes=settings.audit.segment_bytes,
    )


def _serial(file: Path) -> str:
    document = load_document(file, schema=1) or {}
    return str(document.get("serial", "unprovisioned"))


def _quietly(audit: Recorder, kind: str, fields: Mapping[str, object]) -> None:
    """Record what has happened anyway; reading the injector never waits for the chain."""
    try:
        audit.append(kind, actor=_SELF, outcome=Outcome.OK, fields=fields)
    except TidewaiterError as err:
        logger.warning("%s was not recorded: %s", kind, err)


_SELF = Actor(kind="component", id="hal")

if __name__ == "__main__":
    sys.exit(main())
