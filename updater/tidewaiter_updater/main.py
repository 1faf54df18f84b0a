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

from tidewaiter_core import config, log
from tidewaiter_core.activation import listen_fds, listener
from tidewaiter_core.audit import Actor, AuditLog, AuditUnavailableError, Outcome
from tidewaiter_core.clock import Clock, SystemClock, boot_id, parse_utc
from tidewaiter_core.durable import InstanceLock, make_directory
from tidewaiter_core.errors import ConfigError, SecondInstanceError
from tidewaiter_core.heartbeat import Beat, Heartbeat
from tidewaiter_core.model import SlotName
from tidewaiter_core.notify import Notifier
from tidewaiter_core.settings import Settings
from tidewaiter_core.varlink import Server, group_id, user_id
from tidewaiter_core.workers import Stop, Worker, run

from tidewaiter_updater.boot import BootControl, BootEnvError
from tidewaiter_updater.boot.medium import FileMedium
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.consent import SitePolicy
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.hal_client import HalInterlock, HalView
from tidewaiter_updater.health import CheckList, MediumCheck, RootCheck
from tidewaiter_updater.health_system import (
    ClockCheck,
    DataCheck,
    DiskCheck,
    HalCheck,
    InjectorCheck,
    ServerCheck,
    UnitsCheck,
    WatchdogCheck,
)
from tidewaiter_updater.idle import IdleWatch
from tidewaiter_updater.image_identity import read_identity, read_serial
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.journal import Journal
from tidewaiter_updater.model import RunningRelease
from tidewaiter_updater.ports import Ports
from tidewaiter_updater.reboot import RebootFlag
from tidewaiter_updater.service import UpdaterService, authorize_agent, authorize_local
from tidewaiter_updater.slot_store import DeviceSlots
from tidewaiter_updater.sources import RelaySource
from tidewaiter_updater.state_files import StateFiles
from tidewaiter_updater.transaction import Site
from tidewaiter_updater.trust_call import TrustSession
from tidewaiter_updater.trust_wire import Repository

logger = logging.getLogger(__name__)

