"""The engine's slots over real files: install, reuse, read-back, and proof of a slot."""

from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.release import Release, build_release
from tidewaiter_updater.errors import BudgetError, InstallCancelledError, SlotError
from tidewaiter_updater.health import NeverControl
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import SlotRecord, TransferProgress
from tidewaiter_updater.ports import Notice
from tidewaiter_updater.slot_store import DeviceSlots

from tests.sim.clock import FakeClock
from tests.sim.device import release_fields
from tests.sim.packs import MemorySource, Packed, packed, random_image

CHUNKS = 12
A, B = SlotName.A, SlotName.B


class Canceled(NeverControl):
    def cancelled(self) -> bool:
        return True


class Bench:
    """Two slot files, a repository, and what the slots are recorded to hold."""

    def __init__(self, folder: Path) -> None:
        self.paths = {slot: folder / f"slot-{slot.lower()}" for slot in SlotName}
        self.old = packed(random_image(CHUNKS, seed=1), folder / "old", version="1.0")
        self.new = packed(random_image(CHUNKS, seed=2, zero=(4,)), folder / "new", version="2.0")
        for path in self.paths.values():
            path.write_bytes(self.old.image)
        self.source = MemorySource.of(self.old, self.new)
        self.records: dict[SlotName, SlotRecord] = {}
        self.reports: list[TransferProgress] = []
        self.notices: list[Notice] = []
        self.beats: list[str] = []
        self.asked: list[str] = []
        """Source names that bytes were wanted from."""
        self.slots = DeviceSlots(
            self.paths,
            store=IndexStore(folder / "index"),
            records=lambda: self.records,
            source_for=self._source_for,
            clock=FakeClock(),
            beat=self.beats.append,
        )

    def write(
        self, made: Packed, slot: SlotName = B, *, cap_bytes: int | None = None, cancel: bool = False
    ) -> None:
        self.slots.write(
            slot,
            release_of(made),
            "relay",
            resume=False,
            cap_bytes=cap_bytes,
            report=self.reports.append,
            notify=self.notices.append,
            control=Canceled() if cancel else NeverControl(),
        )
        self.records[slot] = SlotRecord(
            digest=Sha256.of(b""), root=made.component.image_root, sequence=1, epoch=0, version="x"
        )

    def _source_for(self, name: str, control: object) -> MemorySource:
        self.asked.append(name)
        return self.source

    def read_back(self, made: Packed, *, source: str = "relay") -> int:
        return self.slots.read_back(
            B, release_of(made), source, report=self.reports.append, control=NeverControl()
        )


def release_of(made: Packed) -> Release:
    """A release whose slot component is that of `made`."""
    template = Release.parse(build_release(release_fields("2.0", 2, made.component.image_root)))
    return replace(template, components=(made.component,))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_release_is_written_and_read_back(bench: Bench) -> None:
    bench.write(bench.new)
    assert bench.paths[B].read_bytes()[: len(bench.new.image)] == bench.new.image
    assert bench.read_back(bench.new) == 0
    assert bench.reports[-1].counts.total == len(bench.new.image)


def test_a_lost_index_is_fetched_again_from_the_source_of_the_transaction(
    bench: Bench, tmp_path: Path
) -> None:
    bench.write(bench.new)
    for file in (tmp_path / "index").iterdir():
        file.unlink()
    bench.asked.clear()
    assert bench.read_back(bench.new, source="directory:/media/stick") == 0
    assert bench.asked == ["directory:/media/stick"]


def test_a_read_back_counts_what_the_medium_lost(bench: Bench) -> None:
    bench.write(bench.new)
    with bench.paths[B].open("r+b") as file:
        file.seek(70_000)
        file.write(b"rot")
    assert bench.read_back(bench.new) == 1


def test_what_a_recorded_slot_holds_is_not_fetched_again(bench: Bench) -> None:
    bench.write(bench.old)
    fetched = bench.source.received_bytes
    bench.write(bench.old)
    assert bench.source.received_bytes == fetched


def test_chunks_of_the_active_slot_are_copied(bench: Bench) -> None:
    bench.write(bench.old, A)
    bench.source.targets.pop(bench.old.pack_target)
    bench.write(bench.old, B)
    assert bench.paths[B].read_bytes() == bench.old.image


def test_a_slot_is_proven_without_any_kept_table(bench: Bench) -> None:
    assert bench.slots.holds(A, release_of(bench.old), control=NeverControl())
    assert not bench.slots.holds(A, release_of(bench.new), control=NeverControl())


def test_a_check_of_another_thread_does_not_vouch_for_the_worker(bench: Bench) -> None:
    bench.slots.holds(A, release_of(bench.old), control=NeverControl(), beats=False)
    assert bench.beats == []
    bench.slots.holds(A, release_of(bench.old), control=NeverControl())
    assert bench.beats


def test_more_than_the_cap_is_neither_fetched_nor_written(bench: Bench) -> None:
    before = bench.paths[B].read_bytes()
    with pytest.raises(BudgetError):
        bench.write(bench.new, cap_bytes=1000)
    assert bench.paths[B].read_bytes() == before


def test_a_canceled_transfer_ends(bench: Bench) -> None:
    with pytest.raises(InstallCancelledError):
        bench.write(bench.new, cancel=True)


def test_a_slot_that_is_too_small_is_refused_before_anything_is_written(bench: Bench) -> None:
    bench.paths[B].write_bytes(bytes(4096))
    with pytest.raises(SlotError) as caught:
        bench.slots.check(B, release_of(bench.new))
    assert caught.value.code == "slot.size"


def test_the_expected_fetch_is_bounded_by_the_signed_sizes(bench: Bench) -> None:
    release = release_of(bench.new)
    expected = bench.slots.expected_fetch_bytes(B, release, "relay")
    bench.write(bench.new)
    assert bench.source.received_bytes <= expected == release.slot.pack.length + release.slot.index.length


def test_a_slot_whose_partition_has_another_label_than_its_name_is_never_written(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    links = tmp_path / "by-partlabel"
    links.mkdir()
    (links / "root-b").symlink_to(bench.paths[B])
    bench.paths[B] = links / "root-b"
    before = bench.paths[B].read_bytes()
    with pytest.raises(SlotError, match="expected partition label 'root-b', found None") as caught:
        bench.write(bench.new)
    assert caught.value.code == "slot.label"
    assert bench.paths[B].read_bytes() == before
