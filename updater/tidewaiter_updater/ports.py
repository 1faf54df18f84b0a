"""Everything the engine touches outside itself, as ports. `main` gives it the device, a test gives it a world.

The crash explorer runs the real engine on simulated storage through exactly these: no module of the engine opens a file,
a socket or a device by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidewaiter_core.audit import Actor, Outcome
from tidewaiter_core.clock import Clock
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.policy import Data
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.boot import BootControl
from tidewaiter_updater.journal import Documents
from tidewaiter_updater.model import (
    BootEnd,
    DataState,
    DataStatus,
    Decision,
    FloorValues,
    HealthCheck,
    Held,
    TransferProgress,
)
from tidewaiter_updater.trust_wire import Listed

Report = Callable[[TransferProgress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something a transfer found or is about to do that belongs in the audit log."""

    code: str
    text: str


Notify = Callable[[Notice], None]
"""Durable when it returns; raises when the log cannot take it, and then the thing is not done."""


class Control(Protocol):
    """What a long piece of work asks about itself between two chunks."""

    def paused(self) -> bool: ...
    def cancelled(self) -> bool: ...


class Trust(Protocol):
    """Signed metadata, verified in a child process."""

    def check(self, source: str, release_path: str) -> bytes:
        """The bytes of a release document that the repository behind `source` signs; TrustError or SourceError."""

    def permit(self, source: str, permit_path: str) -> bytes | None:
        """A downgrade permit that the repository signs, None if there is none; errors as for `check`."""

    def releases(self, source: str, product: str) -> tuple[Listed, ...]:
        """The release documents of `product` that the repository signs and holds; errors as for `check`."""


class Floors(Protocol):
    """The durable floors; the effective one is the maximum of all copies."""

    def effective(self) -> FloorValues: ...
    def raise_committed(self, release: FloorValues) -> None:
        """Raise to a committed release; durable when this returns, never lowered."""


class SlotStore(Protocol):
    """The content of the slots."""

    def check(self, slot: SlotName, release: Release) -> None:
        """Refuse (SlotError) a slot that must not or cannot take `release`, before anything is changed."""

    def expected_fetch_bytes(self, slot: SlotName, release: Release, source: str) -> int:
        """What a transfer would fetch at most, from the signed sizes."""

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
        """Make the slot hold the image, from whatever is cheapest; on storage when this returns, safe to call again.

        Args:
            resume: The slot may already hold parts of this image.
            cap_bytes: BudgetError before anything is written if more would have to be fetched.
            notify: Told before a way that failed is left for one that fetches more, and of a running slot that differs.
        """

    def read_back(
        self, slot: SlotName, release: Release, source: str, *, report: Report, control: Control
    ) -> int:
        """Number of chunks that the medium does not hold as signed; 0 proves the image.

        Args:
            source: Where the index comes from if it was lost.
        """

    def holds(self, slot: SlotName, release: Release, *, control: Control, beats: bool = True) -> bool:
        """Whether the slot holds exactly the image of `release`, by reading all of it from the medium.

        Args:
            beats: The caller is the engine's worker, so each chunk shows that the worker lives.
        """


class Kernels(Protocol):
    """Kernel images that the boot loader starts from outside the slots."""

    newest_wins: bool
    """The loader itself prefers the newest version, so that an older one cannot be made to stay."""

    def require(self, slot: SlotName, release: Release) -> None:
        """Refuse (OfferRefusedError) a release that this loader could not start from `slot`. Only looks."""

    def discard(self, slot: SlotName) -> None:
        """Remove what was staged for `slot` and is not in force; never raises, the next staging removes it, too."""


class KernelsInSlots:
    """Kernels of a loader that takes the kernel from the slot: there is nothing beside the image."""

    newest_wins = False

    def require(self, slot: SlotName, release: Release) -> None: ...
    def discard(self, slot: SlotName) -> None: ...


class BootEvidence(Protocol):
    """What hardware and kernel kept about the boot before this one."""

    def boot_before(self) -> BootEnd:
        """How it ended; never raises, what cannot be read is unknown."""


class NoEvidence:
    """Hardware that cannot tell."""

    def boot_before(self) -> BootEnd:
        return BootEnd.UNKNOWN


class Interlock(Protocol):
    """The injector's permission. No answer means no: an unreachable HAL is an injector in use."""

    def check(self, purpose: str) -> Decision: ...
    def hold(self, purpose: str) -> Held | None:
        """Take the lease and keep it; None when this injector has none. Raises InterlockError when it is refused."""

    def is_held(self) -> bool:
        """Whether the lease taken by `hold` still stands."""

    def newer_sample(self, after: int | None) -> int | None:
        """Number of a state sample newer than `after`, None when none arrived in time."""

    def seal(self, lease_id: str) -> None: ...
    def release(self) -> None:
        """Give back every lease of ours, also one from before the reboot. Never raises: leases end by themselves."""

    def lease(self) -> Held | None: ...


class InjectorView(Protocol):
    """What a transfer may know of the injector."""

    def is_injecting(self) -> bool:
        """Whether an injection runs; an unreachable HAL does not stop a transfer, which harms nobody."""


class Reboot(Protocol):
    """The flag that makes PID 1 restart the machine."""

    def request(self) -> None: ...
    def withdraw(self) -> None: ...
    def is_requested(self) -> bool: ...


class AuditTrail(Protocol):
    """The part of core.audit.AuditLog that the engine writes to."""

    def append(
        self, kind: str, *, actor: Actor, outcome: Outcome = ..., fields: Mapping[str, Any] | None = None
    ) -> int: ...
    def flush(self) -> None: ...


class HealthChecks(Protocol):
    """The named checks of a trial boot."""

    def run(
        self,
        slot: SlotName,
        release: Release | None,
        *,
        network_proven_utc: str,
        clock_was_low: bool = False,
    ) -> tuple[HealthCheck, ...]:
        """Each check once; a check that cannot be judged is not green.

        Args:
            network_proven_utc: When the earlier release had an answer of the server.
            clock_was_low: Whether the clock was below the floor under the earlier release.
        """


class DataSets(Protocol):
    """The product's versioned data, which a root program makes and removes."""

    def status(self) -> DataStatus:
        """Whether the set that the running release needs is there, and why not."""

    def is_settled(self) -> bool:
        """Whether the set of the running, committed release is known as the live one: nothing is armed before."""

    def upkeep(self) -> None:
        """Ask for a run of the root program if there is something for it to do; never waits for it."""

    def shortage(self, release: Data) -> str | None:
        """Why the data step to `release` would not fit on storage, None when it would."""


class NoDataSets:
    """Port DataSets of an image that keeps none."""

    def status(self) -> DataStatus:
        return DataStatus(state=DataState.READY, detail="this image keeps no data sets")

    def is_settled(self) -> bool:
        return True

    def upkeep(self) -> None: ...
    def shortage(self, release: Data) -> str | None:
        return None


@dataclass(frozen=True, kw_only=True)
class Ports:
    """The device, as the engine sees it."""

    clock: Clock
    boot: BootControl
    documents: Documents
    trust: Trust
    floors: Floors
    slots: SlotStore
    interlock: Interlock
    injector: InjectorView
    reboot: Reboot
    audit: AuditTrail
    health: HealthChecks
    data: DataSets = field(default_factory=NoDataSets)
    evidence: BootEvidence = field(default_factory=NoEvidence)
    kernels: Kernels = field(default_factory=KernelsInSlots)
    release_media: Callable[[], None] = lambda: None
    """No bytes are wanted any more: let go of a medium, so that it can be taken out."""
