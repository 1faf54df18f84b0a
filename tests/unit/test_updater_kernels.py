"""Kernel images on the EFI system partition: staged from the source, proven, counted, removed."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.disk import SystemDisk
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.components import UkiComponent
from tidewaiter_core.payload.release import Release, build_release
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, Esp
from tidewaiter_updater.boot.staged import StagedUki
from tidewaiter_updater.errors import (
    BudgetError,
    InstallCancelledError,
    OfferRefusedError,
    SlotError,
    SourceError,
)
from tidewaiter_updater.health import NeverControl
from tidewaiter_updater.kernel_slots import KernelSlots
from tidewaiter_updater.kernels import KernelImages
from tidewaiter_updater.model import ByteCounts, SourceCounts, TransferProgress
from tidewaiter_updater.ports import Control, Notify, Report

from tests.sim.device import PRODUCT, release_fields
from tests.sim.packs import MemorySource

A, B = SlotName.A, SlotName.B
KERNEL = Random(5).randbytes(5 * 1024 * 1024 + 77)
IMAGE_BYTES = 1000


def release(version: str = "2.0", *, kernel: bytes = KERNEL, slot: SlotName | None = B) -> Release:
    fields = release_fields(version, 2, Sha256.of(version.encode()))
    if slot is not None:
        uki = {"kind": "uki", "slot": slot.value, "path": f"releases/{PRODUCT}/{version}/kernel.efi"}
        fields["components"].append(uki | {"length": len(kernel), "sha256": Sha256.of(kernel)})
    return Release.parse(build_release(fields))


def uki_of(made: Release) -> UkiComponent:
    part = made.uki(B)
    assert part is not None
    return part


class SmallDisk(SystemDisk):
    """A partition with little room."""

    free = 10**9

    def free_bytes(self, directory: Path) -> int:
        return self.free


class Bench:
    """A partition as the factory left it, and a repository with one release."""

    def __init__(self, root: Path) -> None:
        for folder in (ENTRIES, PRIVATE):
            (root / folder).mkdir(parents=True)
        self.root = root
        self.disk = SmallDisk()
        (root / ENTRIES / "tidewaiter-1.0.A.efi").write_bytes(b"running")
        self.made = release()
        self.source = MemorySource({f"releases/{PRODUCT}/2.0/{uki_of(self.made).sha256}.kernel.efi": KERNEL})
        self.kernels = KernelImages(
            Esp(root, disk=self.disk), source_for=lambda name, control: self.source, clock=SystemClock()
        )

    def put(self, **more: Any) -> int:
        given: dict[str, Any] = {"cap_bytes": None, "control": NeverControl(), **more}
        return self.kernels.put(B, self.made, "relay", **given)

    @property
    def staged(self) -> Path:
        part = uki_of(self.made)
        uki = StagedUki(txn=self.made.txn, sha256=part.sha256, version="2.0", slot=B)
        return self.root / uki.path

    def private(self) -> list[str]:
        return sorted(path.name for path in (self.root / PRIVATE).iterdir())

    def refusal(self, made: Release, slot: SlotName = B) -> str:
        with pytest.raises(OfferRefusedError) as caught:
            self.kernels.require(slot, made)
        return caught.value.code


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "esp")


def test_an_image_is_staged_whole_out_of_sight_of_the_loader(bench: Bench) -> None:
    assert bench.put() == len(KERNEL)
    assert bench.staged.read_bytes() == KERNEL
    assert [path.name for path in (bench.root / ENTRIES).iterdir()] == ["tidewaiter-1.0.A.efi"]
    assert bench.kernels.is_staged(B, bench.made)


def test_a_staged_image_is_not_fetched_again(bench: Bench) -> None:
    bench.put()
    assert bench.kernels.missing_bytes(B, bench.made) == 0
    assert bench.put() == 0


def test_a_staged_image_that_went_bad_is_no_proof_and_is_fetched_again(bench: Bench) -> None:
    bench.put()
    data = bytearray(KERNEL)
    data[1000] ^= 1
    bench.staged.write_bytes(data)
    assert not bench.kernels.is_staged(B, bench.made)
    assert bench.put() > 0
    assert bench.staged.read_bytes() == KERNEL


@pytest.mark.parametrize("offset", [0, len(KERNEL) - 1])
def test_wrong_bytes_are_a_source_fault_and_leave_nothing(bench: Bench, offset: int) -> None:
    path, data = next(iter(bench.source.targets.items()))
    bench.source.targets[path] = data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]
    with pytest.raises(SourceError) as caught:
        bench.put()
    assert caught.value.code == "source.bad-bytes"
    assert bench.private() == []


def test_a_cancel_ends_the_fetch_and_leaves_nothing(bench: Bench) -> None:
    class Canceled(NeverControl):
        def cancelled(self) -> bool:
            return len(bench.source.spans) > 0

    with pytest.raises(InstallCancelledError):
        bench.put(control=Canceled())
    assert bench.private() == []


def test_an_image_above_the_budget_is_refused_before_the_first_byte(bench: Bench) -> None:
    with pytest.raises(BudgetError, match=str(len(KERNEL))):
        bench.put(cap_bytes=len(KERNEL) - 1)
    assert bench.source.spans == []


def test_discarding_removes_what_is_staged_for_this_slot_only(bench: Bench) -> None:
    bench.put()
    bench.kernels.discard(A)
    assert bench.private() == [bench.staged.name]
    bench.kernels.discard(B)
    assert bench.private() == []


def test_a_full_partition_is_an_error_of_the_medium_that_is_tried_again(bench: Bench) -> None:
    bench.disk.free = 2 * len(KERNEL) - 1
    with pytest.raises(SlotError) as caught:
        bench.put()
    assert (caught.value.code, caught.value.retryable) == ("update.no-space", True)
    assert bench.source.spans == []


# --- what is refused before anything is changed ---


def test_a_release_without_a_kernel_image_for_the_slot_is_refused(bench: Bench) -> None:
    assert bench.refusal(release(slot=None)) == "release.uki"
    assert bench.refusal(release(slot=A)) == "release.uki"


@pytest.mark.parametrize("version", ["0.9", "0.10"])
def test_a_release_that_systemd_boot_would_sort_behind_the_running_one_is_refused(
    bench: Bench, version: str
) -> None:
    assert bench.refusal(release(version)) == "release.version"


def test_room_is_needed_for_the_image_and_the_copy_that_commit_makes(bench: Bench) -> None:
    bench.disk.free = 2 * len(KERNEL) + 128 * 1024
    bench.kernels.require(B, bench.made)
    bench.disk.free = 2 * len(KERNEL) - 1
    assert bench.refusal(bench.made) == "update.no-space"


def test_what_disarm_and_staging_will_remove_counts_as_room(bench: Bench) -> None:
    bench.disk.free = len(KERNEL) + 128 * 1024
    assert bench.refusal(bench.made) == "update.no-space"
    (bench.root / ENTRIES / "tidewaiter-0.9.B.efi").write_bytes(bytes(len(KERNEL)))
    bench.kernels.require(B, bench.made)


def test_a_staged_image_needs_room_for_its_copy_only(bench: Bench) -> None:
    bench.put()
    bench.disk.free = len(KERNEL) + 64 * 1024
    bench.kernels.require(B, bench.made)


# --- slot and kernel image as one thing ---


class Slots:
    """SlotStore whose slot is always right; notes what it is given."""

    def __init__(self) -> None:
        self.caps: list[int | None] = []
        self.right = True

    def check(self, slot: SlotName, release: Release) -> None: ...

    def expected_fetch_bytes(self, slot: SlotName, release: Release, source: str) -> int:
        return IMAGE_BYTES

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
        self.caps.append(cap_bytes)
        counts = ByteCounts(total=IMAGE_BYTES, written=IMAGE_BYTES, fetched=400, expected_fetch=500)
        report(TransferProgress(counts=counts, by_source=SourceCounts(pack=IMAGE_BYTES)))

    def read_back(
        self, slot: SlotName, release: Release, source: str, *, report: Report, control: Control
    ) -> int:
        return 0 if self.right else 1

    def holds(self, slot: SlotName, release: Release, *, control: Control, beats: bool = True) -> bool:
        return self.right


class Both:
    """A slot store with kernel images, over the bench."""

    def __init__(self, bench: Bench) -> None:
        self.inner = Slots()
        self.slots = KernelSlots(self.inner, bench.kernels)
        self.reports: list[TransferProgress] = []
        self.bench = bench

    def write(self, *, cap_bytes: int | None = None) -> TransferProgress:
        self.slots.write(
            B,
            self.bench.made,
            "relay",
            resume=True,
            cap_bytes=cap_bytes,
            report=self.reports.append,
            notify=lambda notice: None,
            control=NeverControl(),
        )
        return self.reports[-1]

    def read_back(self) -> int:
        return self.slots.read_back(
            B, self.bench.made, "relay", report=self.reports.append, control=NeverControl()
        )


@pytest.fixture
def both(bench: Bench) -> Both:
    return Both(bench)


def test_the_offer_counts_slot_and_kernel_image(both: Both) -> None:
    assert both.slots.expected_fetch_bytes(B, both.bench.made, "relay") == IMAGE_BYTES + len(KERNEL)
    both.write()
    assert both.slots.expected_fetch_bytes(B, both.bench.made, "relay") == IMAGE_BYTES


def test_progress_and_budget_are_of_both_together(both: Both) -> None:
    last = both.write(cap_bytes=len(KERNEL) + 600)
    assert both.inner.caps == [600]
    assert last.counts == ByteCounts(
        total=IMAGE_BYTES + len(KERNEL),
        written=IMAGE_BYTES + len(KERNEL),
        fetched=400 + len(KERNEL),
        expected_fetch=500 + len(KERNEL),
    )
    assert [report.counts.fetched for report in both.reports] == sorted(
        report.counts.fetched for report in both.reports
    )


def test_a_kernel_image_that_is_there_counts_as_skipped(both: Both) -> None:
    both.write()
    last = both.write()
    assert (last.counts.skipped, last.by_source.resume) == (len(KERNEL), len(KERNEL))
    assert last.counts.fetched == 400


def test_a_lost_kernel_image_is_one_wrong_chunk_more(both: Both) -> None:
    both.write()
    assert both.read_back() == 0
    both.bench.staged.unlink()
    assert both.read_back() == 1


def test_health_reads_the_kernel_image_that_started_the_slot(both: Both) -> None:
    both.write()
    entry = both.bench.root / ENTRIES / "tidewaiter-2.0.B+2-1.efi"
    both.bench.staged.rename(entry)
    assert both.slots.holds(B, both.bench.made, control=NeverControl())
    entry.write_bytes(KERNEL[:-1])
    assert not both.slots.holds(B, both.bench.made, control=NeverControl())
