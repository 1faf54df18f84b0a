"""tidewaiter-agent: the only process of the device with a network. Composition: configuration -> adapters -> services -> workers.

Exit codes: 0 stopped in order, 2 usage, 70 a worker failed, 75 a second instance, 78 configuration, identity or state unusable.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tidewaiter_core
from tidewaiter_core import activation, config, log, workers
from tidewaiter_core.audit import AuditLog
from tidewaiter_core.clock import Clock, SystemClock, TimeFloor, boot_id, format_utc
from tidewaiter_core.durable import InstanceLock
from tidewaiter_core.errors import ConfigError, SecondInstanceError, StateError
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.notify import Notifier
from tidewaiter_core.settings import Settings
from tidewaiter_core.workers import Stop, Worker

from tidewaiter_agent import identity as identities
from tidewaiter_agent import proxy
from tidewaiter_agent.action import ActionBook
from tidewaiter_agent.consent import ConsentStore
from tidewaiter_agent.consent_values import ConsentRecord
from tidewaiter_agent.courier import Courier, CourierWorker
from tidewaiter_agent.errors import IdentityError, NetError
from tidewaiter_agent.limits import TokenBucket
from tidewaiter_agent.links import ArtifactTable, link_rule, repository_map
from tidewaiter_agent.origin import LinkTable, Origin
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.poller import Poller
from tidewaiter_agent.readings import Devices, Machine
from tidewaiter_agent.relay import Relay
from tidewaiter_agent.service import Bulletin, LocalService
from tidewaiter_agent.shipping import Shipper
from tidewaiter_agent.status import StatusBoard
from tidewaiter_agent.telemetry import Telemetry
from tidewaiter_agent.trail import Trail
from tidewaiter_agent.transport import Limits
from tidewaiter_agent.updater_client import VarlinkUpdater
from tidewaiter_agent.updates import Updates
from tidewaiter_agent.wiring import (
    courier_thread,
    image_time,
    inventory_of,
    local_server,
    make_private,
    poll_worker,
    relay_server,
    route_reader,
    telemetry_worker,
    transport_for,
    updates_worker,
)

EXIT_CONFIG = 78
AUDIT_COMPONENTS = ("agent", "hal", "updater")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the daemon."""
    parser = argparse.ArgumentParser(
        prog="tidewaiter-agent", description="Polls the server, relays updates, reports."
    )
    parser.add_argument(
        "--config", type=Path, default=config.DEFAULT_IMAGE_FILE, help="image configuration file"
    )
    parser.add_argument(
        "--conf-dir", type=Path, default=config.DEFAULT_CONF_DIR, help="folder of the site's files"
    )
    parser.add_argument("--version", action="version", version=tidewaiter_core.__version__)
    arguments = parser.parse_args(argv)
    log.configure("agent")
    try:
        return run(arguments.config, arguments.conf_dir)
    except SecondInstanceError as err:
        sys.stderr.write(f"tidewaiter-agent: {err}\n")
        return workers.EXIT_SECOND_INSTANCE
    except (ConfigError, IdentityError, StateError, NetError) as err:
        sys.stderr.write(f"tidewaiter-agent: {err.code}: {err}\n")
        return EXIT_CONFIG


def run(image_file: Path, conf_dir: Path) -> int:
    """Read the configuration, build the process, run it until it is told to stop."""
    settings = config.load(image_file, conf_dir)
    clock = SystemClock()
    notifier = Notifier.from_environment()
    state_dir = settings.paths.agent_state_dir
    make_private(state_dir)
    with ExitStack() as stack:
        stack.enter_context(InstanceLock(state_dir / "lock"))
        agent = build(
            settings, clock=clock, notifier=notifier, routes=route_reader(image_file, conf_dir, settings)
        )
        stack.callback(agent.close)
        return agent.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """The built process."""

    workers: Sequence[Worker]
    heartbeat: Heartbeat
    notifier: Notifier
    trail: Trail
    closers: Sequence[Callable[[], None]]

    def run(self, stop: Stop | None = None) -> int:
        """Until SIGTERM, SIGINT or `stop`."""
        self.trail.started(tidewaiter_core.__version__)
        code = workers.run(self.workers, heartbeat=self.heartbeat, notifier=self.notifier, stop=stop)
        self.trail.stopped(tidewaiter_core.__version__)
        return code

    def close(self) -> None:
        """Drop connections, close the audit log."""
        for close in self.closers:
            close()