EXIT_SECOND_INSTANCE = 75
EXIT_CONFIG = 78
ENGINE_BEAT_S = 60.0
TIMESTAMP_LIMIT_BYTES = 16_384
MOUNTINFO = Path("/proc/self/mountinfo")
WATCHDOG_STATE = Path("/sys/class/watchdog/watchdog0/state")
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
    try:
        return serve(config.load(arguments.config, arguments.conf_dir))
    except (ConfigError, BootEnvError) as err:
        sys.stderr.write(f"tidewaiter-updater: {err}\n")
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
    boot = _boot_control(settings)
    floors = _floors(settings, identity, boot)
    _report_lost_floors(audit, floors)
    engine = Engine(
        _ports(settings, identity, clock=clock, audit=audit, boot=boot, floors=floors, stop=stop, beat=beat),
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
    agent, local = _servers(settings, engine, idle, inherited=inherited)

    def work(stopping: Stop) -> None:
        engine.run(stopping, beat=beat.step, beat_s=heartbeat.watchdog_interval_s)

    return [
        Worker("engine", work, engine.stop),
        Worker("agent-socket", agent.run),
        Worker("local-socket", local.run),
        Worker("idle", lambda stopping: idle.run(stopping, end=stop.set, connections=(agent, local))),
    ]


def _ports(
    settings: Settings,
    identity: RunningRelease,
    *,
    clock: Clock,
    audit: AuditLog,
    boot: BootControl,
    floors: FloorStore,
    stop: Stop,
    beat: Beat,
) -> Ports:
    paths = settings.paths
    state_dir = paths.updater_state_dir
    documents = StateFiles(state_dir)
    slots = DeviceSlots(
        _slot_paths(settings),
        store=IndexStore(state_dir / "index"),
        records=Journal(documents).slots,
        source_for=lambda name, control: RelaySource(
            paths.relay_socket, clock=clock, cancelled=control.cancelled, waiting=beat.step
        ),
        clock=clock,
        beat=lambda stage: beat.step(),
    )
    return Ports(
        clock=clock,
        boot=boot,
        documents=documents,
        trust=TrustSession(
            state_dir=state_dir,
            roots=_roots(settings),
            relay_socket=paths.relay_socket,
            floors=floors,
            clock=clock,
            cancelled=lambda: stop.is_set,
        ),
        floors=floors,
        slots=slots,
        interlock=HalInterlock(paths.hal_control_socket, paths.hal_monitor_socket, clock=clock),
        injector=HalView(paths.hal_monitor_socket, clock=clock),
        reboot=RebootFlag(paths.reboot_flag),
        audit=audit,
        health=_health(settings, identity, clock=clock, slots=slots, documents=documents, floors=floors),
    )


def _health(
    settings: Settings,
    identity: RunningRelease,
    *,
    clock: Clock,
    slots: DeviceSlots,
    documents: StateFiles,
    floors: FloorStore,
) -> CheckList:
    paths = settings.paths
    slot_paths = _slot_paths(settings)
    relay = RelaySource(paths.relay_socket, clock=clock)
    return CheckList(
        [
            RootCheck(identity, slot_path=slot_paths.__getitem__, mountinfo=MOUNTINFO),
            MediumCheck(slots),
            UnitsCheck(settings.updater.health_units),
            HalCheck(paths.hal_monitor_socket),
            InjectorCheck(paths.hal_monitor_socket),
            DataCheck(documents.unusable),
            ClockCheck(clock, floor_utc=lambda: floors.effective().time_utc),
            DiskCheck(paths.updater_state_dir),
            WatchdogCheck(WATCHDOG_STATE),
            ServerCheck(clock, reach=lambda: _reach(relay)),
        ]
    )


def _reach(relay: RelaySource) -> None:
    """An answer of the server, through the agent."""
    for _ in relay.metadata("timestamp.json", TIMESTAMP_LIMIT_BYTES):
        pass


def _roots(settings: Settings) -> Mapping[Repository, Path]:
    roots = {Repository.ONLINE: settings.updater.tuf_root}
    media = settings.updater.media_root
    return roots if media is None else {**roots, Repository.MEDIA: media}


def _slot_paths(settings: Settings) -> Mapping[SlotName, Path]:
    return {SlotName.A: settings.updater.slot_a, SlotName.B: settings.updater.slot_b}


def _boot_control(settings: Settings) -> BootControl:
    backend = settings.updater.boot_backend
    if backend != "simulated":
        raise ConfigError(
            f"updater.boot_backend = {backend!r} is not one of: simulated; the updater does not start"
        )
    medium = FileMedium(settings.updater.boot_env)
    medium.check_layout()
    cmdline = settings.updater.cmdline_file
    return SimulatedBoot(medium, cmdline=lambda: cmdline.read_text(encoding="utf-8"))


def _floors(settings: Settings, identity: RunningRelease, boot: BootControl) -> FloorStore:
    def boot_epoch() -> int:
        env = boot.read()
        return env.epoch if env else 0

    return FloorStore(
        settings.paths.updater_state_dir / "floor.json",
        image_file=settings.updater.floor_file,
        image_utc=parse_utc(identity.built_utc),
        boot_epoch=boot_epoch,
    )


def _report_lost_floors(audit: AuditLog, floors: FloorStore) -> None:
    if floors.lost is None:
        return
    logger.error("trust.floor-lost: %s", floors.lost)
    fields = {"code": "trust.floor-lost", "detail": floors.lost}
    _quietly(audit, "update.failed", fields, outcome=Outcome.SERIOUS)


def _servers(
    settings: Settings, engine: Engine, idle: IdleWatch, *, inherited: dict[str, socket.socket]
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
        UpdaterService(engine, is_local=True, active=idle.active).handlers(),
        authorize=authorize_local(
            operator_gid=group_id(peers.operator_group), updater_uid=user_id(peers.updater_user)
        ),
        name="updater-local",
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
