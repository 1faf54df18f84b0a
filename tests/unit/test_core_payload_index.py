"""The chunk index: what the reader finds, and what it refuses."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import (
    IndexReader,
    Limits,
    Method,
    PayloadChunkError,
    PayloadError,
    PayloadLengthError,
    PayloadLimitError,
    PayloadMagicError,
    PayloadMapError,
    PayloadVersionError,
    Release,
    Unit,
    build_index,
    build_release,
    require_match,
)

from tests.sim.release_document import changed

TOY = Limits(block_bytes=16, min_chunk_bytes=32, max_chunk_bytes=64, max_chunks=64, max_image_bytes=2048)
CHUNKS = [b"a" * 32, bytes(32), b"b" * 32, b"a" * 32, bytes(range(32)), b"c" * 16]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


UNITS = [
    Unit(64, 10, Method.ZSTD, sha(b"frame of a")),
    Unit(0, 0, Method.ZERO),
    Unit(74, 10, Method.ZSTD, sha(b"frame of b")),
    Unit(0, 0, Method.SAME),
    Unit(84, 32, Method.RAW, sha(CHUNKS[4])),
    Unit(116, 16, Method.RAW, sha(CHUNKS[5])),
]
PACK_BYTES = 132
HASHES, PACKS, ORDER = 160, 160 + 32 * 6, 160 + 80 * 6


def built(units: list[Unit] | None = None, *, pack_bytes: int = PACK_BYTES) -> bytes:
    image = b"".join(CHUNKS)
    return build_index(
        image_bytes=len(image),
        image_sha256=sha(image),
        chunk_hashes=[sha(chunk) for chunk in CHUNKS],
        units=units or UNITS,
        pack_bytes=pack_bytes,
        limits=TOY,
    )


def reader(data: bytes, *, length: int | None = None) -> IndexReader:
    return IndexReader(
        lambda offset, size: data[offset : offset + size], len(data) if length is None else length, limits=TOY
    )


def edited(edit: Callable[[bytearray], None]) -> bytes:
    data = bytearray(built())
    edit(data)
    return bytes(data)


def patched(offset: int, data: bytes) -> bytes:
    def edit(whole: bytearray) -> None:
        whole[offset : offset + len(data)] = data

    return edited(edit)


def rerooted(units: list[Unit], *, pack_bytes: int = PACK_BYTES) -> IndexReader:
    """An index whose pack_root fits its (wrong) pack table."""
    return reader(built(units, pack_bytes=pack_bytes))


def test_the_layout_is_the_documented_one_byte_for_byte() -> None:
    data = built()
    image, table = b"".join(CHUNKS), b"".join(sha(chunk) for chunk in CHUNKS)
    packs = b"".join(struct.pack("<QIB3x32s", *_parts(unit)) for unit in UNITS)
    expected = b"TWCI\r\n\x1a\x01" + struct.pack("<IIQII", 160, 0, 176, 32, 6) + sha(image) + sha(table)
    expected += sha(packs) + struct.pack("<QQQQ", PACK_BYTES, 160, 160 + 32 * 6, 160 + 80 * 6)
    order = sorted(range(6), key=lambda number: (sha(CHUNKS[number]), number))
    assert data == expected + table + packs + struct.pack("<6I", *order)


def _parts(unit: Unit) -> tuple[int, int, int, bytes]:
    return unit.offset, unit.stored_bytes, int(unit.method), unit.sha256


def test_the_reader_gives_back_what_was_built() -> None:
    index = reader(built())
    assert [index.chunk_hash(number) for number in range(6)] == [sha(chunk) for chunk in CHUNKS]
    assert [index.unit(number) for number in range(6)] == UNITS
    assert [index.chunk_length(number) for number in range(6)] == [32, 32, 32, 32, 32, 16]
    assert index.header.image_root == Sha256.of(b"".join(sha(chunk) for chunk in CHUNKS))
    index.verify_tables()


def test_find_gives_every_chunk_of_a_hash_in_ascending_order() -> None:
    index = reader(built())
    assert index.find(sha(b"a" * 32)) == [0, 3]
    assert [index.find(sha(chunk))[0] for chunk in CHUNKS] == [0, 1, 2, 0, 4, 5]
    assert index.find(bytes(32)) == index.find(b"\xff" * 32) == []


def test_verify_tables_reports_its_progress() -> None:
    seen: list[tuple[int, int]] = []
    reader(built()).verify_tables(lambda done, total: seen.append((done, total)))
    assert seen == [(6, 6)]


def test_the_file_is_read_by_windows_and_never_whole() -> None:
    image_bytes = 65_536 * 5000
    hashes = [sha(number.to_bytes(4, "little")) for number in range(5000)]
    units = [Unit(64 + 65_536 * number, 65_536, Method.RAW, hashes[number]) for number in range(5000)]
    data = build_index(
        image_bytes=image_bytes,
        image_sha256=bytes(32),
        chunk_hashes=hashes,
        units=units,
        pack_bytes=64 + image_bytes,
    )
    sizes: list[int] = []

    def read_at(offset: int, size: int) -> bytes:
        sizes.append(size)
        return data[offset : offset + size]

    index = IndexReader(read_at, len(data))
    index.verify_tables()
    assert [index.unit(number).offset for number in (0, 4999, 2500)] == [
        64,
        64 + 65_536 * 4999,
        64 + 65_536 * 2500,
    ]
    assert max(sizes) <= 64 * 1024
    assert index.find(hashes[1234]) == [1234]


@pytest.mark.parametrize(
    ("offset", "data", "error"),
    [
        (0, b"TWCX", PayloadMagicError),
        (4, b"\n", PayloadMagicError),
        (7, b"\x02", PayloadVersionError),
        (8, struct.pack("<I", 161), PayloadLimitError),
        (12, b"\x01", PayloadLimitError),
        (16, struct.pack("<Q", 0), PayloadLimitError),
        (16, struct.pack("<Q", 2**64 - 1), PayloadLimitError),
        (16, struct.pack("<Q", 2**64 - 16), PayloadLimitError),
        (16, struct.pack("<Q", 177), PayloadLimitError),
        (24, struct.pack("<I", 0), PayloadLimitError),
        (24, struct.pack("<I", 64), PayloadLimitError),
        (28, struct.pack("<I", 0), PayloadLimitError),
        (28, struct.pack("<I", 2**32 - 1), PayloadLimitError),
        (128, struct.pack("<Q", 63), PayloadLimitError),
        (128, struct.pack("<Q", 2**64 - 1), PayloadLimitError),
        (136, struct.pack("<Q", 2**64 - 1), PayloadLimitError),
        (144, struct.pack("<Q", 161), PayloadLimitError),
        (152, struct.pack("<Q", 0), PayloadLimitError),
    ],
)
def test_a_wrong_header_field_is_refused(offset: int, data: bytes, error: type[PayloadError]) -> None:
    with pytest.raises(error):
        reader(patched(offset, data))


@pytest.mark.parametrize("length", [0, 8, 159, len(built()) - 1, len(built()) + 1])
def test_a_file_of_any_other_length_is_refused(length: int) -> None:
    with pytest.raises(PayloadLengthError):
        reader(built() + b"\0", length=length)


def test_a_file_that_shrank_after_it_was_opened_is_a_length_error() -> None:
    data = built()
    index = reader(data[:200], length=len(data))
    with pytest.raises(PayloadLengthError):
        index.chunk_hash(3)


@pytest.mark.parametrize("number", [-1, 6, 2**64])
def test_a_chunk_that_does_not_exist_is_refused(number: int) -> None:
    index = reader(built())
    for ask in (index.chunk_hash, index.unit, index.chunk_length):
        with pytest.raises(PayloadLimitError):
            ask(number)


BAD_UNITS = [
    (0, Unit(63, 10, Method.ZSTD, sha(b"x")), PayloadLimitError),  # inside the header of the pack
    (0, Unit(64, 0, Method.ZSTD, sha(b"x")), PayloadLimitError),
    (0, Unit(64, 33, Method.ZSTD, sha(b"x")), PayloadLimitError),  # larger than the chunk
    (0, Unit(2**64 - 5, 10, Method.ZSTD, sha(b"x")), PayloadLimitError),  # the sum wraps in u64
    (0, Unit(PACK_BYTES - 9, 10, Method.ZSTD, sha(b"x")), PayloadLimitError),  # ends outside
    (1, Unit(64, 0, Method.ZERO), PayloadLimitError),
    (1, Unit(0, 1, Method.ZERO), PayloadLimitError),
    (1, Unit(0, 0, Method.ZERO, sha(b"x")), PayloadLimitError),
    (3, Unit(3, 0, Method.SAME), PayloadMapError),  # itself
    (3, Unit(4, 0, Method.SAME), PayloadMapError),  # a later chunk
    (3, Unit(2, 0, Method.SAME), PayloadMapError),  # another content
    (3, Unit(1, 0, Method.SAME), PayloadMapError),  # not stored
    (4, Unit(84, 31, Method.RAW, sha(CHUNKS[4])), PayloadLimitError),
    (4, Unit(84, 32, Method.RAW, sha(b"other")), PayloadMapError),
]


@pytest.mark.parametrize(("number", "unit", "error"), BAD_UNITS)
def test_a_wrong_pack_table_entry_is_refused_although_the_root_fits(
    number: int, unit: Unit, error: type[PayloadError]
) -> None:
    units = list(UNITS)
    units[number] = unit
    index = rerooted(units)
    with pytest.raises(error):
        index.unit(number)
    with pytest.raises(PayloadError):
        index.verify_tables()


def test_a_chain_of_same_entries_is_refused() -> None:
    units = [Unit(64, 10, Method.ZSTD, sha(b"f")), Unit(0, 0, Method.SAME), Unit(1, 0, Method.SAME)]
    data = build_index(
        image_bytes=96,
        image_sha256=bytes(32),
        chunk_hashes=[sha(b"a" * 32)] * 3,
        units=units,
        pack_bytes=74,
        limits=TOY,
    )
    assert reader(data).unit(1).method is Method.SAME
    with pytest.raises(PayloadMapError):
        reader(data).unit(2)


@pytest.mark.parametrize(("offset", "byte"), [(PACKS + 12, 4), (PACKS + 13, 1), (PACKS + 15, 255)])
def test_an_unknown_method_or_a_reserved_byte_is_refused(offset: int, byte: int) -> None:
    with pytest.raises(PayloadLimitError):
        reader(patched(offset, bytes([byte]))).unit(0)


def test_units_that_leave_a_gap_in_the_pack_are_refused() -> None:
    units = [*UNITS[:4], UNITS[4]._replace(offset=85), UNITS[5]._replace(offset=117)]
    with pytest.raises(PayloadMapError, match="chunk 4"):
        rerooted(units, pack_bytes=133).verify_tables()


def test_bytes_behind_the_last_unit_are_refused() -> None:
    with pytest.raises(PayloadLengthError):
        rerooted(UNITS, pack_bytes=133).verify_tables()


@pytest.mark.parametrize("offset", range(HASHES, ORDER, 7))
def test_a_flipped_byte_in_hash_or_pack_table_never_verifies(offset: int) -> None:
    data = built()
    index = reader(patched(offset, bytes([data[offset] ^ 0x10])))
    with pytest.raises(PayloadError):
        index.verify_tables()


def test_a_hash_table_that_does_not_fit_its_root_is_a_chunk_error() -> None:
    index = reader(patched(HASHES + 2 * 32, bytes(32)))  # chunk 2: a frame, which the table cannot judge
    with pytest.raises(PayloadChunkError, match="image_root"):
        index.verify_tables()


def test_an_order_table_that_names_no_chunk_is_refused_while_used() -> None:
    index = reader(patched(ORDER, struct.pack("<6I", *[6] * 6)))
    with pytest.raises(PayloadMapError, match="names chunk 6"):
        index.find(sha(CHUNKS[0]))


def test_an_unsorted_order_table_is_refused_while_used() -> None:
    order = sorted(range(6), key=lambda number: (sha(CHUNKS[number]), number))
    first, second = order.index(0), order.index(3)
    order[first], order[second] = 3, 0
    with pytest.raises(PayloadMapError, match="not in order"):
        reader(patched(ORDER, struct.pack("<6I", *order))).find(sha(CHUNKS[0]))


def test_a_reversed_order_table_never_gives_a_wrong_chunk() -> None:
    order = sorted(range(6), key=lambda number: (sha(CHUNKS[number]), number), reverse=True)
    index = reader(patched(ORDER, struct.pack("<6I", *order)))
    for chunk in CHUNKS:
        try:
            found = index.find(sha(chunk))
        except PayloadMapError:
            continue
        assert all(CHUNKS[number] == chunk for number in found)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(built()) - 1), st.integers(0, 255)), min_size=1, max_size=5))
def test_mutated_bytes_raise_nothing_but_payload_errors(changes: list[tuple[int, int]]) -> None:
    data = bytearray(built())
    for position, value in changes:
        data[position] = value
    try:
        index = reader(bytes(data))
        for number in range(6):
            index.unit(number)
            index.find(index.chunk_hash(number))
        index.verify_tables()
    except PayloadError:
        return


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_random_bytes_raise_nothing_but_payload_errors(data: bytes, with_magic: bool) -> None:
    if with_magic:
        data = b"TWCI\r\n\x1a\x01" + struct.pack("<II", 160, 0) + data
    with pytest.raises(PayloadError):
        reader(data).verify_tables()


def test_the_builder_refuses_parts_that_do_not_fit_each_other() -> None:
    with pytest.raises(PayloadLengthError, match="5 hashes and 6 units for 6 chunks"):
        build_index(
            image_bytes=176,
            image_sha256=bytes(32),
            chunk_hashes=[bytes(32)] * 5,
            units=UNITS,
            pack_bytes=PACK_BYTES,
            limits=TOY,
        )
    with pytest.raises(PayloadLimitError):
        Unit(2**64, 1, Method.RAW, bytes(32)).to_bytes()


def test_an_index_of_another_image_does_not_match_the_release() -> None:
    release = Release.parse(build_release(changed("components.0.pack.length", 500_001)))
    with pytest.raises(PayloadChunkError, match="image_bytes is 176"):
        require_match(reader(built()).header, release.slot)
