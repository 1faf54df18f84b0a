"""The device behind the engine: every port with the adapter that the configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tidewaiter_core.audit import AuditLog
from tidewaiter_core.clock import Clock, boot_id, parse_utc
from tidewaiter_core.heartbeat import Beat
from tidewaiter_core.model import SlotName
from tidewaiter_core.settings import Settings
from tidewaiter_core.workers import Stop

from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.boot.select import BootLoader
from tidewaiter_updater.data_sets import device_data_sets
from tidewaiter_updater.evidence import SystemEvidence
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
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.journal import Journal
from tidewaiter_updater.kernel_slots import KernelSlots
from tidewaiter_updater.kernels import KernelImages
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.model import RunningRelease, is_medium
from tidewaiter_updater.ports import Control, DataSets, Kernels, KernelsInSlots, NoEvidence, Ports, SlotStore
from tidewaiter_updater.reboot import RebootFlag
from tidewaiter_updater.slot_store import DeviceSlots
from tidewaiter_updater.sources import RelaySource, Source
from tidewaiter_updater.state_files import StateFiles
from tidewaiter_updater.trust_call import TrustSession
from tidewaiter_updater.trust_wire import Repository

TIMESTAMP_LIMIT_BYTES: Final = 16_384
MOUNTINFO: Final = Path("/proc/self/mountinfo")
WATCHDOG_STATE: Final = Path("/sys/class/watchdog/watchdog0/state")


def make_ports(
    settings: Settings,
    identity: RunningRelease,
    *,
    clock: Clock,
    audit: AuditLog,
    loader: BootLoader,
    floors: FloorStore,
    stop: Stop,
    beat: Beat,
    bay: MediaBay,
) -> Ports:
    paths = settings.paths
    state_dir = paths.updater_state_dir
    documents = StateFiles(state_dir)
    sets = device_data_sets(settings, identity, boot=loader.control, clock=clock)

    def source_for(name: str, control: Control) -> Source:
        if is_medium(name):
            return bay.medium(name)
        return RelaySource(paths.relay_socket, clock=clock, cancelled=control.cancelled, waiting=beat.step)

    def alive(stage: str) -> None:
        beat.step()

    slots: SlotStore = DeviceSlots(
        _slot_paths(settings),
        store=IndexStore(state_dir / "index"),
        records=Journal(documents).slots,
        source_for=source_for,
        clock=clock,
        beat=alive,
    )
    kernels: Kernels = KernelsInSlots()
    if loader.esp is not None:
        images = KernelImages(loader.esp, source_for=source_for, clock=clock, beat=alive)
        slots, kernels = KernelSlots(slots, images), images
    return Ports(
        clock=clock,
        boot=loader.control,
        documents=documents,
        trust=TrustSession(
            state_dir=state_dir,
            roots=_roots(settings),
            relay_socket=paths.relay_socket,
            floors=floors,
            clock=clock,
            media=bay,
            cancelled=lambda: stop.is_set,
        ),
        floors=floors,
        slots=slots,
        interlock=HalInterlock(paths.hal_control_socket, paths.hal_monitor_socket, clock=clock),
        injector=HalView(paths.hal_monitor_socket, clock=clock),
        reboot=RebootFlag(paths.reboot_flag),
        audit=audit,
        health=_health(
            settings, identity, clock=clock, slots=slots, documents=documents, floors=floors, sets=sets
        ),
        data=sets,
        kernels=kernels,
        evidence=SystemEvidence(documents, boot_id=boot_id(), root=settings.updater.kernel_files)
        if settings.updater.watchdog_tells
        else NoEvidence(),
        release_media=bay.eject_all,
    )


def _health(
    settings: Settings,
    identity: RunningRelease,
    *,
    clock: Clock,
    slots: SlotStore,
    documents: StateFiles,
    floors: FloorStore,
    sets: DataSets,
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
            DataCheck(documents.unusable, sets=sets, identity=identity),
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


def make_floors(settings: Settings, identity: RunningRelease, boot: BootControl) -> FloorStore:
    def boot_epoch() -> int:
        env = boot.read()
        return env.epoch if env else 0

    return FloorStore(
        settings.paths.updater_state_dir / "floor.json",
        image_file=settings.updater.floor_file,
        image_utc=parse_utc(identity.built_utc),
        boot_epoch=boot_epoch,
    )
