"""The head of a patch: every bound, hostile bytes, and the assembler over images in memory."""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tidewaiter_core.payload import Limits, PatchReader
from tidewaiter_core.payload.errors import PayloadError
from tidewaiter_core.payload.patch import Kind
from tidewaiter_core.payload.patchapply import ChunkAssembler, Literals, SegmentDecoder, needed_segments
from tidewaiter_core.payload.patchhashes import decode_hashes, encode_hashes
from tidewaiter_core.payload.patchmap import MapEncoder, encode_number
from tidewaiter_release.zstd import ZstdCodec

from tests.sim.patches import (
    BLOCK,
    CHUNK,
    TOY,
    ToyPatch,
    changed,
    chunk_hashes,
    head_with_map,
    reader_of,
    toy_patch,
)

CODEC = ZstdCodec()


class Memory:
    """An image in memory, counting what is read."""

    def __init__(self, image: bytes | bytearray) -> None:
        self.image = image
        self.reads: list[tuple[int, int]] = []

    def read_into(self, buffer: memoryview, offset: int) -> None:
        self.reads.append((offset, len(buffer)))
        buffer[:] = self.image[offset : offset + len(buffer)]

    def read_many(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        for buffer, offset in parts:
            self.read_into(buffer, offset)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyPatch:
    rng = random.Random(7)
    old = rng.randbytes(6 * CHUNK) + bytes(CHUNK) + rng.randbytes(20 * BLOCK) * 2
    new = old[: 2 * CHUNK] + changed(old[2 * CHUNK :], seed=8, edits=60)
    return toy_patch(old, new, tmp_path_factory.mktemp("toy"))


def applied(
    reader: PatchReader,
    data: bytes,
    old: bytes,
    *,
    wanted: Callable[[int], bool] = lambda chunk: True,
    loaded: list[int] | None = None,
) -> bytes:
    """The new image as `data` makes it out of `old`; unwanted chunks stay zero."""
    new = bytearray(reader.header.new_bytes)
    decoder = SegmentDecoder(reader, CODEC, Memory(old))

    def literals(number: int) -> Literals:
        if loaded is not None:
            loaded.append(number)
        segment = reader.segment(number)
        stored = data[segment.offset : segment.offset + segment.stored_bytes]
        assert hashlib.sha256(stored).digest() == segment.sha256
        return decoder.decode(segment, stored, what="test")

    assembler = ChunkAssembler(
        reader, reader.runs(CODEC), old=Memory(old), new=Memory(new), literals=literals
    )
    for chunk in filter(wanted, range(reader.header.chunk_count)):
        out = bytearray(b"\xee" * min(CHUNK, len(new) - chunk * CHUNK))
        if not assembler.assemble(chunk, memoryview(out)):
            assert out == b"\xee" * len(out)
            out = bytearray(len(out))
        new[chunk * CHUNK : chunk * CHUNK + len(out)] = out
    return bytes(new)


def test_the_toy_patch_has_everything_a_patch_can_have(toy: ToyPatch) -> None:
    assert {run.kind for run in toy.reader.runs(CODEC)} == set(Kind)
    assert toy.reader.header.segment_count > 2
    assert any(segment.region_count for segment in toy.reader.segments())


def test_a_patch_gives_the_new_image(toy: ToyPatch) -> None:
    toy.reader.verify(CODEC)
    assert applied(toy.reader, toy.data, toy.old) == toy.new


def test_the_rebuilt_hash_table_is_that_of_the_new_image(toy: ToyPatch) -> None:
    old = chunk_hashes(toy.old)
    assert list(toy.reader.new_hashes(old.__getitem__)) == chunk_hashes(toy.new)


def test_a_hash_table_over_another_old_image_is_not_used(toy: ToyPatch) -> None:
    with pytest.raises(PayloadError, match="root") as caught:
        list(toy.reader.new_hashes(lambda chunk: bytes(32)))
    assert caught.value.code == "payload.chunk"


def test_segments_without_a_literal_in_a_wanted_chunk_are_not_loaded(toy: ToyPatch) -> None:
    for chunk in range(toy.reader.header.chunk_count):
        loaded: list[int] = []
        image = applied(toy.reader, toy.data, toy.old, wanted=lambda one: one == chunk, loaded=loaded)  # noqa: B023
        needed = list(needed_segments(toy.reader, toy.reader.runs(CODEC), lambda one: one == chunk))  # noqa: B023
        assert loaded == needed
        part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
        if not any(run.kind == Kind.NEW for run in toy.reader.runs(CODEC) if run.target // 16 == chunk):
            assert image[part] == toy.new[part]


def test_all_segments_are_needed_for_all_chunks_and_none_for_none(toy: ToyPatch) -> None:
    count = toy.reader.header.segment_count
    assert list(needed_segments(toy.reader, toy.reader.runs(CODEC), lambda chunk: True)) == list(range(count))
    assert not list(needed_segments(toy.reader, toy.reader.runs(CODEC), lambda chunk: False))


def test_wrong_prefix_output_has_the_right_length_and_another_hash(toy: ToyPatch) -> None:
    reader, old = toy.reader, bytes(len(toy.old))
    decoder = SegmentDecoder(reader, CODEC, Memory(old))
    segment = next(one for one in reader.segments() if one.region_count)
    stored = toy.data[segment.offset : segment.offset + segment.stored_bytes]
    out = memoryview(bytearray(segment.literal_bytes))
    decoder.decode(segment, stored, what="test").take(out, 0)
    assert applied(reader, toy.data, old) != toy.new


def test_neighboring_regions_are_read_together(toy: ToyPatch) -> None:
    reader, old = toy.reader, Memory(toy.old)
    decoder = SegmentDecoder(reader, CODEC, old)
    for segment in reader.segments():
        old.reads.clear()
        decoder.decode(segment, toy.data[segment.offset :][: segment.stored_bytes], what="test")
        size = TOY.region_bytes
        assert old.reads == [(run.first * size, run.regions * size) for run in reader.regions(segment)]
        assert all(two[0] > sum(one) for one, two in itertools.pairwise(old.reads))
        assert sum(length for _, length in old.reads) == segment.region_count * size


def test_chunks_cannot_be_assembled_backwards(toy: ToyPatch) -> None:
    assembler = ChunkAssembler(
        toy.reader,
        toy.reader.runs(CODEC),
        old=Memory(toy.old),
        new=Memory(toy.new),
        literals=lambda number: Literals(iter([bytes(TOY.segment_bytes)]), TOY.segment_bytes),
    )
    assembler.assemble(2, memoryview(bytearray(CHUNK)))
    with pytest.raises(ValueError, match="ascending"):
        assembler.assemble(0, memoryview(bytearray(CHUNK)))


# Bounds of the header: (offset, bytes) that replace a sound field, and the code that names the fault.
_HEADER_FAULTS = [
    (0, b"TWPX", "payload.magic"),
    (4, b"\n", "payload.magic"),
    (7, b"\x01", "payload.version"),
    (7, b"\x03", "payload.version"),
    (8, struct.pack("<I", 225), "payload.limit"),
    (12, b"\x01", "payload.limit"),
    (16, struct.pack("<Q", 2**63), "payload.limit"),
    (16, struct.pack("<Q", 0), "payload.limit"),
    (24, struct.pack("<Q", 4097), "payload.limit"),
    (24, struct.pack("<Q", 2**64 - 4096), "payload.limit"),
    (128, struct.pack("<I", 8192), "payload.limit"),
    (132, struct.pack("<I", 64 * 1024), "payload.limit"),
    (136, struct.pack("<I", 2 * CHUNK), "payload.limit"),
    (140, b"\x17", "payload.limit"),
    (141, b"\x18", "payload.limit"),
    (142, b"\x1f", "payload.limit"),
    (143, b"\x01", "payload.limit"),
    (144, struct.pack("<I", 65_537), "payload.limit"),
    (148, b"\x01", "payload.limit"),
    (152, struct.pack("<Q", 225), "payload.limit"),
    (160, struct.pack("<I", 0), "payload.limit"),
    (160, struct.pack("<I", 2**32 - 1), "payload.limit"),
    (164, struct.pack("<I", 64 * 2**20 + 1), "payload.limit"),
    (164, struct.pack("<I", 0), "payload.limit"),
    (168, struct.pack("<Q", 0), "payload.limit"),
    (176, struct.pack("<I", 2**32 - 1), "payload.limit"),
    (184, struct.pack("<Q", 2**64 - 1), "payload.limit"),
    (200, struct.pack("<Q", 224), "payload.limit"),
    (208, struct.pack("<Q", 224), "payload.limit"),
    (216, struct.pack("<Q", 0), "payload.limit"),
    (216, struct.pack("<Q", 2**64 - 1), "payload.limit"),
]


@pytest.mark.parametrize(("offset", "data", "code"), _HEADER_FAULTS)
def test_every_bound_of_the_header_is_checked(toy: ToyPatch, offset: int, data: bytes, code: str) -> None:
    head = bytearray(toy.head)
    head[offset : offset + len(data)] = data
    with pytest.raises(PayloadError) as caught:
        reader_of(bytes(head))
    assert caught.value.code == code


_SEGMENT_FAULTS = [
    (0, struct.pack("<Q", 224), "payload.limit"),
    (0, struct.pack("<Q", 2**64 - 1), "payload.limit"),
    (8, struct.pack("<I", 0), "payload.limit"),
    (8, struct.pack("<I", 2**31), "payload.limit"),
    (12, struct.pack("<I", 0), "payload.limit"),
    (12, struct.pack("<I", BLOCK + 1), "payload.limit"),
    (12, struct.pack("<I", 2 * TOY.segment_bytes), "payload.limit"),
    (16, struct.pack("<I", 2**31), "payload.map"),
    (20, struct.pack("<I", 2**31), "payload.limit"),
    (24, struct.pack("<I", 2**31), "payload.limit"),
    (28, struct.pack("<I", 2**31), "payload.limit"),
    (28, struct.pack("<I", 10 * 8 + 1), "payload.limit"),
]


@pytest.mark.parametrize(("offset", "data", "code"), _SEGMENT_FAULTS)
def test_every_bound_of_a_segment_is_checked(toy: ToyPatch, offset: int, data: bytes, code: str) -> None:
    head = bytearray(toy.head)
    at = toy.built.header.table_offset + 64 + offset
    head[at : at + len(data)] = data
    with pytest.raises(PayloadError) as caught:
        reader_of(bytes(head)).verify(CODEC)
    assert caught.value.code == code


@pytest.mark.parametrize("change", [-1, 1])
def test_a_head_of_another_length_is_refused(toy: ToyPatch, change: int) -> None:
    with pytest.raises(PayloadError) as caught:
        PatchReader(lambda offset, length: toy.head[offset:][:length], len(toy.head) + change, limits=TOY)
    assert caught.value.code == "payload.length"
    with pytest.raises(PayloadError) as caught:
        PatchReader(
            lambda offset, length: toy.head[offset:][:length],
            len(toy.head),
            patch_bytes=len(toy.data) + change,
            limits=TOY,
        )
    assert caught.value.code == "payload.length"


def test_regions_that_leave_the_old_image_are_refused(toy: ToyPatch) -> None:
    head = bytearray(toy.head)
    segment = next(one for one in toy.reader.segments() if one.region_count)
    at = toy.built.header.regions.offset + segment.region_first
    head[at] = 0x7F  # the old image has fewer regions than that
    with pytest.raises(PayloadError) as caught:
        reader_of(bytes(head)).verify(CODEC)
    assert caught.value.code == "payload.map"


def test_the_map_frame_may_not_be_larger_smaller_or_something_else() -> None:
    old = new = random.Random(1).randbytes(CHUNK)
    raw = encode_number(16 << 2 | Kind.OLD) + encode_number(0)
    sound = head_with_map(raw, old=old, new=new)
    reader_of(sound).verify(CODEC)
    frame = reader_of(sound).header.map
    for at in range(frame.offset, frame.end):
        for bit in range(8):
            head = bytearray(sound)
            head[at] ^= 1 << bit
            try:
                reader_of(bytes(head)).verify(CODEC)
            except PayloadError as err:
                assert err.code in ("payload.frame", "payload.map")


def test_a_segment_whose_first_literal_is_elsewhere_is_refused() -> None:
    rng = random.Random(2)
    old, new = rng.randbytes(CHUNK), rng.randbytes(CHUNK)
    encoder = MapEncoder()
    for block in range(16):
        encoder.add(*((Kind.LITERAL,) if block in (3, 9) else (Kind.ZERO,)))
    raw = encoder.finish()
    reader_of(head_with_map(raw, old=old, new=new, first_blocks=[(3, 1), (9, 1)])).verify(CODEC)
    with pytest.raises(PayloadError) as caught:
        reader_of(head_with_map(raw, old=old, new=new, first_blocks=[(3, 1), (8, 1)])).verify(CODEC)
    assert caught.value.code == "payload.map"


def exercise(head: bytes, toy: ToyPatch, *, limits: Limits = TOY) -> None:
    """Everything that a device does with a head; PayloadError is the only way it may fail."""
    try:
        reader = reader_of(head, limits=limits)
        reader.verify(CODEC)
        old = chunk_hashes(toy.old)
        list(reader.new_hashes(lambda chunk: old[chunk] if chunk < len(old) else bytes(32)))
        list(needed_segments(reader, reader.runs(CODEC), lambda chunk: chunk % 2 == 0))
    except PayloadError:
        pass


@given(st.binary(max_size=600))
def test_random_bytes_raise_only_payload_errors(toy: ToyPatch, data: bytes) -> None:
    exercise(data, toy)
    exercise(toy.head[:8] + data, toy)
    exercise(toy.head[:152] + data, toy)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_heads_raise_only_payload_errors(toy: ToyPatch, data: st.DataObject) -> None:
    head = bytearray(toy.head)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(head) - 1))
        if data.draw(st.booleans()):
            head[at] = data.draw(st.integers(0, 255))
        else:
            piece = data.draw(st.binary(max_size=8))
            head[at : at + len(piece)] = piece
    exercise(bytes(head[: data.draw(st.integers(len(head) - 3, len(head)))]), toy)


