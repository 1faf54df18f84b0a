"""Kernel images of a loader that starts them from its own partition (systemd-boot): fetched, staged, proven, removed.

A staged image lies where the loader does not look, under a name that says which signed release it is of; ARM is the rename that
puts it in force (`boot.sdboot`). The partition has to hold three images: that of the running release, that of the trial, and the
copy that COMMIT makes.

Source: update-engine.md section 8.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

from tidewaiter_core.clock import Clock
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release, UkiComponent

from tidewaiter_updater import stage
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, Esp
from tidewaiter_updater.boot.staged import StagedUki, clear, is_staged, removable
from tidewaiter_updater.boot.staged import stage as put
from tidewaiter_updater.boot.ukiname import UkiName, is_before
from tidewaiter_updater.errors import BudgetError, OfferRefusedError, SlotError, SourceError
from tidewaiter_updater.model import txn_of
from tidewaiter_updater.ports import Control
from tidewaiter_updater.sources import SPAN_LIMIT_BYTES, Source, hashed_path

logger = logging.getLogger(__name__)

CLUSTER_BYTES: Final = 64 * 1024
"""The largest of FAT: a file takes whole ones."""
Received = Callable[[int], None]
"""Called with the bytes that have arrived."""


class KernelImages:
    """Port Kernels over the EFI system partition, and the half of a SlotStore that is not in the slot."""

    newest_wins = True

    def __init__(
        self,
        esp: Esp,
        *,
        source_for: Callable[[str, Control], Source],
        clock: Clock,
        beat: Callable[[str], None] = lambda step: None,
    ) -> None:
        """
        Args:
            source_for: The repository behind a source name.
            beat: Called with the stage that is alive.
        """
        self._esp = esp
        self._source_for = source_for
        self._clock = clock
        self._beat = beat

    def require(self, slot: SlotName, release: Release) -> None:
        with _of_the_medium():
            self._require(slot, release)

    def _require(self, slot: SlotName, release: Release) -> None:
        name = f"{release.product} {release.version}"
        part = release.uki(slot)
        if part is None:
            raise OfferRefusedError(
                f"{name}: has no kernel image for slot {slot}, and this device's loader (systemd-boot) takes none from "
                "the slot; refused",
                code="release.uki",
            )
        trial = UkiName(version=release.version, slot=slot, left=1)
        for rival in self._entries(slot.other):
            if not is_before(trial, rival):
                raise OfferRefusedError(
                    f"{name}: systemd-boot starts the newest version first, which stays {rival}; refused",
                    code="release.version",
                )
        self._require_room(slot, release, part, name=name)

    def _require_room(self, slot: SlotName, release: Release, part: UkiComponent, *, name: str) -> None:
        uki = _staged(release, part)
        needed = _on_medium(part.length) * (1 if self._has_name(uki) else 2)
        # DISARM removes what starts the slot now, staging what earlier attempts left.
        files = self._esp.files(ENTRIES)
        freed = sum(files[str(entry)] for entry in self._entries(slot))
        freed += sum(removable(self._esp, slot, keep=uki).values())
        if (free := self._esp.free_bytes() + freed) < needed:
            raise OfferRefusedError(
                f"{name}: the EFI system partition has to hold its kernel image beside the running one and a copy, "
                f"needs {needed} bytes, {free} can be had; refused, nothing was changed",
                code="update.no-space",
                retryable=True,
            )

    def missing_bytes(self, slot: SlotName, release: Release) -> int:
        """What `put` would fetch, by the names on the partition: a staged image is hashed when it matters."""
        part = release.uki(slot)
        if part is None:
            return 0
        with _of_the_medium():
            return 0 if self._has_name(_staged(release, part)) else part.length

    def _has_name(self, uki: StagedUki) -> bool:
        return uki.file_name in self._esp.files(PRIVATE)

    def put(
        self,
        slot: SlotName,
        release: Release,
        source: str,
        *,
        cap_bytes: int | None,
        control: Control,
        received: Received = lambda count: None,
    ) -> int:
        """Stage the image of `release` for `slot`, on storage and read back; returns the bytes fetched.

        Raises:
            BudgetError: More than `cap_bytes`; nothing was fetched.
            SourceError, InstallCancelledError: As for a slot.
            SlotError: slot.io, slot.medium or update.no-space of the partition.
        """
        part = release.uki(slot)
        if part is None or self.is_staged(slot, release):
            return 0
        if cap_bytes is not None and part.length > cap_bytes:
            raise BudgetError(
                f"{part.path}: {part.length} bytes would have to be fetched, {cap_bytes} are allowed; "
                "nothing was fetched or written"
            )
        repository = self._source_for(source, control)
        pieces = self._pieces(part, repository, control, received)
        with _of_the_medium():
            put(self._esp, _staged(release, part), pieces, length=part.length)
        return repository.received_bytes

    def is_staged(self, slot: SlotName, release: Release) -> bool:
        """Whether the image waits for ARM and is what was signed, by reading it from the medium."""
        part = release.uki(slot)
        with _of_the_medium():
            return part is None or is_staged(self._esp, _staged(release, part))

    def starts(self, slot: SlotName, release: Release) -> bool:
        """Whether what the loader starts `slot` with is the image of `release`, by reading it from the medium."""
        part = release.uki(slot)
        with _of_the_medium():
            return part is None or any(
                self._esp.digest(f"{ENTRIES}/{entry}") == part.sha256 for entry in self._entries(slot)
            )

    def discard(self, slot: SlotName) -> None:
        try:
            clear(self._esp, slot)
        except BootEnvError as err:
            logger.warning("a kernel image that was staged for slot %s stays: %s", slot, err)

    def _entries(self, slot: SlotName) -> list[UkiName]:
        names = (UkiName.parse(name) for name in self._esp.files(ENTRIES))
        return [name for name in names if name is not None and name.slot is slot]

    def _pieces(
        self, part: UkiComponent, source: Source, control: Control, received: Received
    ) -> Iterator[bytes]:
        """What the source sends, whole and as signed, or an error."""
        target = hashed_path(part.path, part.sha256)
        watch = stage.Control(paused=control.paused, cancelled=control.cancelled, beat=self._beat)
        step = stage.Step(f"{part.path}: staging", watch, self._clock)
        digest = hashlib.sha256()
        done = 0
        for offset in range(0, part.length, SPAN_LIMIT_BYTES):
            step()
            for piece in source.span(target, offset, min(SPAN_LIMIT_BYTES, part.length - offset)):
                digest.update(piece)
                done += len(piece)
                yield piece
            received(done)
        if (found := digest.hexdigest()) != part.sha256:
            raise SourceError(
                f"{target}: expected SHA-256 {part.sha256}, found {found} in {done} bytes; "
                "they are not used, the kernel image is not staged",
                code="source.bad-bytes",
            )


def _staged(release: Release, part: UkiComponent) -> StagedUki:
    return StagedUki(txn=txn_of(release.digest), sha256=part.sha256, version=release.version, slot=part.slot)


def _on_medium(length: int) -> int:
    return -(-length // CLUSTER_BYTES) * CLUSTER_BYTES


@contextlib.contextmanager
def _of_the_medium() -> Iterator[None]:
    """A partition that refuses is tried again like a slot that does: no decision was at stake."""
    try:
        yield
    except BootEnvError as err:
        code = "update.no-space" if err.code == "update.no-space" else "slot.io"
        raise SlotError(str(err), code=code, retryable=True) from err
