"""Kernel images on the EFI system partition: staged from the source, proven, counted, removed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.disk import SystemDisk
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.components import UKI_PIECE_BYTES, UkiComponent, uki_pieces
from tidewaiter_core.payload.errors import PayloadChunkError
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
from tidewaiter_updater.kernel_fetch import KernelProgress
from tidewaiter_updater.kernel_slots import KernelSlots
from tidewaiter_updater.kernels import KernelImages
from tidewaiter_updater.model import ByteCounts, SourceCounts, TransferProgress
from tidewaiter_updater.ports import Control, Notice, Notify, Report
from tidewaiter_updater.sources import Patience, RelaySource, Source

from tests.sim.device import PRODUCT, release_fields
from tests.sim.packs import MemorySource
from tests.sim.relay import Answer, Ask, relaying

A, B = SlotName.A, SlotName.B
KERNEL = Random(5).randbytes(5 * 1024 * 1024 + 77)
IMAGE_BYTES = 1000
PIECE = UKI_PIECE_BYTES


def release(
    version: str = "2.0",
    *,
    kernel: bytes = KERNEL,
    slot: SlotName | None = B,
    sha256: Sha256 | None = None,
) -> Release:
    fields = release_fields(version, 2, Sha256.of(version.encode()))
    if slot is not None:
        uki = {"kind": "uki", "slot": slot.value, "path": f"releases/{PRODUCT}/{version}/kernel.efi"}
        pieces = [piece.sha256 for piece in uki_pieces(kernel)]
        fields["components"].append(
            uki | {"pieces": pieces} | {"length": len(kernel), "sha256": sha256 or Sha256.of(kernel)}
        )
    return Release.parse(build_release(fields))


def uki_of(made: Release) -> UkiComponent:
    part = made.uki(B)
    assert part is not None
    return part


class SmallDisk(SystemDisk):
    """A partition with little room, or with a medium that keeps other bytes."""

    free = 10**9
    room = 10**9
    """What can be written, whatever was said before."""
    spoils = False
    unsynced = 0
    most_unsynced = 0

    def free_bytes(self, directory: Path) -> int:
        return self.free

    def write_at(self, fd: int, data: bytes, offset: int) -> int:
        if offset + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.unsynced += len(data)
        self.most_unsynced = max(self.most_unsynced, self.unsynced)
        return super().write_at(fd, bytes(len(data)) if self.spoils else data, offset)

    def sync(self, fd: int) -> None:
        self.unsynced = 0
        super().sync(fd)


class Bench:
    """A partition as the factory left it, and a repository with one release."""

    def __init__(self, root: Path, *, kernel: bytes = KERNEL, sha256: Sha256 | None = None) -> None:
        for folder in (ENTRIES, PRIVATE):
            (root / folder).mkdir(parents=True)
        self.root = root
        self.disk = SmallDisk()
        (root / ENTRIES / "tidewaiter-1.0.A.efi").write_bytes(b"running")
        self.made = release(kernel=kernel, sha256=sha256)
        self.notices: list[Notice] = []
        self.last = KernelProgress()
        self.source = MemorySource({f"releases/{PRODUCT}/2.0/{uki_of(self.made).sha256}.kernel.efi": kernel})
        self.kernels = KernelImages(
            Esp(root, disk=self.disk),
            source_for=self._source_for,
            clock=SystemClock(),
        )
        self.source_for: Callable[[str, Control], Source] = lambda name, control: self.source

    def _source_for(self, name: str, control: Control) -> Source:
        return self.source_for(name, control)

    def put(self, **more: Any) -> int:
        given: dict[str, Any] = {"cap_bytes": None, "control": NeverControl(), "notify": self.notices.append}
        self.last = self.kernels.put(B, self.made, "relay", **(given | more))
        return self.last.fetched

    @property
    def staged(self) -> Path:
        part = uki_of(self.made)
        uki = StagedUki(txn=self.made.txn, sha256=part.sha256, version="2.0", slot=B)
        return self.root / uki.path

    def spans(self) -> list[tuple[int, int]]:
        """Offset and length of each request."""
        return [(offset, length) for _, offset, length in self.source.spans]

    def cut_after(self, pieces: int) -> None:
        """An attempt whose way ends after so many pieces."""
        first = len(self.source.spans)

        def end(number: int) -> None:
            if number >= first + pieces:
                raise SourceError("the relay is gone", code="source.unavailable")

        self.source.before = end
        with pytest.raises(SourceError, match="relay is gone"):
            self.put()
        self.source.before = lambda number: None

    def lie(self, at: int, *, times: int = 9) -> None:
        """The byte at an offset arrives wrong."""
        left = [times]

        def tamper(path: str, offset: int, data: bytes) -> bytes:
            if not offset <= at < offset + len(data) or not left[0]:
                return data
            left[0] -= 1
            return data[: at - offset] + bytes([data[at - offset] ^ 1]) + data[at - offset + 1 :]

        self.source.tamper = tamper

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


def test_a_staged_image_that_went_bad_is_no_proof_and_what_is_wrong_is_fetched_again(bench: Bench) -> None:
    bench.put()
    data = bytearray(KERNEL)
    data[PIECE + 1000] ^= 1
    bench.staged.write_bytes(data)
    assert not bench.kernels.is_staged(B, bench.made)
    bench.source.spans.clear()
    assert bench.put() == PIECE
    assert bench.spans() == [(PIECE, PIECE)]
    assert bench.staged.read_bytes() == KERNEL
    (notice,) = bench.notices
    assert notice.code == "slot.io" and str(PIECE) in notice.text, (
        "a larger download than the offer said is audited"
    )


@pytest.mark.parametrize("offset", [0, len(KERNEL) - 1])
def test_wrong_bytes_are_asked_for_once_more_and_never_written(bench: Bench, offset: int) -> None:
    bench.lie(offset)
    with pytest.raises(SourceError) as caught:
        bench.put()
    assert caught.value.code == "source.bad-bytes"
    number = offset // PIECE
    assert [at for at, _ in bench.spans()[-2:]] == [number * PIECE] * 2
    assert (bench.staged.read_bytes() if number else b"") == KERNEL[: number * PIECE]
    assert [notice.code for notice in bench.notices] == ["source.bad-bytes"]


def test_a_piece_that_is_right_the_second_time_is_used(bench: Bench) -> None:
    bench.lie(PIECE + 5, times=1)
    assert bench.put() == len(KERNEL) + PIECE
    assert bench.staged.read_bytes() == KERNEL


# --- an attempt that ends early, and the next one ---


def test_a_cancel_ends_the_fetch_and_discarding_leaves_nothing(bench: Bench) -> None:
    class Canceled(NeverControl):
        def cancelled(self) -> bool:
            return len(bench.source.spans) > 0

    with pytest.raises(InstallCancelledError):
        bench.put(control=Canceled())
    bench.kernels.discard(B)
    assert bench.private() == []


def test_a_kernel_image_that_was_cut_goes_on_where_it_ended(bench: Bench) -> None:
    bench.cut_after(4)
    bench.source.spans.clear()
    reports: list[KernelProgress] = []
    fetched = bench.put(report=reports.append)
    assert fetched == len(KERNEL) - 4 * PIECE
    assert bench.spans()[0][0] == 4 * PIECE
    assert bench.staged.read_bytes() == KERNEL
    assert bench.last == KernelProgress(
        length=len(KERNEL), kept=4 * PIECE, written=fetched, fetched=fetched, expected=fetched
    )
    assert [report.written for report in reports] == [PIECE, fetched]
    assert bench.notices == []


def test_a_cut_at_80_percent_of_a_large_image_costs_nothing_again(tmp_path: Path) -> None:
    kernel = Random(6).randbytes(20 * PIECE + 1)
    bench = Bench(tmp_path / "esp", kernel=kernel)
    bench.cut_after(17)
    assert bench.put() == len(kernel) - 17 * PIECE
    assert bench.staged.read_bytes() == kernel


@pytest.mark.parametrize("at", [0, PIECE, 4 * PIECE - 1])
def test_a_corrupted_byte_in_what_is_staged_costs_its_piece_and_is_audited(bench: Bench, at: int) -> None:
    bench.cut_after(4)
    with bench.staged.open("r+b") as file:
        file.seek(at)
        file.write(bytes([KERNEL[at] ^ 1]))
    assert bench.put() == len(KERNEL) - 3 * PIECE
    assert bench.staged.read_bytes() == KERNEL
    assert [notice.code for notice in bench.notices] == ["slot.io"]


def test_a_torn_tail_costs_the_piece_that_it_tore(bench: Bench) -> None:
    bench.cut_after(4)
    os.truncate(bench.staged, 3 * PIECE + 77)
    assert bench.put() == len(KERNEL) - 3 * PIECE
    assert bench.staged.read_bytes() == KERNEL


def test_a_length_that_was_never_written_is_not_believed(bench: Bench) -> None:
    """FAT may have the size of a file on storage before its content."""
    bench.cut_after(2)
    os.truncate(bench.staged, len(KERNEL))
    assert bench.put() == len(KERNEL) - 2 * PIECE
    assert bench.staged.read_bytes() == KERNEL


@pytest.mark.parametrize("length", [3, 9 * PIECE])
def test_a_file_under_the_right_name_with_other_content_is_not_believed(bench: Bench, length: int) -> None:
    bench.staged.write_bytes(KERNEL[:PIECE] + Random(9).randbytes(length))
    assert bench.put() == len(KERNEL) - PIECE, "the piece that is equal is right, whoever wrote it"
    assert bench.staged.read_bytes() == KERNEL


@pytest.mark.parametrize("version", ["1.9", "2.0"])
def test_what_another_release_or_another_build_of_it_staged_makes_room(bench: Bench, version: str) -> None:
    name = f"{'0' * 16}-{'a' * 64}-tidewaiter-{version}.B.uki"
    (bench.root / PRIVATE / name).write_bytes(KERNEL[: 3 * PIECE])
    assert bench.put() == len(KERNEL)
    assert bench.private() == [bench.staged.name]


def test_a_file_that_may_share_its_clusters_is_neither_written_to_nor_removed(bench: Bench) -> None:
    """A cut rename on FAT leaves two names for one file; nobody knows which of them the other would lose."""
    bench.cut_after(4)
    rival = bench.root / ENTRIES / "tidewaiter-2.0.B+3.efi"
    os.link(bench.staged, rival)
    assert bench.put() == len(KERNEL)
    assert bench.staged.read_bytes() == KERNEL
    (aside,) = set(bench.private()) - {bench.staged.name}
    assert rival.samefile(bench.root / PRIVATE / aside)
    assert rival.read_bytes() == KERNEL[: 4 * PIECE]


def test_a_full_partition_in_the_middle_costs_no_piece_that_is_there(bench: Bench) -> None:
    bench.disk.room = 3 * PIECE + 100
    with pytest.raises(SlotError) as caught:
        bench.put()
    assert (caught.value.code, caught.value.retryable) == ("slot.io", True)
    bench.disk.room = 10**9
    assert bench.put() == len(KERNEL) - 3 * PIECE
    assert bench.staged.read_bytes() == KERNEL


def test_a_medium_that_keeps_other_bytes_is_found_before_the_image_has_its_name(bench: Bench) -> None:
    bench.disk.spoils = True
    with pytest.raises(SlotError) as caught:
        bench.put()
    assert caught.value.code == "slot.io"
    assert bench.private() == [], "other clusters may keep what these did not"
    bench.disk.spoils = False
    assert bench.put() == len(KERNEL)


def test_right_pieces_of_a_wrong_whole_are_a_defect_of_the_release(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "esp", sha256=Sha256.of(b"another image"))
    with pytest.raises(PayloadChunkError):
        bench.put()
    assert bench.private() == []


def test_pieces_are_on_storage_before_more_than_4_mib_follow(bench: Bench) -> None:
    bench.put()
    assert bench.disk.most_unsynced <= 4 * PIECE


# --- budget ---


def test_a_cut_makes_no_room_for_more_than_the_policy_allows(bench: Bench) -> None:
    bench.cut_after(4)
    with pytest.raises(BudgetError):
        bench.put(cap_bytes=len(KERNEL) - 1)
    assert bench.put(cap_bytes=len(KERNEL)) == len(KERNEL) - 4 * PIECE


def test_tries_that_break_off_end_before_the_policy_is_exceeded(tmp_path: Path) -> None:
    """Each answer but the first breaks off shortly before its end; the relay would be asked for it five times."""
    bench = Bench(tmp_path / "esp")
    part = uki_of(bench.made)
    target = tmp_path / "repository" / "targets" / f"releases/{PRODUCT}/2.0/{part.sha256}.kernel.efi"
    target.parent.mkdir(parents=True)
    target.write_bytes(KERNEL)
    cap = len(KERNEL) + PIECE
    with relaying(tmp_path / "repository", tmp_path / "s") as relay:

        def break_off(ask: Ask, honest: Answer) -> Answer | None:
            return replace(honest, body=honest.body[: PIECE - 100]) if ask.offset >= PIECE else None

        relay.lie = break_off
        sources: list[RelaySource] = []

        def source_for(name: str, control: Control) -> Source:
            patience = Patience(backoff_base_s=0.001, backoff_cap_s=0.001, distrust_tries=9, tries=9)
            sources.append(
                RelaySource(
                    tmp_path / "s", clock=SystemClock(), patience=patience, cancelled=control.cancelled
                )
            )
            return sources[-1]

        bench.source_for = source_for
        with pytest.raises(BudgetError):
            bench.put(cap_bytes=cap)
        assert 2 * PIECE < sources[-1].received_bytes <= cap
        relay.lie = lambda ask, honest: None
        assert bench.put(cap_bytes=cap) == len(KERNEL) - PIECE
    assert bench.staged.read_bytes() == KERNEL


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


def test_what_is_staged_in_part_is_no_promise_that_less_is_fetched(bench: Bench) -> None:
    bench.cut_after(4)
    assert bench.kernels.missing_bytes(B, bench.made) == len(KERNEL)


def test_what_is_staged_in_part_needs_room_for_the_rest_and_the_copy(bench: Bench) -> None:
    bench.cut_after(4)
    bench.disk.free = 2 * len(KERNEL) - 4 * PIECE + 128 * 1024
    bench.kernels.require(B, bench.made)
    bench.disk.free = 2 * len(KERNEL) - 4 * PIECE - 1
    assert bench.refusal(bench.made) == "update.no-space"
    with pytest.raises(SlotError, match="not staged"):
        bench.put()


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


@pytest.mark.parametrize("pieces", [0, 4, 6])
def test_the_slot_may_fetch_what_the_policy_leaves_beside_the_kernel_image_with_and_without_a_cut(
    both: Both, pieces: int
) -> None:
    if pieces == 6:
        both.bench.put()
    elif pieces:
        both.bench.cut_after(pieces)
    last = both.write(cap_bytes=len(KERNEL) + 600)
    assert both.inner.caps == [600]
    assert last.counts.skipped == min(pieces * PIECE, len(KERNEL))
    assert last.counts.fetched == 400 + len(KERNEL) - last.counts.skipped


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
