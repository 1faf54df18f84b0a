"""Kernel images of a loader that starts them from its own partition (systemd-boot): fetched, staged, proven, removed.

A staged image lies where the loader does not look, under a name that says which signed release it is of; ARM is the rename that
puts it in force (`boot.sdboot`). The partition has to hold three images: that of the running release, that of the trial, and the
copy that COMMIT makes.

Source: update-engine.md section 8.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

from tidewaiter_core.clock import Clock
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.components import UkiComponent
from tidewaiter_core.payload.release import Release

from tidewaiter_updater import stage
from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, Esp
from tidewaiter_updater.boot.staged import StagedUki, clear, is_staged, removable
from tidewaiter_updater.boot.staging import Staging
from tidewaiter_updater.boot.ukiname import UkiName, is_before
from tidewaiter_updater.errors import OfferRefusedError, SlotError
from tidewaiter_updater.kernel_fetch import KernelFetch, KernelProgress, Thrift
from tidewaiter_updater.model import txn_of
from tidewaiter_updater.ports import Control, Notice, Notify
from tidewaiter_updater.sources import Source
from tidewaiter_updater.supply import Meter

logger = logging.getLogger(__name__)

CLUSTER_BYTES: Final = 64 * 1024
"""The largest of FAT: a file takes whole ones."""


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
        needed = 2 * _on_medium(part.length) - _on_medium(min(part.length, self._size(uki)))
        # DISARM removes what starts the slot now, staging what earlier attempts left.
        files = self._esp.files(ENTRIES)
        freed = sum(files[str(entry)] for entry in self._entries(slot))
        freed += sum(removable(self._esp, slot, keep=(uki.file_name,)).values())
        if (free := self._esp.free_bytes() + freed) < needed:
            raise OfferRefusedError(
                f"{name}: the EFI system partition has to hold its kernel image beside the running one and a copy, "
                f"needs {needed} bytes, {free} can be had; refused, nothing was changed",
                code="update.no-space",
                retryable=True,
            )

    def missing_bytes(self, slot: SlotName, release: Release) -> int:
        """What `put` would fetch at most, by what is listed on the partition: what is staged is hashed when it matters."""
        part = release.uki(slot)
        if part is None:
            return 0
        with _of_the_medium():
            return 0 if self._size(_staged(release, part)) == part.length else part.length

    def _size(self, uki: StagedUki) -> int:
        return self._esp.files(PRIVATE).get(uki.file_name, 0)

    def put(
        self,
        slot: SlotName,
        release: Release,
        source: str,
        *,
        cap_bytes: int | None,
        control: Control,
        notify: Notify,
        report: Callable[[KernelProgress], None] = lambda progress: None,
    ) -> KernelProgress:
        """Stage the image of `release` for `slot`, on storage and read back, from where an earlier attempt ended.

        Args:
            cap_bytes: For the whole image, whatever is there already: a cut does not make room for a larger slot.
            notify: Told before something is fetched that was already on the partition and right once.

        Raises:
            BudgetError: More than `cap_bytes`, or far more than planned; the byte that would be too many is not fetched.
            SourceError, InstallCancelledError: As for a slot; what arrived until then stays for the next attempt.
            SlotError: slot.io or update.no-space of the partition.
            PayloadChunkError: The image is not what its pieces say, a defect of the release.
        """
        part = release.uki(slot)
        if part is None:
            return KernelProgress()
        watch = stage.Control(paused=control.paused, cancelled=control.cancelled, beat=self._beat)
        step = stage.Step(f"{part.path}: staging", watch, self._clock)
        with _of_the_medium():
            staging = Staging(self._esp, _staged(release, part), part.pieces, step=step)
        if staging.is_complete:
            return KernelProgress(length=part.length, kept=part.length)
        thrift = Thrift(control)
        repository = self._source_for(source, thrift)
        meter = Meter(
            repository, cap_bytes=None if cap_bytes is None else max(0, cap_bytes - staging.kept_bytes)
        )
        meter.expect(staging.missing_bytes)
        meter.require_cap(part.path)
        if staging.spoiled_bytes:
            notify(
                Notice(
                    code="slot.io",
                    text=f"{part.path}: {staging.spoiled_bytes} bytes that were staged are not what was signed; fetched again",
                )
            )
        fetch = KernelFetch(
            part,
            repository,
            meter=meter,
            thrift=thrift,
            step=step,
            notify=notify,
            report=report,
            kept_bytes=staging.kept_bytes,
        )
        with _of_the_medium():
            staging.require_room()
            staging.finish(fetch.obtain)
        return fetch.progress()

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