hash32 = st.sampled_from([bytes([number]) * 32 for number in range(3)])


@given(
    st.lists(hash32, min_size=1, max_size=40), st.lists(hash32, min_size=1, max_size=40), st.integers(1, 50)
)
def test_hash_tables_round_trip_as_differences(old: list[bytes], new: list[bytes], piece: int) -> None:
    data = encode_hashes(old, new)
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]
    assert list(decode_hashes(pieces, count=len(new), old_count=len(old), old_hash=old.__getitem__)) == new


def test_chunks_that_only_moved_cost_no_hash() -> None:
    old = [hashlib.sha256(bytes([number])).digest() for number in range(200)]
    fresh = hashlib.sha256(b"fresh").digest()
    new = [*old[:20], fresh, *old[20:150], *old[170:], *old[5:9]]
    data = encode_hashes(old, new)
    assert list(decode_hashes([data], count=len(new), old_count=len(old), old_hash=old.__getitem__)) == new
    assert len(data) < 32 + 20


def test_equal_tables_are_a_few_bytes() -> None:
    same = [bytes([number % 7]) * 32 for number in range(5000)]
    assert len(encode_hashes(same, same)) == 4


@pytest.mark.parametrize(
    "numbers",
    [
        (3, 0, 0),  # more than the old table has
        (2, 2, 0),  # moved past its end
        (2, 1, 0),  # moved in front of its beginning
        (1, 0, 0, 1, 1, 0, 2, 0, 0),  # more than the new table has
        (0, 0),  # nothing at all
        (0, 4),  # more hashes than chunks
        (2, 0),  # ends in the middle
    ],
)
def test_hashes_that_leave_a_table_are_refused(numbers: tuple[int, ...]) -> None:
    data = b"".join(map(encode_number, numbers))
    with pytest.raises(PayloadError) as caught:
        list(decode_hashes([data], count=3, old_count=2, old_hash=lambda chunk: bytes(32)))
    assert caught.value.code == "payload.map"


@given(st.binary(max_size=120), st.integers(1, 6), st.integers(1, 6))
def test_random_hash_sections_raise_only_payload_errors(data: bytes, count: int, old_count: int) -> None:
    def old_hash(chunk: int) -> bytes:
        assert 0 <= chunk < old_count
        return bytes(32)

    try:
        table = list(decode_hashes([data], count=count, old_count=old_count, old_hash=old_hash))
        assert len(table) == count
        assert all(len(digest) == 32 for digest in table)
    except PayloadError as err:
        assert err.code == "payload.map"


def test_a_patch_between_equal_images_has_no_segment(tmp_path: Path) -> None:
    image = random.Random(3).randbytes(5 * CHUNK)
    toy = toy_patch(image, image, tmp_path)
    assert toy.built.length == toy.built.head_bytes < 300
    assert applied(toy.reader, toy.data, image) == image