def build(
    settings: Settings, *, clock: Clock, notifier: Notifier, routes: Callable[[], Sequence[proxy.Route]]
) -> Agent:
    """Adapters, services and workers of this process; reads like a table."""
    paths, state_dir = settings.paths, settings.paths.agent_state_dir
    serial, _ = identities.device_serial(settings.device.provisioned_file)
    identity = identities.load(state_dir / "keys" / "ldevid", device_id=serial)
    boot = boot_id()
    floor = TimeFloor(state_dir / "time-floor.json", image_utc=image_time(settings.updater.image_identity))
    audit = AuditLog.open(
        paths.audit_dir / "agent",
        component="agent",
        clock=clock,
        origin=f"tidewaiter/device/{serial}/agent",
        boot_id=boot,
        budget_bytes=settings.audit.budget_bytes_agent,
        segment_bytes=settings.audit.segment_bytes,
        clock_state=lambda: floor.state(clock),
    )
    trail = Trail(audit, clock)
    bulletin = Bulletin(clock)

    def stamp() -> Mapping[str, Any]:
        return {
            "created_utc": format_utc(clock.now_utc()),
            "boot_id": boot,
            "boottime_ms": int(clock.boottime_s() * 1000),
            "clock_state": str(floor.state(clock)),
        }

    def record_consent(record: ConsentRecord) -> None:
        trail.consent(record)
        bulletin.post(record.kind, {"digest": record.digest, "detail": record.detail})

    origin = Origin(settings.server.url, settings.server.tenant, serial)
    links, artifacts = LinkTable(), ArtifactTable()
    network = settings.network
    limits = Limits(
        connect_timeout_s=network.connect_timeout_s,
        request_timeout_s=network.request_timeout_s,
        up=TokenBucket(clock, network.max_up_kib_per_s),
        down=TokenBucket(clock, network.max_down_kib_per_s),
    )
    poll_line, outbox_line, relay_line = (
        transport_for(
            settings,
            identity=identity,
            clock=clock,
            floor=floor,
            routes=routes,
            limits=limits,
            pool_size=size,
        )
        for size in (1, 1, 8)
    )
    outbox = Outbox(state_dir / "outbox", on_finding=trail.outbox)
    shipper = Shipper(
        {component: paths.audit_dir / component for component in AUDIT_COMPONENTS},
        state_file=state_dir / "cursors.json",
        transport=outbox_line,
        on_finding=trail.outbox,
    )
    courier = Courier(outbox, outbox_line, origin, links, shipper, clock)
    courier_worker = CourierWorker(courier)
    outbox.on_put(courier_worker.wake)
    consent = ConsentStore(
        state_dir / "consent.json",
        clock=clock,
        boot_id=boot,
        ask_timeout_s=settings.consent.ask_timeout_s,
        grant_max_s=settings.consent.grant_max_s,
        on_record=record_consent,
    )
    updates = Updates(
        book=ActionBook(state_dir / "action.json"),
        updater=VarlinkUpdater(paths.updater_socket),
        outbox=outbox,
        consent=consent,
        clock=clock,
        stamp=stamp,
        policy=settings.consent.update,
        on_change=bulletin.post,
    )
    machine = Machine(state_dir, boottime_s=clock.boottime_s)
    devices = Devices(hal_socket=paths.hal_monitor_socket, updater_socket=paths.updater_socket)
    poller = Poller(
        transport=poll_line,
        origin=origin,
        links=links,
        link_rule=link_rule(settings.server, origin),
        artifacts=artifacts,
        ignored_rels=frozenset() if settings.features.telemetry else frozenset({"tw:telemetry"}),
        updates=updates if settings.features.updates else None,
        courier=courier,
        trail=trail,
        clock=clock,
        poll=settings.poll,
        config_data=lambda: inventory_of(settings, serial, devices, machine),
        on_success=courier_worker.wake,
        identity_finding=lambda: identity.finding(floor.trusted_now(clock)),
    )
    telemetry = Telemetry(
        machine=machine,
        devices=devices,
        outbox=outbox,
        clock=clock,
        boot_id=boot,
        stamp=stamp,
        interval_s=settings.telemetry.interval_s,
    )
    board = StatusBoard(
        device_id=serial,
        agent_version=tidewaiter_core.__version__,
        url=settings.server.url,
        clock=clock,
        clock_state=lambda: str(floor.state(clock)),
        identity_finding=lambda: identity.finding(floor.trusted_now(clock)),
        poller=poller,
        courier=courier,
        outbox=outbox,
        shipper=shipper,
        audit=audit,
        consent=consent,
        action=lambda: updates.action,
        started_s=clock.boottime_s(),
    )
    service = LocalService(
        status=board.document,
        consent=consent,
        poll_now=poller.poll_now,
        on_answer=updates.wake,
        bulletin=bulletin,
    )
    heartbeat = Heartbeat(clock, notifier, last_gasp=state_dir / "last-gasp")
    relay = Relay(relay_line, repository_map(settings.server.repository, origin, artifacts))
    inherited = activation.listen_fds()
    crew = [
        poll_worker(poller, heartbeat),
        courier_thread(courier_worker, heartbeat),
        updates_worker(updates, heartbeat),
        relay_server(settings, relay, heartbeat, inherited),
        local_server(settings, service, heartbeat, inherited),
    ]
    if settings.features.telemetry:
        crew.append(telemetry_worker(telemetry, heartbeat))
    return Agent(
        workers=crew,
        heartbeat=heartbeat,
        notifier=notifier,
        trail=trail,
        closers=[poll_line.close, outbox_line.close, relay_line.close, audit.close],
    )


if __name__ == "__main__":
    sys.exit(main())
