"""The head of a patch, its map, and a segment applied to an old image.

What a patch may do is bounded by the map: the assembler is driven over whatever map is accepted, with images that say
where they are read. Reads outside the old image, ahead in the new one, or of a length that was not asked are findings.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from tidewaiter_core.payload.errors import PayloadError
from tidewaiter_core.payload.patch import PatchReader
from tidewaiter_core.payload.patchapply import ChunkAssembler, Literals, SegmentDecoder
from tidewaiter_core.payload.patchmap import Kind, MapEncoder
from tidewaiter_updater.zstd import ZstdCodec

from tests.fuzz.target import Target, require
from tests.sim.patches import BLOCK, CHUNK, ToyPatch, changed, head_with_map, reader_of, toy_patch

_CODEC = ZstdCodec()
_OLD = bytes(range(256)) * 16 * 32
_NEW_BYTES = 48 * BLOCK
_ZERO_CHUNK = hashlib.sha256(bytes(CHUNK)).digest()


class _WatchedImage:
    """An image that refuses to be read where it does not exist."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.known_bytes = len(data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        end = offset + len(buffer)
        require(offset >= 0 and end <= self.known_bytes, f"read {offset}+{len(buffer)} of {self.known_bytes}")
        require(offset % BLOCK == 0 and len(buffer) % BLOCK == 0, "a read that is not of whole blocks")
        buffer[:] = self.data[offset:end]

    def read_many(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        for buffer, offset in parts:
            self.read_into(buffer, offset)


class _GrowingImage(_WatchedImage):
    """The new image, as far as it was made."""

    def __init__(self, image_bytes: int) -> None:
        super().__init__(bytes(image_bytes))
        self.known_bytes = 0


def _head(data: bytes) -> bool:
    reader = reader_of(data)
    reader.verify(_CODEC)
    require(reader.header.data_offset == len(data), "a head of another length was accepted")
    hashes = sum(1 for _ in reader.new_hashes(lambda number: _ZERO_CHUNK))
    require(hashes == reader.header.chunk_count, "another number of hashes than chunks")
    return True


def _map(data: bytes) -> bool:
    """The input is a raw map; the head around it is sound."""
    literal_blocks = data[0] if data else 0
    first = data[1] if len(data) > 1 else 0
    segments = [(first, min(literal_blocks, 8))] if literal_blocks else []
    head = head_with_map(data[2:], old=_OLD, new=bytes(_NEW_BYTES), first_blocks=segments)
    reader = reader_of(head)
    reader.verify(_CODEC)
    old, new = _WatchedImage(_OLD), _GrowingImage(_NEW_BYTES)
    assembler = ChunkAssembler(
        reader, reader.runs(_CODEC), old=old, new=new, literals=_nothing_but_zeros(reader)
    )
    for chunk in range(reader.header.chunk_count):
        out = bytearray(min(reader.header.chunk_bytes, _NEW_BYTES - chunk * reader.header.chunk_bytes))
        assembler.assemble(chunk, memoryview(out))
        new.known_bytes += len(out)
    require(new.known_bytes == _NEW_BYTES, "the map did not make the whole image")
    return True


def _nothing_but_zeros(reader: PatchReader) -> Callable[[int], Literals]:
    def load(number: int) -> Literals:
        length = reader.segment(number).literal_bytes
        return Literals(iter([bytes(length)]), length)

    return load


def _map_seeds() -> Iterator[bytes]:
    zeros = MapEncoder()
    mixed = MapEncoder()
    for block in range(48):
        zeros.add(Kind.ZERO)
        kind = (Kind.OLD, Kind.OLD, Kind.NEW, Kind.ZERO)[block // 6 % 4] if block else Kind.OLD
        mixed.add(kind, {Kind.OLD: (block * 7) % 32, Kind.NEW: block // 2}.get(kind, 0))
    yield b"\0\0" + zeros.finish()
    yield b"\0\0" + mixed.finish()
    literal = MapEncoder()
    for block in range(48):
        literal.add(Kind.LITERAL if 4 <= block < 8 else Kind.ZERO)
    yield b"\x04\x04" + literal.finish()


@cache
def _toy() -> ToyPatch:
    with tempfile.TemporaryDirectory() as folder:
        return toy_patch(_OLD, changed(_OLD, seed=3, edits=8), Path(folder))


@cache
def _toy_reader() -> PatchReader:
    return _toy().reader


@cache
def _decoder() -> SegmentDecoder:
    return SegmentDecoder(_toy_reader(), _CODEC, _WatchedImage(_toy().old))


def _segment(data: bytes) -> bool:
    """The input is the stored form of a segment, under a hash that would be right."""
    if not data:
        return False
    number = data[0] % _toy_reader().header.segment_count
    stored = data[1:]
    segment = replace(_toy_reader().segment(number), stored_bytes=len(stored))
    literals = _decoder().decode(segment, stored, what="fuzz")
    out = bytearray(segment.literal_bytes)
    literals.take(memoryview(out), 0)
    return True


def _segment_seeds() -> Iterator[bytes]:
    for number in range(_toy_reader().header.segment_count):
        segment = _toy_reader().segment(number)
        yield bytes([number]) + _toy().data[segment.offset : segment.offset + segment.stored_bytes]


def _head_seeds() -> Iterator[bytes]:
    yield _toy().head
    yield from (
        head_with_map(seed[2:], old=bytes(_NEW_BYTES), new=bytes(_NEW_BYTES)) for seed in _map_seeds()
    )


TARGETS = (
    Target(
        name="patch-head",
        what="patch head",
        run=_head,
        refusals=(PayloadError,),
        seeds=_head_seeds,
        max_bytes=8192,
        modules=("tidewaiter_core.payload",),
    ),
    Target(
        name="patch-map",
        what="patch map, applied",
        run=_map,
        refusals=(PayloadError,),
        seeds=_map_seeds,
        max_bytes=512,
        modules=("tidewaiter_core.payload",),
    ),
    Target(
        name="patch-segment",
        what="patch segment, decoded",
        run=_segment,
        refusals=(PayloadError,),
        seeds=_segment_seeds,
        max_bytes=32 * 1024,
        modules=("tidewaiter_core.payload", "tidewaiter_updater.zstd"),
    ),
)
