"""A device for the real update engine: storage that loses what was not synced, a boot script, an injector, a repository.

Everything that survives a power cut is in `Storage`; everything else is in `Device` and dies with it. Each effect on storage goes
through `Power`, which can pull the plug before it, in the middle of it, or after it. The engine, its boot adapter and its journal
are the product's own; slots are toys of four chunks, so that every point can be tried.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from random import Random
from typing import Any

from tidewaiter_core.audit import Actor, AuditUnavailableError, Outcome
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.release import Release, build_release
from tidewaiter_updater.boot.envcopy import (
    COPY_BYTES,
    COPY_OFFSETS,
    decode,
    encode,
    from_variables,
    newest,
    to_variables,
)
from tidewaiter_updater.boot.simulated import SimulatedBoot
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import InstallCancelledError, InterlockError
from tidewaiter_updater.model import (
    BootEnd,
    BootEnv,
    ByteCounts,
    Channel,
    CheckResult,
    Consent,
    Decision,
    FloorValues,
    HealthCheck,
    Held,
    RunningRelease,
    Scope,
    TransferProgress,
)
from tidewaiter_updater.ports import Control, DataSets, NoDataSets, Notice, Notify, Ports, Report
from tidewaiter_updater.transaction import Site
from tidewaiter_updater.trust_wire import Listed

from tests.sim.boot import BootScript
from tests.sim.clock import FakeClock

CHUNKS = 4
SYNC_CHUNKS = 2
HW = "rev-c"
PRODUCT = "injector"
BUILT_UTC = "2026-11-01T00:00:00Z"
FIRST_BUILT_UTC = "2026-11-01T00:00:00.000Z"


class PowerCut(BaseException):
    """The plug was pulled. Not an Exception: nothing may catch it."""


class Violation(AssertionError):
    """An invariant of update-engine.md section 1 is broken."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where the power goes: at effect number `at`, before it, half-way (torn) or after it."""

    at: int
    when: str
    keep_pending: bool = False
    """What was written but not synced happens to survive."""


class Power:
    """Every effect on storage, in order, with the phase the engine was in."""

    def __init__(self) -> None:
        self.cut: Cut | None = None
        self.log: list[tuple[str, str]] = []
        self.phase: Callable[[], str] = lambda: ""

    def effect(self, name: str, apply: Callable[[], None], *, torn: Callable[[], None] | None = None) -> None:
        number = len(self.log)
        cut = self.cut if self.cut is not None and self.cut.at == number else None
        self.log.append((self.phase(), name))
        if cut is not None and cut.when == "before":
            raise PowerCut
        if cut is not None and cut.when == "torn":
            (torn or (lambda: None))()
            raise PowerCut
        apply()
        if cut is not None:
            raise PowerCut


@dataclass
class Storage:
    """What a power cut leaves."""

    env: bytearray = field(default_factory=lambda: bytearray(COPY_OFFSETS[1] + COPY_BYTES))
    documents: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    slots: dict[SlotName, list[str]] = field(default_factory=dict)
    unsynced: dict[SlotName, dict[int, str]] = field(default_factory=lambda: {name: {} for name in SlotName})
    floors: FloorValues = field(default_factory=FloorValues)
    audit: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def lose_power(self, *, keep_pending: bool) -> None:
        for slot, pending in self.unsynced.items():
            if keep_pending:
                for chunk, content in pending.items():
                    self.slots[slot][chunk] = content
            pending.clear()

    def boot_env(self) -> BootEnv | None:
        copies = tuple(decode(bytes(self.env[offset : offset + COPY_BYTES])) for offset in COPY_OFFSETS)
        index = newest((copies[0], copies[1]))
        copy = copies[index] if index is not None else None
        return from_variables(copy.variables) if copy else None

    def write_env(self, env: BootEnv) -> None:
        """As the factory does: both copies."""
        for flag, offset in enumerate(COPY_OFFSETS):
            self.env[offset : offset + COPY_BYTES] = encode(to_variables(env), flag=flag)

    def bytes_in(self, slot: SlotName) -> list[str]:
        """What a read returns while the power is on."""
        return [self.unsynced[slot].get(number, content) for number, content in enumerate(self.slots[slot])]


