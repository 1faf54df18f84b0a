"""tidewaiter-updater: composition only. Reads like the table of the process.

Threads: main (heartbeat), engine (the one transaction), agent and local sockets with a thread per connection; a transfer
adds fetch, write and sync, a held lease one reader. The process has no network; signatures are verified in a child.

Exit codes: 0 stopped, or nothing to do for `updater.idle_exit_s`; 2 usage; 70 a worker failed; 75 a second instance;
78 wrong configuration, or a boot environment that cannot be changed safely.
"""

from __future__ import annotations

import argparse
import logging
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tidewaiter_core import config, heap, log
from tidewaiter_core.activation import listen_fds, listener
from tidewaiter_core.audit import Actor, AuditLog, AuditUnavailableError, Outcome
from tidewaiter_core.clock import Clock, SystemClock, boot_id
from tidewaiter_core.durable import InstanceLock, make_directory
from tidewaiter_core.errors import ConfigError, SecondInstanceError
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.notify import Notifier
from tidewaiter_core.settings import Settings
from tidewaiter_core.varlink import Server, group_id, user_id
from tidewaiter_core.workers import Stop, Worker, run

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.select import boot_loader
from tidewaiter_updater.consent import SitePolicy
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.idle import IdleWatch
from tidewaiter_updater.image_identity import read_identity, read_serial
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.service import UpdaterService, authorize_agent, authorize_local
from tidewaiter_updater.transaction import Site
from tidewaiter_updater.wiring import make_floors, make_ports

logger = logging.getLogger(__name__)

EXIT_SECOND_INSTANCE = 75
EXIT_CONFIG = 78
ENGINE_BEAT_S = 60.0
_SELF = Actor(kind="component", id="updater")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="tidewaiter-updater", description="Installs signed releases into the other slot; has no network."
    )
    parser.add_argument("--config", type=Path, default=config.DEFAULT_IMAGE_FILE, help="image configuration")
    parser.add_argument("--conf-dir", type=Path, default=config.DEFAULT_CONF_DIR, help="site configuration")
    arguments = parser.parse_args(argv)
    log.configure("updater")
    heap.return_large_blocks()  # before threads and large blocks: it bounds what a patch takes
    try:
        return serve(config.load(arguments.config, arguments.conf_dir))
    except (ConfigError, BootEnvError) as err:
        sys.stderr.write(f"tidewaiter-updater: {err.code}: {err}\n")
        return EXIT_CONFIG
    except SecondInstanceError as err:
        sys.stderr.write(f"tidewaiter-updater: {err}\n")
        return EXIT_SECOND_INSTANCE


def serve(settings: Settings) -> int:
    """Build everything and run until the end."""
    clock = SystemClock()
    notifier = Notifier.from_environment()
    state_dir = settings.paths.updater_state_dir
    make_directory(state_dir)
    serial = read_serial(settings.device.provisioned_file)
    with InstanceLock(state_dir / "lock"), _audit(settings, serial, clock) as audit:
        heartbeat = Heartbeat(clock, notifier, last_gasp=state_dir / "last_gasp")
        stop = Stop(clock)
        workers = _workers(settings, serial, clock=clock, audit=audit, heartbeat=heartbeat, stop=stop)
        _quietly(audit, "process.started", {})
        code = run(workers, heartbeat=heartbeat, notifier=notifier, stop=stop)
        _quietly(audit, "process.stopped", {"exit_code": code})
        return code


def _workers(
    settings: Settings, serial: str, *, clock: Clock, audit: AuditLog, heartbeat: Heartbeat, stop: Stop
) -> list[Worker]:
    beat = heartbeat.beat("engine", deadline_s=ENGINE_BEAT_S)
    identity = read_identity(settings.updater.image_identity)
    loader = boot_loader(settings.updater)
    floors = make_floors(settings, identity, loader.control)
    _report_lost_floors(audit, floors)
    bay = MediaBay()
    engine = Engine(
        make_ports(
            settings,
            identity,
            clock=clock,
            audit=audit,
            loader=loader,
            floors=floors,
            stop=stop,
            beat=beat,
            bay=bay,
        ),
        site=Site(
            serial=serial,
            product=settings.device.product,
            hw=settings.device.hw,
            consent=SitePolicy(settings.consent.update.value),
            max_fetch_bytes=settings.updater.max_fetch_bytes,
            updates=settings.features.updates,
        ),
        identity=identity,
        boot_id=boot_id(),
    )
    inherited = listen_fds()
    # Without socket activation nobody would start the process again.
    idle = IdleWatch(engine, clock, limit_s=settings.updater.idle_exit_s if inherited else 0)
    agent, local = _servers(settings, engine, idle, bay=bay, inherited=inherited)

    def work(stopping: Stop) -> None:
        engine.run(stopping, beat=beat.step, beat_s=heartbeat.watchdog_interval_s)

    return [
        Worker("engine", work, engine.stop),
        Worker("agent-socket", agent.run),
        Worker("local-socket", local.run),
        Worker("idle", lambda stopping: idle.run(stopping, end=stop.set, connections=(agent, local))),
    ]


def _report_lost_floors(audit: AuditLog, floors: FloorStore) -> None:
    if floors.lost is None:
        return
    logger.error("trust.floor-lost: %s", floors.lost)
    fields = {"code": "trust.floor-lost", "detail": floors.lost}
    _quietly(audit, "update.failed", fields, outcome=Outcome.SERIOUS)


def _servers(
    settings: Settings,
    engine: Engine,
    idle: IdleWatch,
    *,
    bay: MediaBay,
    inherited: dict[str, socket.socket],
) -> tuple[Server, Server]:
    paths, peers = settings.paths, settings.peers
    agent = Server(
        listener("updater", paths.updater_socket, inherited=inherited),
        UpdaterService(engine, is_local=False, active=idle.active).handlers(),
        authorize=authorize_agent(user_id(peers.agent_user)),
        name="updater-agent",
    )
    local = Server(
        listener(
            "updater-local", paths.updater_local_socket, group=peers.operator_group, inherited=inherited
        ),
        UpdaterService(engine, is_local=True, active=idle.active, bay=bay).handlers(),
        authorize=authorize_local(
            operator_gid=group_id(peers.operator_group), updater_uid=user_id(peers.updater_user)
        ),
        name="updater-local",
        max_descriptors=1,
    )
    return agent, local


def _audit(settings: Settings, serial: str, clock: Clock) -> AuditLog:
    return AuditLog.open(
        settings.paths.audit_dir / "updater",
        component="updater",
        clock=clock,
        origin=f"tidewaiter/device/{serial}/updater",
        boot_id=boot_id(),
        budget_bytes=settings.audit.budget_bytes_updater,
        segment_bytes=settings.audit.segment_bytes,
    )


def _quietly(
    audit: AuditLog, kind: str, fields: Mapping[str, object], *, outcome: Outcome = Outcome.OK
) -> None:
    """Record what happened anyway: start and end of the process never wait for the chain."""
    try:
        audit.append(kind, actor=_SELF, outcome=outcome, fields=fields)
    except AuditUnavailableError as err:
        logger.warning("%s was not recorded: %s", kind, err)


if __name__ == "__main__":
    sys.exit(main())
