"""Small downloads: the ways to an image, what they cost, and that no failure makes one of them silently larger."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.audit import AuditUnavailableError
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload import PayloadError
from tidewaiter_core.payload.patch import build_head
from tidewaiter_core.payload.patchhashes import encode_hashes
from tidewaiter_core.payload.patchmap import Kind, encode_number
from tidewaiter_core.payload.release import Release, build_release
from tidewaiter_release.zstd import compress_behind
from tidewaiter_updater.errors import BudgetError, SourceError, SourceRefusedError
from tidewaiter_updater.health import NeverControl
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.medium import Medium, SystemMedia
from tidewaiter_updater.model import SlotRecord, TransferProgress
from tidewaiter_updater.ports import Notice
from tidewaiter_updater.readback import IndexTable
from tidewaiter_updater.slot_store import DeviceSlots

from tests.sim.clock import FakeClock
from tests.sim.device import release_fields
from tests.sim.packs import CHUNK_BYTES, MemorySource, Packed, packed, patched_by, random_image, with_patch
from tests.sim.patches import BLOCK, chunk_hashes

CHUNKS = 24
A, B = SlotName.A, SlotName.B


def new_image(old: bytes) -> bytes:
    """Like `old`, with everything that a patch can say, far and near."""
    rng = random.Random(5)
    new = bytearray(old)
    new[10] ^= 1  # chunk 0
    shifted = old[3 * CHUNK_BYTES : 6 * CHUNK_BYTES]
    new[3 * CHUNK_BYTES : 6 * CHUNK_BYTES] = (
        b"x" + shifted[:-1]
    )  # literals that their prefix has nearly whole
    new[8 * CHUNK_BYTES : 9 * CHUNK_BYTES] = bytes(CHUNK_BYTES)
    fresh = rng.randbytes(2 * BLOCK)
    for place in (10 * CHUNK_BYTES, 10 * CHUNK_BYTES + 4 * BLOCK, 18 * CHUNK_BYTES):
        new[place : place + len(fresh)] = fresh  # NEW in the same chunk and in a later one
    new[20 * CHUNK_BYTES : 20 * CHUNK_BYTES + BLOCK] = new[:BLOCK]  # NEW out of chunk 0
    new[12 * CHUNK_BYTES : 12 * CHUNK_BYTES] = rng.randbytes(BLOCK)  # everything behind moves by a block
    return bytes(new)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return packed(random_image(CHUNKS, seed=1), tmp_path_factory.mktemp("old"), version="1.0")


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, old: Packed) -> Packed:
    folder = tmp_path_factory.mktemp("new")
    return with_patch(packed(new_image(old.image), folder, version="2.0"), old, folder / "patch")


class WornMedium:
    """A slot opened for reading, a part of which cannot be read any more."""

    zeroes_ranges = False

    def __init__(self, whole: Medium, worn: tuple[int, int]) -> None:
        self._whole, self._worn = whole, worn
        self.name, self.size_bytes = whole.name, whole.size_bytes

    def read(self, buffer: memoryview, offset: int) -> int:
        if offset < self._worn[1] and self._worn[0] < offset + len(buffer):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self._whole.read(buffer, offset)

    def write(self, buffer: memoryview, offset: int) -> int:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def zero(self, offset: int, length: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def sync(self) -> None:
        """Nothing was written."""

    def reopen(self) -> Medium:
        return WornMedium(self._whole.reopen(), self._worn)

    def close(self) -> None:
        self._whole.close()


class WornMedia(SystemMedia):
    """Slots that are files; set `worn` to what cannot be read of one that is opened for reading: from, to."""

    worn = (0, 0)

    def open(self, path: Path, *, writable: bool) -> Medium:
        medium = super().open(path, writable=writable)
        return medium if writable else WornMedium(medium, self.worn)


class Bench:
    """Slot A runs the old image and is recorded to; slot B is to take the new one."""

    def __init__(self, folder: Path, old: Packed, new: Packed, *, target: bytes = b"") -> None:
        self.paths = {A: folder / "slot-a", B: folder / "slot-b"}
        self.size = max(len(old.image), len(new.image)) + 4 * BLOCK
        self.paths[A].write_bytes(old.image.ljust(self.size, b"\xa5"))
        self.paths[B].write_bytes(target.ljust(self.size, b"\xa5"))
        self.old, self.new = old, new
        self.source = MemorySource.of(old, new)
        self.store = IndexStore(folder / "index")
        self.records: dict[SlotName, SlotRecord] = {}
        self.record(A, old)
        self.reports: list[TransferProgress] = []
        self.notices: list[Notice] = []
        self.on_notice: Callable[[Notice], None] = self.notices.append
        self.media = WornMedia()
        self.slots = DeviceSlots(
            self.paths,
            media=self.media,
            store=self.store,
            records=lambda: self.records,
            source_for=lambda name, control: self.source,
            clock=FakeClock(),
            beat=lambda stage: None,
        )

    def record(self, slot: SlotName, made: Packed) -> None:
        self.store.keep_hashes(IndexTable(made.index))
        self.records[slot] = SlotRecord(
            digest=Sha256.of(b""), root=made.component.image_root, sequence=1, epoch=0, version="x"
        )

    def write(self, *, cap_bytes: int | None = None, resume: bool = False) -> TransferProgress:
        self.slots.write(
            B,
            self.release,
            "relay",
            resume=resume,
            cap_bytes=cap_bytes,
            report=self.reports.append,
            notify=self.on_notice,
            control=NeverControl(),
        )
        return self.reports[-1]

    @property
    def release(self) -> Release:
        template = Release.parse(build_release(release_fields("2.0", 2, self.new.component.image_root)))
        return replace(template, components=(self.new.component,))

    @property
    def content(self) -> bytes:
        return self.paths[B].read_bytes()[: len(self.new.image)]

    def damage(self, offset: int) -> None:
        """Flip a bit of the running slot."""
        with self.paths[A].open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    @property
    def asked(self) -> set[str]:
        """Which files were asked for."""
        return {path.rpartition(".")[2] for path, _, _ in self.source.spans}


@pytest.fixture
def bench(tmp_path: Path, old: Packed, new: Packed) -> Bench:
    return Bench(tmp_path, old, new)


# What it costs


def test_a_patch_gives_the_image_and_nothing_else_is_fetched(bench: Bench) -> None:
    result = bench.write()
    assert bench.content == bench.new.image
    assert bench.asked == {"twpt"}
    assert result.counts.fetched == result.counts.expected_fetch == len(bench.new.patch)
    assert len(bench.new.patch) * 5 < len(bench.new.pack)
    assert bench.notices == []


def test_a_patched_slot_is_read_back_without_an_index(bench: Bench) -> None:
    bench.write()
    bad = bench.slots.read_back(
        B, bench.release, "relay", report=bench.reports.append, control=NeverControl()
    )
    assert bad == 0
    assert bench.asked == {"twpt"}


def test_bytes_are_counted_by_where_they_came_from(bench: Bench) -> None:
    counts = bench.write().by_source
    assert counts.pack == counts.resume == 0
    assert counts.zero == CHUNK_BYTES
    assert counts.patch > 0
    assert counts.copy > 5 * CHUNK_BYTES
    assert counts.patch + counts.copy + counts.zero == len(bench.new.image)


def test_a_change_of_one_byte_costs_head_and_one_small_segment(tmp_path: Path, old: Packed) -> None:
    image = bytearray(old.image)
    image[7 * CHUNK_BYTES + 99] ^= 1
    new = with_patch(packed(bytes(image), tmp_path / "new"), old, tmp_path / "patch")
    bench = Bench(tmp_path, old, new)
    assert bench.write().counts.fetched < 1024
    assert bench.content == new.image


def test_an_equal_target_costs_no_byte(tmp_path: Path, old: Packed, new: Packed) -> None:
    bench = Bench(tmp_path, old, new, target=new.image)
    bench.record(B, new)
    result = bench.write()
    assert result.counts.fetched == result.counts.written == 0
    assert bench.source.spans == []
    assert bench.slots.expected_fetch_bytes(B, bench.release, "relay") == 0


def test_the_running_image_itself_costs_no_byte(tmp_path: Path, old: Packed) -> None:
    bench = Bench(tmp_path, old, old)
    result = bench.write()
    assert bench.content == old.image
    assert bench.source.spans == []
    assert result.by_source.copy == len(old.image)


def test_segments_that_only_right_chunks_need_are_not_fetched(bench: Bench) -> None:
    target = bytearray(bench.new.image)
    target[15 * CHUNK_BYTES : 16 * CHUNK_BYTES] = bytes(CHUNK_BYTES)  # a chunk that the running slot has
    bench.paths[B].write_bytes(target.ljust(bench.size, b"\xa5"))
    bench.write(resume=True)
    assert bench.content == bench.new.image
    assert bench.source.received_bytes == bench.new.component.patches[0].head_bytes


def test_a_kept_head_is_not_fetched_again(bench: Bench) -> None:
    bench.write()
    fetched = bench.source.received_bytes
    bench.paths[B].write_bytes(bytes(bench.size))
    bench.write(resume=True)
    assert bench.content == bench.new.image
    assert (
        bench.source.received_bytes - fetched
        == len(bench.new.patch) - bench.new.component.patches[0].head_bytes
    )


def test_an_interrupted_patch_goes_on_where_it_stopped(bench: Bench) -> None:
    head = bench.new.component.patches[0].head_bytes

    def vanish(number: int) -> None:
        if number == 1:
            raise SourceError("the network is gone", code="source.unavailable")

    bench.source.before = vanish
    with pytest.raises(SourceError) as caught:
        bench.write()
    assert caught.value.code == "source.unavailable"
    assert bench.content[:BLOCK] == bytes(BLOCK)
    bench.source.before = lambda number: None
    bench.write(resume=True)
    assert bench.content == bench.new.image
    assert bench.asked == {"twpt"}
    assert bench.source.received_bytes == len(bench.new.patch)
    assert head < len(bench.new.patch)


def test_offers_say_what_the_cheapest_way_costs(bench: Bench, old: Packed) -> None:
    assert bench.slots.expected_fetch_bytes(B, bench.release, "relay") == len(bench.new.patch)
    bench.records.clear()
    whole = len(bench.new.pack) + len(bench.new.index_bytes)
    assert bench.slots.expected_fetch_bytes(B, bench.release, "relay") == whole


def test_chunks_that_moved_to_the_front_of_the_target_are_not_fetched(tmp_path: Path, old: Packed) -> None:
    moved = old.image[3 * CHUNK_BYTES :] + random.Random(3).randbytes(CHUNK_BYTES)
    new = packed(moved, tmp_path / "new")
    bench = Bench(tmp_path, old, new, target=old.image)
    del bench.records[A]
    bench.record(B, old)
    result = bench.write()
    assert bench.content == new.image
    assert result.by_source.copy == (CHUNKS - 3) * CHUNK_BYTES
    assert result.by_source.pack == CHUNK_BYTES


# When the running slot is not what its record says


def test_a_chunk_of_a_damaged_running_slot_comes_from_the_pack_and_is_reported_once(bench: Bench) -> None:
    bench.damage(15 * CHUNK_BYTES)
    result = bench.write()
    assert bench.content == bench.new.image
    assert result.by_source.pack == CHUNK_BYTES
    (notice,) = bench.notices
    assert notice.code == "slot.active-differs" and notice.text.startswith("1 chunks")


@pytest.mark.parametrize(
    ("chunk", "from_pack"), [(15, 2), (4, 6)], ids=["copied_into_two_chunks", "in_the_prefix_of_all_literals"]
)
def test_a_running_slot_that_cannot_be_read_costs_chunks_and_not_the_update(
    bench: Bench, chunk: int, from_pack: int
) -> None:
    bench.media.worn = (chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES)
    result = bench.write()
    assert bench.content == bench.new.image
    assert result.by_source.pack == from_pack * CHUNK_BYTES
    assert [notice.code for notice in bench.notices] == ["slot.active-differs"]


def test_wrong_prefix_output_is_never_written(bench: Bench) -> None:
    for at in range(3 * CHUNK_BYTES, 6 * CHUNK_BYTES, 512):
        bench.damage(at)  # only the prefix of a segment reads these chunks
    result = bench.write()
    assert bench.content == bench.new.image
    assert result.by_source.pack >= CHUNK_BYTES
    assert {notice.code for notice in bench.notices} == {"slot.active-differs"}


def test_another_running_image_is_left_for_the_pack_by_a_plan_of_its_own(tmp_path: Path) -> None:
    bench = large(tmp_path)
    new = bench.new
    bench.paths[A].write_bytes(random.Random(9).randbytes(bench.size))
    result = bench.write(cap_bytes=len(new.pack) + len(new.index_bytes) + len(new.patch) + (2 << 20))
    assert bench.content == new.image
    assert bench.notices[0].code == "slot.active-differs"
    assert "planned anew by pack" in bench.notices[0].text
    assert result.by_source.pack > 0


def test_patch_failure_never_becomes_a_full_download_over_the_cap(tmp_path: Path) -> None:
    bench = large(tmp_path)
    bench.paths[A].write_bytes(random.Random(9).randbytes(bench.size))
    cap_bytes = len(bench.new.patch) + (2 << 20)
    for attempt in range(3):
        before = bench.source.received_bytes
        with pytest.raises(BudgetError) as caught:
            bench.write(cap_bytes=cap_bytes, resume=attempt > 0)
        assert str(cap_bytes) in str(caught.value)
        assert "would have to be fetched" in str(caught.value)
        assert bench.source.received_bytes - before <= cap_bytes
    assert bench.content[:BLOCK] == bytes(BLOCK)
    assert all("planned anew by pack" in notice.text for notice in bench.notices)


def test_the_new_plan_is_audited_before_its_first_byte_or_not_begun(tmp_path: Path) -> None:
    bench = large(tmp_path)
    bench.paths[A].write_bytes(random.Random(9).randbytes(bench.size))
    packs: list[int] = []

    def full(notice: Notice) -> None:
        packs.append(
            sum(path.endswith("pack.twpk") and length > CHUNK_BYTES for path, _, length in bench.source.spans)
        )
        raise AuditUnavailableError("the log is full")

    bench.on_notice = full
    with pytest.raises(AuditUnavailableError):
        bench.write()
    assert packs == [0]
    assert bench.content[:BLOCK] == bytes(BLOCK)


def test_a_target_that_is_not_what_it_is_recorded_to_hold_is_found_out(
    tmp_path: Path, old: Packed, new: Packed
) -> None:
    bench = Bench(tmp_path, old, new, target=old.image)
    bench.record(B, new)
    bench.write()
    assert bench.content == new.image
    assert "planned anew by patch" in bench.notices[0].text


def large(folder: Path) -> Bench:
    """Images of 6 MiB, so that the slack of 1 MiB does not hide a full download."""
    old = packed(random.Random(1).randbytes(96 * CHUNK_BYTES), folder / "old")
    image = bytearray(old.image)
    image[5 * CHUNK_BYTES] ^= 1
    new = with_patch(packed(bytes(image), folder / "new", version="2.0"), old, folder / "patch")
    return Bench(folder, old, new)


# When the patch is not what it should be


def test_a_patch_over_the_cap_is_refused_before_its_first_byte(bench: Bench) -> None:
    with pytest.raises(BudgetError) as caught:
        bench.write(cap_bytes=100)
    assert bench.source.received_bytes == 0
    assert "100 are allowed" in str(caught.value)
    assert bench.content == b"\xa5" * len(bench.new.image)


def test_segments_over_the_cap_are_refused_before_the_slot_is_touched(bench: Bench) -> None:
    head = bench.new.component.patches[0].head_bytes
    with pytest.raises(BudgetError):
        bench.write(cap_bytes=head + 10)
    assert bench.source.received_bytes == head


@pytest.mark.parametrize("status", [403, 404])
def test_a_patch_that_the_server_lacks_is_announced_and_the_pack_taken(bench: Bench, status: int) -> None:
    def refuse(path: str, offset: int, data: bytes) -> bytes:
        if path.endswith(".twpt"):
            raise SourceRefusedError(f"{path}: refused", status=status)
        return data

    bench.source.tamper = refuse
    bench.write()
    assert bench.content == bench.new.image
    assert [notice.code for notice in bench.notices] == ["source.unavailable"]


def test_a_segment_that_arrives_wrong_once_is_fetched_again_alone(bench: Bench) -> None:
    seen: set[int] = set()

    def once(path: str, offset: int, data: bytes) -> bytes:
        if path.endswith(".twpt") and offset > 0 and offset not in seen:
            seen.add(offset)
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    bench.source.tamper = once
    bench.write()
    assert bench.content == bench.new.image
    assert bench.asked == {"twpt"}
    assert bench.notices == []


def test_flipped_bit_anywhere_in_index_pack_or_patch_never_reaches_the_slot(
    tmp_path: Path, old: Packed, new: Packed
) -> None:
    rng = random.Random(4)
    right = set(chunk_hashes(new.image))
    for number in range(40):
        (folder := tmp_path / str(number)).mkdir()
        bench = Bench(folder, old, new)
        if number % 2:
            del bench.records[A]  # then index and pack are the way
        target = rng.choice([new.patch_target] if not number % 2 else [new.index_target, new.pack_target])
        data = bytearray(bench.source.targets[target])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        bench.source.targets[target] = bytes(data)
        try:
            bench.write()
        except SourceError as err:
            assert err.code == "source.bad-bytes"
        else:
            assert bench.content == new.image
        for at, digest in enumerate(chunk_hashes(bench.content)):
            untouched = bench.content[at * CHUNK_BYTES :][:CHUNK_BYTES].strip(b"\xa5\0") == b""
            assert digest in right or untouched, f"chunk {at} holds bytes that nobody signed"


def hostile(new: Packed, old: Packed, raw_map: bytes) -> Packed:
    """A rightly signed patch whose map says `raw_map`."""
    head = build_head(
        old_bytes=len(old.image),
        new_bytes=len(new.image),
        old_root=old.component.image_root,
        new_root=new.component.image_root,
        new_sha256=new.component.image_sha256,
        map_frame=compress_behind(raw_map, b"", level=1, window_log=12),
        map_bytes=len(raw_map),
        regions=b"",
        hashes=encode_hashes(chunk_hashes(old.image), chunk_hashes(new.image)),
        segments=[],
    )
    return patched_by(new, head, len(head), from_root=old.component.image_root)


@pytest.mark.parametrize(
    "raw_map",
    [
        encode_number(10_000 << 2 | Kind.OLD) + encode_number(0),
        encode_number(1 << 2 | Kind.OLD) + encode_number(1_000_000),
        encode_number(1 << 2 | Kind.NEW) + encode_number(1),
        encode_number(5 << 2 | Kind.LITERAL),
        encode_number(1 << 2 | Kind.ZERO),
    ],
)
def test_a_signed_but_unsound_patch_ends_before_the_slot_is_touched(
    tmp_path: Path, old: Packed, new: Packed, raw_map: bytes
) -> None:
    bench = Bench(tmp_path, old, hostile(new, old, raw_map))
    with pytest.raises(PayloadError) as caught:
        bench.write()
    assert caught.value.code == "payload.map"
    assert bench.content == b"\xa5" * len(new.image)


def test_a_signed_patch_that_makes_other_bytes_costs_the_pack_and_never_reaches_the_slot(
    tmp_path: Path, old: Packed, new: Packed
) -> None:
    blocks = len(new.image) // BLOCK
    lie = encode_number(16 << 2 | Kind.OLD) + encode_number(0) + encode_number(blocks - 16 << 2 | Kind.ZERO)
    bench = Bench(tmp_path, old, hostile(new, old, lie))
    bench.write()
    assert bench.content == new.image
    assert bench.notices


def test_a_patch_for_another_release_is_refused(tmp_path: Path, old: Packed, new: Packed) -> None:
    other = packed(random_image(CHUNKS, seed=77), tmp_path / "other")
    stolen = patched_by(
        other, new.patch, new.component.patches[0].head_bytes, from_root=old.component.image_root
    )
    bench = Bench(tmp_path, old, stolen)
    with pytest.raises(PayloadError, match=r"release\.json says"):
        bench.write()


def test_a_full_state_directory_is_an_error_of_its_own(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "index").chmod(0o500)
    head = bench.new.component.patches[0].head_sha256
    (tmp_path / "index" / f"{head}.part").mkdir(parents=True)  # also root cannot create the file
    with pytest.raises(TidewaiterError) as caught:
        bench.write()
    assert caught.value.code.startswith("core.")
    assert bench.content == b"\xa5" * len(bench.new.image)