class EnvDisk:
    """EnvMedium over the storage."""

    name = "env"

    def __init__(self, storage: Storage, power: Power, *, label: str = "") -> None:
        self._storage = storage
        self._power = power
        self._label = label
        self.broken = False

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._storage.env[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        before = self._storage.boot_env()
        copy = decode(data)
        name = self._label or decision_of(before, from_variables(copy.variables) if copy else None)

        def apply(part: bytes = data) -> None:
            if not self.broken:
                self._storage.env[offset : offset + len(part)] = part

        self._power.effect(name, apply, torn=lambda: apply(data[: len(data) // 300]))


def decision_of(before: BootEnv | None, after: BootEnv | None) -> str:
    """The name of the decision that made `after` of `before`."""
    if after is None:
        return "garbage"
    if before is None:
        return "REPAIR"
    if after.committed is not before.committed:
        return "COMMIT"
    if after.epoch != before.epoch:
        return "RAISE"
    if after.trial is not None and before.trial is None:
        return "ARM"
    if after.trial is not None:
        return "FAIL" if after.left == 0 else "REFUND"
    return "CLEAR" if before.trial is not None else "DISARM"


class StateDisk:
    """Documents over the storage; each write is atomic, as core.durable makes it."""

    def __init__(self, storage: Storage, power: Power) -> None:
        self._storage = storage
        self._power = power

    def load(self, name: str) -> dict[str, Any] | None:
        found = self._storage.documents.get(name)
        return dict(found) if found is not None else None

    def save(self, name: str, document: Mapping[str, Any]) -> None:
        copy = _plain(document)
        label = "close journal" if name == "journal" and copy["closed"] else name
        self._power.effect(label, lambda: self._storage.documents.__setitem__(name, copy))

    def read_blob(self, name: str) -> bytes | None:
        return self._storage.blobs.get(name)

    def write_blob(self, name: str, data: bytes, *, keep: Collection[str] = ()) -> None:
        self._power.effect("blob", lambda: self._storage.blobs.__setitem__(name, data))

    def free_bytes(self) -> int:
        return self.free

    free = 10**9


class ToySlots:
    """SlotStore of four chunks per slot, synced every two."""

    def __init__(self, storage: Storage, power: Power, images: Mapping[str, list[str]]) -> None:
        self._storage = storage
        self._power = power
        self._images = images
        self.fetched: list[str] = []
        self.faults: list[Exception] = []
        """Raised by the next writes, one each."""
        self.notices: list[Notice] = []
        """Said in every write, before a fault."""
        self.refusal: Exception | None = None
        self.lies = 0
        """How many of the next read-backs find a wrong chunk."""
        self.during: Callable[[], None] = lambda: None

    def check(self, slot: SlotName, release: Release) -> None:
        if self.refusal is not None:
            raise self.refusal

    def expected_fetch_bytes(self, slot: SlotName, release: Release, source: str) -> int:
        return release.slot.pack.length

    def write(
        self,
        slot: SlotName,
        release: Release,
        source: str,
        *,
        resume: bool,
        cap_bytes: int | None,
        report: Report,
        notify: Notify,
        control: Control,
    ) -> None:
        for notice in self.notices:
            notify(notice)
        if self.faults:
            raise self.faults.pop(0)
        image, pending = self._images[release.slot.image_root], self._storage.unsynced[slot]
        for number, content in enumerate(image):
            self.during()
            if control.cancelled():
                raise InstallCancelledError("canceled")
            if self._storage.bytes_in(slot)[number] == content:
                continue
            self._must_not_boot(slot)
            self.fetched.append(content)
            self._power.effect("write slot", partial(pending.__setitem__, number, content))
            report(TransferProgress(counts=ByteCounts(total=CHUNKS, written=number + 1)))
            if number % SYNC_CHUNKS == SYNC_CHUNKS - 1:
                self._power.effect("sync slot", lambda: self._sync(slot))
        self._power.effect("sync slot", lambda: self._sync(slot))

    def read_back(
        self, slot: SlotName, release: Release, source: str, *, report: Report, control: Control
    ) -> int:
        self._power.effect("read back", lambda: None)
        if self.lies > 0:
            self.lies -= 1
            return 1
        wrong = zip(self._storage.bytes_in(slot), self._images[release.slot.image_root], strict=True)
        return sum(found != expected for found, expected in wrong)

    def holds(self, slot: SlotName, release: Release, *, control: Control, beats: bool = True) -> bool:
        return self._storage.bytes_in(slot) == self._images[release.slot.image_root]

    def _sync(self, slot: SlotName) -> None:
        for number, content in self._storage.unsynced[slot].items():
            self._storage.slots[slot][number] = content
        self._storage.unsynced[slot].clear()

    def _must_not_boot(self, slot: SlotName) -> None:
        env = self._storage.boot_env()
        if env is not None and (env.is_ok(slot) or env.trial is slot or env.committed is slot):
            raise Violation(f"I2: slot {slot} is changed while {env} lets it boot")


class ToyFloors:
    """Floors over the storage."""

    def __init__(self, storage: Storage, power: Power) -> None:
        self._storage = storage
        self._power = power

    def effective(self) -> FloorValues:
        return self._storage.floors

    def raise_committed(self, release: FloorValues) -> None:
        old = self._storage.floors
        new = FloorValues(
            sequence=max(old.sequence, release.sequence),
            security_epoch=max(old.security_epoch, release.security_epoch),
            time_utc=max(old.time_utc, release.time_utc),
        )
        self._power.effect("floors", lambda: setattr(self._storage, "floors", new))


class ToyAudit:
    """A log whose records are durable when append returns."""

    def __init__(self, storage: Storage, power: Power) -> None:
        self._storage = storage
        self._power = power
        self.is_full = False

    def append(
        self,
        kind: str,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        fields: Mapping[str, Any] | None = None,
    ) -> int:
        if self.is_full:
            raise AuditUnavailableError("audit log is full")
        record = (kind, dict(fields or {}))
        self._power.effect(f"audit {kind}", lambda: self._storage.audit.append(record))
        return len(self._storage.audit)

    def flush(self) -> None:
        self._power.effect("flush audit", lambda: None)


class ToyInjector:
    """HAL and injector: says no when told to, gives leases, survives the host."""

    def __init__(self, power: Power) -> None:
        self._power = power
        self.reasons: tuple[str, ...] = ()
        self.has_lease = True
        self.loses_lease = False
        self.refuses_seal = False
        self.injecting = False
        self.samples_arrive = True
        self.held: Held | None = None
        self.asked: list[str] = []
        self._sample = 100

    def check(self, purpose: str) -> Decision:
        self.asked.append("check")
        return Decision(allow=not self.reasons, reasons=self.reasons, ttl_ms=2000)

    def hold(self, purpose: str) -> Held | None:
        self.asked.append("hold")
        if not self.has_lease:
            return None
        self.held = Held(lease_id="lease-1")
        return self.held

    def is_held(self) -> bool:
        return self.held is not None and not self.loses_lease

    def newer_sample(self, after: int | None) -> int | None:
        self.asked.append("sample")
        if after is not None and not self.samples_arrive:
            return None
        self._sample += 1
        return self._sample

    def seal(self, lease_id: str) -> None:
        if self.refuses_seal:
            raise InterlockError("seal refused", reasons=("lease-lost",))
        self.asked.append("seal")
        self._power.effect("seal", lambda: setattr(self, "held", Held(lease_id=lease_id, sealed=True)))

    def release(self) -> None:
        self.asked.append("release")
        if self.held is not None:
            self._power.effect("release lease", lambda: setattr(self, "held", None))

    def lease(self) -> Held | None:
        return self.held

    def is_injecting(self) -> bool:
        return self.injecting


class ToyEvidence:
    """What the hardware says of the boot before; a test sets it."""

    def __init__(self) -> None:
        self.end = BootEnd.UNKNOWN

    def boot_before(self) -> BootEnd:
        return self.end


class ToyReboot:
    """The flag; PID 1 pulls the machine down when the world looks at it."""

    def __init__(self, power: Power) -> None:
        self._power = power
        self.requested = False

    def request(self) -> None:
        self._power.effect("reboot flag", lambda: setattr(self, "requested", True))

    def withdraw(self) -> None:
        self.requested = False

    def is_requested(self) -> bool:
        return self.requested


class ToyTrust:
    """A repository that signs what was published."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        """Releases and permits by target path."""
        self.error: Exception | None = None

    def check(self, source: str, release_path: str) -> bytes:
        if self.error is not None:
            raise self.error
        return self.documents[release_path]

    def permit(self, source: str, permit_path: str) -> bytes | None:
        return self.documents.get(permit_path)

    def releases(self, source: str, product: str) -> tuple[Listed, ...]:
        if self.error is not None:
            raise self.error
        return tuple(
            Listed(path=path, sha256=Sha256.of(data))
            for path, data in self.documents.items()
            if path.startswith(f"releases/{product}/")
        )


class ToyHealth:
    """Checks that say what the test wants."""

    def __init__(self) -> None:
        self.sick: Callable[[RunningRelease], bool] = lambda identity: False
        self.identity: RunningRelease | None = None
        self.rounds = 0

    def run(
        self,
        slot: SlotName,
        release: Release | None,
        *,
        network_proven_utc: str,
        clock_was_low: bool = False,
    ) -> tuple[HealthCheck, ...]:
        self.rounds += 1
        bad = self.identity is not None and self.sick(self.identity)
        return (HealthCheck(name="hal", result=CheckResult.FAIL if bad else CheckResult.OK, detail="toy"),)


@dataclass(frozen=True, slots=True)
class Made:
    """A release that was published to the device."""

    data: bytes
    release: Release
    image: list[str]

    @property
    def path(self) -> str:
        return self.release.path


class Device:
    """One device. `power_on` boots it; `engine` is the running updater of the booted slot."""

    def __init__(self, *, site: Site | None = None) -> None:
        self.site = site or Site(serial="INJ-1", product=PRODUCT, hw=HW)
        self.power = Power()
        self.storage = Storage()
        self.clock = FakeClock()
        self.injector = ToyInjector(self.power)
        self.trust = ToyTrust()
        self.health = ToyHealth()
        self.sets: DataSets = NoDataSets()
        self.evidence = ToyEvidence()
        self.images: dict[str, list[str]] = {}
        self.identities: dict[tuple[str, ...], RunningRelease] = {}
        self.boots = 0
        self.engine: Engine | None = None
        self.broken_slots: set[SlotName] = set()
        self.agrees = True
        """Whether the person at the device says yes to a release that cannot be undone."""
        first = self.make("1.0", 1)
        for slot in SlotName:
            self.storage.slots[slot] = list(first.image)
        self.storage.write_env(BootEnv(committed=SlotName.A, ok_a=True, ok_b=True))
        self.factory = first
        self.reset_volatile()

    def reset_volatile(self) -> None:
        """What a power cycle makes anew."""
        self.env_disk = EnvDisk(self.storage, self.power)
        self.documents = StateDisk(self.storage, self.power)
        self.slots = ToySlots(self.storage, self.power, self.images)
        self.audit = ToyAudit(self.storage, self.power)
        self.reboot = ToyReboot(self.power)
        self.booted: SlotName | None = None
        self.engine = None

    # --- releases ---

    def make(self, version: str, sequence: int, **options: Any) -> Made:
        """Build and publish a release whose image has four chunks of its own, one shared with every other."""
        image = ["shared", *(f"{version}/{number}" for number in range(1, CHUNKS))]
        root = Sha256.of("|".join(image).encode())
        data = build_release(release_fields(version, sequence, root, **options))
        release = Release.parse(data)
        self.images[root] = image
        self.identities[tuple(image)] = RunningRelease(
            product=PRODUCT,
            version=version,
            sequence=sequence,
            security_epoch=release.security_epoch,
            built_utc=FIRST_BUILT_UTC,
            hw=(HW,),
            data=release.data,
        )
        self.trust.documents[release.path] = data
        return Made(data=data, release=release, image=image)

    # --- power ---

    def power_on(self, *, boot_limit: int = 12) -> Engine:
        """Boot until a slot gets control, then start its updater."""
        for _ in range(boot_limit):
            self.boots += 1
            script = BootScript(EnvDisk(self.storage, self.power, label="script"))
            booted = script.run(self._loads)
            if booted is not None:
                return self.start_updater(booted)
        raise Violation(f"no slot boots after {boot_limit} resets: {self.storage.boot_env()}")

    def start_updater(self, booted: SlotName, *, boot_id: str | None = None) -> Engine:
        """A new process of the updater; with the same boot id it is a restart of the service."""
        self.booted = booted
        identity = self.identities[tuple(self.storage.slots[booted])]
        self.health.identity = identity
        self.boot_id = boot_id or f"{self.boots:08x}" * 4
        boot = SimulatedBoot(self.env_disk, cmdline=lambda: f"ro tidewaiter.slot={booted}")
        ports = Ports(
            clock=self.clock,
            boot=boot,
            documents=self.documents,
            trust=self.trust,
            floors=ToyFloors(self.storage, self.power),
            slots=self.slots,
            interlock=self.injector,
            injector=self.injector,
            reboot=self.reboot,
            audit=self.audit,
            health=self.health,
            data=self.sets,
            evidence=self.evidence,
        )
        self.engine = Engine(ports, site=self.site, identity=identity, boot_id=self.boot_id, rng=Random(1))
        self.power.phase = lambda: self.engine.transaction.phase.value if self.engine else ""
        return self.engine

    def restart_service(self) -> Engine:
        """The updater alone dies and comes back: same boot."""
        if self.booted is None:
            raise RuntimeError("the device is off")
        for slot in SlotName:
            self.slots._sync(slot)  # the kernel writes back what a dead process left
        return self.start_updater(self.booted, boot_id=self.boot_id)

    def power_off(self, *, keep_pending: bool = False) -> None:
        """The plug, or the end of a reboot."""
        self.storage.lose_power(keep_pending=keep_pending)
        self.reset_volatile()
        self.clock.advance(30)

    def _loads(self, slot: SlotName) -> bool:
        """An image that is not whole has no valid root; booting it is what must never happen."""
        if slot in self.broken_slots:
            return False
        if tuple(self.storage.slots[slot]) not in self.identities:
            raise Violation(f"slot {slot} boots with {self.storage.slots[slot]}")
        return True

    # --- the people and programs around the updater ---

    def work(self, *, steps: int = 60) -> None:
        """Let the worker run until it waits for something that only time or somebody else brings."""
        engine = self._on()
        for _ in range(steps):
            if self.reboot.requested:
                return
            wait_s = engine.step()
            if wait_s > 0:
                return
        raise Violation(f"the engine never rests in {engine.transaction.phase}")

    def offer(self, made: Made) -> None:
        """What the agent does at each poll: Check, Install, Activate."""
        engine = self._on()
        transaction = engine.transaction
        if transaction.open_digest() is None:
            offer = engine.check("relay", made.path)
            if offer.installable and not self.is_running(made):
                consent = no_way_back(made) if self.agrees else None
                engine.install(made.release.digest, consent=consent)
        self.work()
        if transaction.phase.value in ("STAGED", "WAIT_WINDOW"):
            engine.activate(made.release.digest, window_open=True)
            self.work()

    def confirm(self) -> None:
        """tidewaiter-health, then tidewaiter-commit if it was green."""
        engine = self._on()
        verdict = engine.health(given_up=lambda: False)
        if verdict is not None and verdict.healthy:
            engine.commit()
        self.work()

    def live(self, made: Made, *, rounds: int = 30) -> None:
        """Days of this device: polls, reboots and trials until nothing changes any more."""
        for _ in range(rounds):
            if self.engine is None:
                self.power_on()
            self.work()
            if self._on().transaction.phase.value in ("TRIAL", "HEALTH"):
                self.confirm()
            elif not self.is_settled(made):
                self.offer(made)
            if self.reboot.requested:
                self.power_off()
                continue
            if self.is_settled(made):
                return
            self.clock.advance(timedelta(minutes=10).total_seconds())
        raise Violation(f"the device never settles: {self._on().transaction.phase} {self.storage.boot_env()}")

    def is_running(self, made: Made) -> bool:
        return self.booted is not None and self.storage.slots[self.booted] == made.image

    def is_settled(self, made: Made) -> bool:
        """Committed, or given up for good."""
        env, engine = self.storage.boot_env(), self._on()
        if engine.transaction.pending or env is None or env.trial is not None:
            return False
        running = self.is_running(made) and env.committed is self.booted
        return running or made.release.txn in self.quarantined()

    def quarantined(self) -> set[str]:
        return set(self.storage.documents.get("quarantine", {}).get("order", []))

    def audited(self) -> list[str]:
        return [kind for kind, _ in self.storage.audit]

    def _on(self) -> Engine:
        if self.engine is None:
            raise RuntimeError("the device is off")
        return self.engine


def no_way_back(made: Made) -> Consent | None:
    """What a person at the device says to a release whose data the earlier one cannot read; others need no such words."""
    if made.release.data.reversible:
        return None
    return Consent(
        digest=made.release.digest,
        scope=tuple(Scope),
        channel=Channel.LOCAL,
        who="operator",
        given_utc=FIRST_BUILT_UTC,
        expires_utc="2036-11-24T12:00:00.000Z",
    )


def release_fields(version: str, sequence: int, root: Sha256, **options: Any) -> dict[str, Any]:
    """A release document for this device; `options` replace top-level fields."""
    image_bytes = 65536 * CHUNKS
    folder = f"releases/{PRODUCT}/{version}"
    fields: dict[str, Any] = {
        "format": 1,
        "requires": [],
        "product": PRODUCT,
        "version": version,
        "sequence": sequence,
        "security_epoch": 0,
        "built_utc": BUILT_UTC,
        "hw": [HW],
        "from": {"min_sequence": 0, "max_sequence": 1000},
        "components": [
            {
                "kind": "slot",
                "name": "rootfs",
                "image_bytes": image_bytes,
                "image_sha256": Sha256.of(version.encode()),
                "image_root": root,
                "chunk_bytes": 65536,
                "fs": "ext4",
                "verity": None,
                "index": {
                    "path": f"{folder}/index.twci",
                    "length": 160 + 84 * CHUNKS,
                    "sha256": Sha256.of(b"index"),
                },
                "pack": {"path": f"{folder}/pack.twpk", "length": 1000, "sha256": Sha256.of(b"pack")},
                "patches": [],
            }
        ],
        "data": {"writes": 1, "reads_min": 1, "reads_max": 1, "reversible": True},
        "health": {"required": ["hal"], "deadline_s": 60, "hold_s": 0},
        "policy": {
            "consent": "none",
            "risk": "routine",
            "tries": 3,
            "activation": "any",
            "max_fetch_bytes": 10**6,
        },
    }
    return fields | options


def _plain(value: Any) -> Any:
    """A document as JSON would bring it back."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
