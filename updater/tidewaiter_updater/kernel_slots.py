"""A slot and the kernel image that starts it as one thing: port SlotStore over both.

The kernel image goes first: it is small, and what it costs is known before the slot is planned, so that the byte budget holds for
both together. A slot whose kernel image is not what was signed counts as one wrong chunk more: it is proven before ARM, restaged,
and belongs to what health reads again.
"""

from __future__ import annotations

from dataclasses import replace

from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.kernels import KernelImages
from tidewaiter_updater.model import ByteCounts, SourceCounts, TransferProgress
from tidewaiter_updater.ports import Control, Notify, Report, SlotStore


class KernelSlots:
    """Slots of a device with systemd-boot."""

    def __init__(self, slots: SlotStore, kernels: KernelImages) -> None:
        self._slots = slots
        self._kernels = kernels

    def check(self, slot: SlotName, release: Release) -> None:
        self._slots.check(slot, release)

    def expected_fetch_bytes(self, slot: SlotName, release: Release, source: str) -> int:
        missing = self._kernels.missing_bytes(slot, release)
        return missing + self._slots.expected_fetch_bytes(slot, release, source)

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
        part = release.uki(slot)
        length = part.length if part is not None else 0
        to_come = self._slots.expected_fetch_bytes(slot, release, source)

        def received(count: int) -> None:
            report(
                TransferProgress(
                    counts=ByteCounts(
                        total=length + release.slot.image_bytes,
                        written=count,
                        fetched=count,
                        expected_fetch=length + to_come,
                    ),
                    by_source=SourceCounts(pack=count),
                )
            )

        fetched = self._kernels.put(
            slot, release, source, cap_bytes=cap_bytes, control=control, received=received
        )
        kept = length if fetched == 0 else 0

        def beside_kernel(progress: TransferProgress) -> None:
            counts, origins = progress.counts, progress.by_source
            report(
                TransferProgress(
                    counts=replace(
                        counts,
                        total=counts.total + length,
                        written=counts.written + length - kept,
                        skipped=counts.skipped + kept,
                        fetched=counts.fetched + fetched,
                        expected_fetch=counts.expected_fetch + fetched,
                    ),
                    by_source=replace(
                        origins, resume=origins.resume + kept, pack=origins.pack + length - kept
                    ),
                )
            )

        self._slots.write(
            slot,
            release,
            source,
            resume=resume,
            cap_bytes=None if cap_bytes is None else cap_bytes - fetched,
            report=beside_kernel,
            notify=notify,
            control=control,
        )

    def read_back(
        self, slot: SlotName, release: Release, source: str, *, report: Report, control: Control
    ) -> int:
        wrong = self._slots.read_back(slot, release, source, report=report, control=control)
        return wrong + (not self._kernels.is_staged(slot, release))

    def holds(self, slot: SlotName, release: Release, *, control: Control, beats: bool = True) -> bool:
        is_whole = self._slots.holds(slot, release, control=control, beats=beats)
        return is_whole and self._kernels.starts(slot, release)
