"""Filling a slot: what is written, what is not, and what happens when disk, pack or power fail."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.payload import Method
from tidewaiter_updater.device import SlotDevice
from tidewaiter_updater.errors import BudgetError, InstallCancelledError, SlotError, SourceError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import TransferProgress
from tidewaiter_updater.readback import IndexTable
from tidewaiter_updater.slots import ActiveSlot, Control, InstallResult, install, matches, read_back, verify
from tidewaiter_updater.sources import RelaySource

from tests.sim.clock import FakeClock
from tests.sim.disk import BLOCK_BYTES, FaultyDisk
from tests.sim.packs import CHUNK_BYTES, MemorySource, Packed, packed, random_image
from tests.sim.relay import Answer, relaying

CHUNKS = 40


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    image = random_image(CHUNKS, seed=1, zero=(5, 6, *range(20, 38)), same={9: 3, 15: 0, 16: 14})
    return packed(image, tmp_path_factory.mktemp("new"))


@pytest.fixture
def store(tmp_path: Path) -> IndexStore:
    return IndexStore(tmp_path / "index")


def put(
    disk: FaultyDisk, new: Packed, source: MemorySource, store: IndexStore, **more: object
) -> InstallResult:
    return install(
        SlotDevice(disk),
        new.component,
        new.index,
        source,
        store=store,
        clock=SystemClock(),
        **more,  # type: ignore[arg-type]
    )


def test_fresh_install_gives_the_image_and_reads_nothing_of_the_target(
    new: Packed, store: IndexStore
) -> None:
    disk = FaultyDisk(len(new.image) + 8 * BLOCK_BYTES)
    result = put(disk, new, MemorySource.of(new), store)
    disk.power_cut()
    assert disk.content[: len(new.image)] == new.image
    assert result.counts.written == len(new.image)
    assert result.by_source.zero == 20 * CHUNK_BYTES
    assert result.by_source.copy == 3 * CHUNK_BYTES
    same_sources = {
        3,
        14,
    }  # the only chunks of the target that had to be looked at: earlier chunks that are repeated
    assert {offset // CHUNK_BYTES for offset, _ in disk.reads} <= same_sources


def test_fetched_bytes_are_those_of_the_plan(new: Packed, store: IndexStore) -> None:
    source = MemorySource.of(new)
    result = put(FaultyDisk(len(new.image)), new, source, store)
    assert result.counts.fetched == result.counts.expected_fetch == len(new.pack) - 64


def test_block_0_is_zeroed_first_and_chunk_0_is_written_last(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image))
    put(disk, new, MemorySource.of(new), store)
    assert disk.writes[0] == (0, BLOCK_BYTES)
    assert disk.writes[-1] == (0, CHUNK_BYTES)
    assert all(offset >= CHUNK_BYTES for offset, _ in disk.writes[1:-1])


def test_an_interrupted_slot_has_no_superblock_whatever_survives(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image), content=new.image[: 10 * CHUNK_BYTES])
    disk.faults.full_after_bytes = 2_000_000
    with pytest.raises(SlotError):
        put(disk, new, MemorySource.of(new), store)
    disk.power_cut()
    assert disk.content[:BLOCK_BYTES] == bytes(BLOCK_BYTES)


def test_unchanged_chunks_are_not_rewritten(new: Packed, store: IndexStore) -> None:
    old = bytearray(new.image)
    old[7 * CHUNK_BYTES] ^= 1
    disk = FaultyDisk(len(new.image), content=bytes(old))
    result = put(disk, new, MemorySource.of(new), store, resume=True)
    assert sorted(disk.writes) == [(0, BLOCK_BYTES), (0, CHUNK_BYTES), (7 * CHUNK_BYTES, CHUNK_BYTES)]
    assert disk.content == new.image
    assert result.counts.fetched == new.index.unit(7).stored_bytes


def test_an_equal_slot_costs_no_write_and_no_fetch(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image), content=new.image)
    source = MemorySource.of(new)
    result = put(disk, new, source, store, resume=True)
    assert (disk.writes, source.spans, result.counts.written) == ([], [], 0)


def test_only_promised_chunks_are_read_in_a_fresh_install(
    new: Packed, store: IndexStore, tmp_path: Path
) -> None:
    old_image = random_image(8, seed=9)[: 7 * CHUNK_BYTES] + new.image[7 * CHUNK_BYTES : 12 * CHUNK_BYTES]
    old = packed(old_image, tmp_path / "old")
    store.keep_hashes(IndexTable(old.index))
    disk = FaultyDisk(len(new.image), content=old_image)
    table = store.hashes(old.component.image_root)
    assert table is not None
    with table:
        result = put(disk, new, MemorySource.of(new), store, promised=table)
    assert disk.content == new.image
    assert result.by_source.resume == 5 * CHUNK_BYTES
    assert {offset // CHUNK_BYTES for offset, _ in disk.reads} <= {*range(7, 12), 3, 14}


def test_a_promise_the_target_does_not_keep_costs_a_fetch(new: Packed, store: IndexStore) -> None:
    store.keep_hashes(IndexTable(new.index))
    disk = FaultyDisk(len(new.image), content=new.image)
    disk.corrupt(11 * CHUNK_BYTES + 7)
    table = store.hashes(new.component.image_root)
    assert table is not None
    with table:
        put(disk, new, MemorySource.of(new), store, promised=table)
    assert disk.content == new.image


def test_chunks_of_the_active_slot_are_copied_not_fetched(
    new: Packed, store: IndexStore, tmp_path: Path
) -> None:
    moved = random_image(3, seed=5)[: 2 * CHUNK_BYTES] + new.image
    active = packed(moved, tmp_path / "active")
    store.keep_hashes(IndexTable(active.index))
    running = FaultyDisk(len(moved), content=moved, name="slot-a")
    source = MemorySource.of(new)
    disk = FaultyDisk(len(new.image))
    table = store.hashes(active.component.image_root)
    assert table is not None
    with table:
        result = put(disk, new, source, store, active=ActiveSlot(device=SlotDevice(running), table=table))
    assert disk.content == new.image
    assert source.spans == []
    assert result.by_source.copy == 20 * CHUNK_BYTES
    assert running.writes == []


def test_an_active_slot_that_differs_from_its_record_is_counted_and_the_pack_used(
    new: Packed, store: IndexStore
) -> None:
    store.keep_hashes(IndexTable(new.index))
    running = FaultyDisk(len(new.image), content=new.image, name="slot-a")
    running.corrupt(8 * CHUNK_BYTES)
    disk = FaultyDisk(len(new.image))
    table = store.hashes(new.component.image_root)
    assert table is not None
    with table:
        result = put(
            disk, new, MemorySource.of(new), store, active=ActiveSlot(device=SlotDevice(running), table=table)
        )
    assert disk.content == new.image
    assert result.active_differs == 1
    assert result.by_source.pack == CHUNK_BYTES


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_flipped_bit_in_the_pack_never_reaches_the_slot(new: Packed, store: IndexStore, place: str) -> None:
    unit = new.index.unit(8)
    at = unit.offset + {"first": 0, "middle": unit.stored_bytes // 2, "last": unit.stored_bytes - 1}[place]
    pack = bytearray(new.pack)
    pack[at] ^= 0x10
    disk = FaultyDisk(len(new.image))
    source = MemorySource({new.pack_target: bytes(pack)})
    with pytest.raises(SourceError) as caught:
        put(disk, new, source, store)
    assert caught.value.code == "source.bad-bytes"
    disk.sync()
    assert disk.content[8 * CHUNK_BYTES : 9 * CHUNK_BYTES] == b"\xa5" * CHUNK_BYTES


def test_every_byte_of_a_slot_after_a_hostile_pack_is_old_or_right_or_zero(
    new: Packed, store: IndexStore
) -> None:
    half = len(new.pack) // 2

    def lie(path: str, offset: int, data: bytes) -> bytes:
        return bytes(byte if offset + at < half else byte ^ 0xFF for at, byte in enumerate(data))

    source = MemorySource.of(new)
    source.tamper = lie
    disk = FaultyDisk(len(new.image))
    with pytest.raises(SourceError):
        put(disk, new, source, store)
    disk.sync()
    for at in range(0, len(new.image), BLOCK_BYTES):
        block = disk.content[at : at + BLOCK_BYTES]
        assert block in (b"\xa5" * BLOCK_BYTES, new.image[at : at + BLOCK_BYTES], bytes(BLOCK_BYTES))


def test_wrong_bytes_once_are_fetched_again_and_the_install_succeeds(new: Packed, store: IndexStore) -> None:
    source = MemorySource.of(new)
    lies = iter([True])

    def lie(path: str, offset: int, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if next(lies, False) else data

    source.tamper = lie
    disk = FaultyDisk(len(new.image))
    put(disk, new, source, store)
    assert disk.content == new.image


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_a_source_that_gives_another_length_is_refused(
    new: Packed, store: IndexStore, change: object
) -> None:
    source = MemorySource.of(new)
    source.tamper = lambda path, offset, data: change(data)  # type: ignore[operator]
    with pytest.raises(SourceError) as caught:
        put(FaultyDisk(len(new.image)), new, source, store)
    assert caught.value.code == "source.bad-range"


def test_200_for_a_range_request_is_never_appended(new: Packed, store: IndexStore, tmp_path: Path) -> None:
    """A proxy that ignores the range and sends the whole pack, as success: not one byte of it reaches the slot."""
    for target, data in ((new.pack_target, new.pack), (new.index_target, new.index_bytes)):
        path = tmp_path / "repository/targets" / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    disk = FaultyDisk(len(new.image))
    with relaying(tmp_path / "repository", tmp_path / "s") as relay:
        whole = Answer(offset=0, total=len(new.pack), length=len(new.pack), body=new.pack)
        relay.lie = lambda ask, honest: whole if ask.offset > 0 else None
        source = RelaySource(tmp_path / "s", clock=FakeClock())
        with pytest.raises(SourceError) as caught:
            install(SlotDevice(disk), new.component, new.index, source, store=store, clock=FakeClock())
    assert caught.value.code == "source.bad-range"
    disk.sync()
    for at in range(0, len(new.image), BLOCK_BYTES):  # unwritten, or of the zeros that need no range
        assert disk.content[at : at + BLOCK_BYTES] in (b"\xa5" * BLOCK_BYTES, bytes(BLOCK_BYTES))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_refused_write_is_slot_io_and_the_next_attempt_succeeds(
    new: Packed, store: IndexStore, code: int
) -> None:
    disk = FaultyDisk(len(new.image))
    disk.faults.write_errors = {17 * CHUNK_BYTES // BLOCK_BYTES: code}
    with pytest.raises(SlotError) as caught:
        put(disk, new, MemorySource.of(new), store)
    assert (caught.value.code, caught.value.retryable) == ("slot.io", True)
    put(disk, new, MemorySource.of(new), store)
    assert disk.content == new.image


def test_a_failed_sync_is_slot_io_and_the_next_attempt_succeeds(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image))
    disk.faults.sync_error = errno.EIO
    with pytest.raises(SlotError, match="sync"):
        put(disk, new, MemorySource.of(new), store)
    disk.power_cut()
    put(disk, new, MemorySource.of(new), store)
    assert disk.content == new.image


def test_short_writes_are_continued(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image))
    disk.faults.short_writes = 50
    put(disk, new, MemorySource.of(new), store)
    assert disk.content == new.image


def test_after_a_power_cut_only_missing_chunks_are_fetched(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image))
    disk.faults.write_errors = {39 * CHUNK_BYTES // BLOCK_BYTES: errno.EIO}
    with pytest.raises(SlotError):
        put(disk, new, MemorySource.of(new), store)
    disk.sync()
    right = [
        chunk
        for chunk in range(1, CHUNKS)
        if disk.content[chunk * CHUNK_BYTES :][:CHUNK_BYTES] == new.image[chunk * CHUNK_BYTES :][:CHUNK_BYTES]
    ]
    missing = sum(new.index.unit(chunk).stored_bytes for chunk in range(1, CHUNKS) if chunk not in right)
    source = MemorySource.of(new)
    result = put(disk, new, source, store)
    assert len(right) > 10
    assert result.counts.fetched == missing
    assert disk.content == new.image


def test_resume_needs_no_chunk_0_from_the_network_again(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image), content=new.image)
    disk.corrupt(30 * CHUNK_BYTES)
    disk.faults.sync_error = None
    disk.faults.write_errors = {30 * CHUNK_BYTES // BLOCK_BYTES: errno.EIO}
    with pytest.raises(SlotError):
        put(disk, new, MemorySource.of(new), store, resume=True)
    assert disk.content[:BLOCK_BYTES] == bytes(BLOCK_BYTES)
    source = MemorySource.of(new)
    put(disk, new, source, store)
    assert source.spans == []  # chunk 30 is zeros, chunk 0 was kept aside
    assert disk.content == new.image


def test_losing_the_state_directory_costs_fetching_not_correctness(new: Packed, tmp_path: Path) -> None:
    disk = FaultyDisk(len(new.image))
    disk.faults.write_errors = {38 * CHUNK_BYTES // BLOCK_BYTES: errno.EIO}
    with pytest.raises(SlotError):
        put(disk, new, MemorySource.of(new), IndexStore(tmp_path / "one"))
    put(disk, new, MemorySource.of(new), IndexStore(tmp_path / "two"))
    assert disk.content == new.image


def test_a_medium_that_lies_after_sync_is_caught_by_the_read_back_and_repaired_once(
    new: Packed, store: IndexStore
) -> None:
    disk = FaultyDisk(len(new.image))
    put(disk, new, MemorySource.of(new), store)
    disk.corrupt(12 * CHUNK_BYTES + 99)
    assert read_back(SlotDevice(disk), new.index) == [12]
    repaired = verify(
        lambda: SlotDevice(disk),
        new.component,
        new.index,
        MemorySource.of(new),
        store=store,
        clock=SystemClock(),
    )
    assert (repaired, disk.content) == (1, new.image)


def test_chunk_bad_twice_is_a_medium_fault(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image))
    disk.faults.stuck_blocks = {3 * CHUNK_BYTES // BLOCK_BYTES + 2}
    put(disk, new, MemorySource.of(new), store)
    with pytest.raises(SlotError, match="chunk 3") as caught:
        verify(
            lambda: SlotDevice(disk),
            new.component,
            new.index,
            MemorySource.of(new),
            store=store,
            clock=SystemClock(),
        )
    assert (caught.value.code, caught.value.retryable) == ("slot.medium", False)


def test_a_chunk_that_cannot_be_read_back_counts_as_bad(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image), content=new.image)
    disk.faults.read_errors = {16 * CHUNK_BYTES // BLOCK_BYTES: errno.EIO}
    assert 16 in read_back(SlotDevice(disk), new.index)


def test_matches_tells_the_image_from_another(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image) + BLOCK_BYTES, content=new.image)
    store.keep_hashes(IndexTable(new.index))
    table = store.hashes(new.component.image_root)
    assert table is not None
    with table:
        assert matches(SlotDevice(disk), table)
        assert matches(SlotDevice(disk), new.index)
        disk.corrupt(len(new.image) - 1)
        assert not matches(SlotDevice(disk), table)
        assert not matches(SlotDevice(FaultyDisk(BLOCK_BYTES)), table)


def test_more_than_the_cap_is_refused_before_anything_is_fetched_or_written(
    new: Packed, store: IndexStore
) -> None:
    disk = FaultyDisk(len(new.image))
    source = MemorySource.of(new)
    with pytest.raises(BudgetError, match="are allowed"):
        put(disk, new, source, store, cap_bytes=1000)
    assert (disk.writes, source.spans) == ([], [])


def test_a_slot_smaller_than_the_image_is_refused(new: Packed, store: IndexStore) -> None:
    with pytest.raises(SlotError) as caught:
        put(FaultyDisk(len(new.image) - BLOCK_BYTES), new, MemorySource.of(new), store)
    assert caught.value.code == "slot.size"


def test_an_index_of_another_image_is_refused(new: Packed, store: IndexStore) -> None:
    component = replace(new.component, image_sha256=new.component.image_root)
    disk = FaultyDisk(len(new.image))
    with pytest.raises(TidewaiterError) as caught:
        install(
            SlotDevice(disk), component, new.index, MemorySource.of(new), store=store, clock=SystemClock()
        )
    assert (caught.value.code, disk.writes) == ("payload.chunk", [])


def test_cancel_stops_and_a_later_install_finishes(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image))
    steps = iter(range(10))
    with pytest.raises(InstallCancelledError):
        put(
            disk,
            new,
            MemorySource.of(new),
            store,
            control=Control(cancelled=lambda: next(steps, None) is None),
        )
    put(disk, new, MemorySource.of(new), store)
    assert disk.content == new.image


def test_nothing_is_written_while_paused(new: Packed, store: IndexStore) -> None:
    disk = FaultyDisk(len(new.image))
    looks = iter([True, True])
    seen: list[int] = []

    def paused() -> bool:
        seen.append(disk.written_bytes)
        return next(looks, False)

    put(disk, new, MemorySource.of(new), store, control=Control(paused=paused))
    assert seen[:3] == [0] * 3
    assert disk.content == new.image


def test_progress_ends_at_the_total_and_names_the_sources(new: Packed, store: IndexStore) -> None:
    reports: list[TransferProgress] = []
    put(FaultyDisk(len(new.image)), new, MemorySource.of(new), store, progress=reports.append)
    last = reports[-1]
    assert last.counts.written + last.counts.skipped == last.counts.total == len(new.image)
    assert last.by_source.pack + last.by_source.zero + last.by_source.copy == len(new.image)
    assert len(reports) > 2


def test_each_stage_gives_its_beat(new: Packed, store: IndexStore) -> None:
    stages: set[str] = set()
    put(FaultyDisk(len(new.image)), new, MemorySource.of(new), store, control=Control(beat=stages.add))
    assert stages == {"fetch", "assemble", "write", "sync"}


def test_at_most_8_mib_are_unsynced(tmp_path: Path, store: IndexStore) -> None:
    big = packed(random_image(24 * 16, seed=3), tmp_path / "big")
    disk = FaultyDisk(len(big.image))
    put(disk, big, MemorySource.of(big), store)
    assert disk.content == big.image
    assert disk.most_unsynced_bytes <= 8 * 1024 * 1024


def test_a_source_failure_after_half_loses_nothing_of_what_was_written(
    new: Packed, store: IndexStore
) -> None:
    source = MemorySource.of(new)

    def fail(number: int) -> None:
        raise SourceError("the network is gone")

    source.before = fail
    disk = FaultyDisk(len(new.image))
    with pytest.raises(SourceError, match="gone"):
        put(disk, new, source, store)
    put(disk, new, MemorySource.of(new), store)
    assert disk.content == new.image


def test_the_test_image_has_every_kind_of_unit(new: Packed) -> None:
    assert {new.index.unit(chunk).method for chunk in range(CHUNKS)} == set(Method)
