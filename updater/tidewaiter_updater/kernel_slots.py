"""A slot and the kernel image that starts it as one thing: port SlotStore over both.

The kernel image goes first: it is small, and what it costs is known before the slot is planned, so that the byte budget holds for
both together. A slot whose kernel image is not what was signed counts as one wrong chunk more: it is proven before ARM, restaged,
and belongs to what health reads again.
"""

from __future__ import annotations

from dataclasses import replace

from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release

from tidewaiter_updater.kernel_fetch import KernelProgress
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
        to_come = self._slots.expected_fetch_bytes(slot, release, source)

        def kernel_alone(kernel: KernelProgress) -> None:
            report(
                TransferProgress(
                    counts=ByteCounts(
                        total=kernel.length + release.slot.image_bytes,
                        written=kernel.written,
                        skipped=kernel.kept,
                        fetched=kernel.fetched,
                        expected_fetch=kernel.expected + to_come,
                    ),
                    by_source=SourceCounts(resume=kernel.kept, pack=kernel.written),
                )
            )

        kernel = self._kernels.put(
            slot,
            release,
            source,
            cap_bytes=cap_bytes,
            control=control,
            notify=notify,
            report=kernel_alone,
        )

        def beside_kernel(progress: TransferProgress) -> None:
            counts, origins = progress.counts, progress.by_source
            report(
                TransferProgress(
                    counts=replace(
                        counts,
                        total=counts.total + kernel.length,
                        written=counts.written + kernel.written,
                        skipped=counts.skipped + kernel.kept,
                        fetched=counts.fetched + kernel.fetched,
                        expected_fetch=counts.expected_fetch + kernel.expected,
                    ),
                    by_source=replace(
                        origins, resume=origins.resume + kernel.kept, pack=origins.pack + kernel.written
                    ),
                )
            )

        # What an earlier attempt staged counts, too: the same plan is allowed or not, with and without a cut.
        spent = kernel.kept + kernel.fetched
        self._slots.write(
            slot,
            release,
            source,
            resume=resume,
            cap_bytes=None if cap_bytes is None else max(0, cap_bytes - spent),
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
