"""release.json, the chunk index, the pack and the frames in it.

Signatures keep hostile bytes away from these parsers; a defect of the release tool, a stolen key below the threshold's
reach or a wrong file under the right hash does not. Hashes inside a file are corrected before parsing for every other
input: a fuzzer cannot invert SHA-256, and the code behind the check is what is to be reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

from tidewaiter_core.payload import IndexReader, Release
from tidewaiter_core.payload.errors import PayloadError
from tidewaiter_core.payload.index import Method
from tidewaiter_core.payload.pack import PackHeader
from tidewaiter_core.payload.release import build_release
from tidewaiter_release.zstd import compress_behind
from tidewaiter_updater.zstd import decode_chunk

from tests.fuzz.target import Target, require
from tests.sim.packs import CHUNK_BYTES, Packed, packed, random_image
from tests.sim.release_document import release_fields

_INDEX_HEADER = 160
_HASH, _UNIT = 32, 48
_CORRECTED = b"\xff"
"""At the end of an input: the rest is an index whose roots are to be made right before it is parsed."""


@cache
def _packed() -> Packed:
    image = random_image(6, seed=7, zero=(1,), same={4: 0})
    with tempfile.TemporaryDirectory() as folder:
        return packed(image, Path(folder))


def _release(data: bytes) -> bool:
    release = Release.parse(data)
    require(release.digest == hashlib.sha256(data).hexdigest(), "the digest is not that of the bytes")
    again = Release.parse(build_release(json.loads(data)))
    require(replace(again, digest=release.digest) == release, "canonical bytes mean another release")
    return True


def _release_seeds() -> Iterator[bytes]:
    yield build_release(release_fields())
    smallest = {name: value for name, value in release_fields().items() if name not in ("rollout", "sbom")}
    yield build_release(smallest)


def _index(data: bytes) -> bool:
    raw = _with_right_roots(data[:-1]) if data[-1:] == _CORRECTED else data
    reader = IndexReader(lambda offset, length: raw[offset : offset + length], len(raw))
    reader.verify_tables()
    header = reader.header
    require(header.file_bytes == len(raw), "accepted with bytes that the header does not imply")
    total = 0
    for number in range(header.chunk_count):
        unit = reader.unit(number)
        total += reader.chunk_length(number)
        if unit.method in (Method.ZSTD, Method.RAW):
            end = unit.offset + unit.stored_bytes
            require(unit.stored_bytes > 0 and end <= header.pack_bytes, "a unit leaves the pack")
        elif unit.method is Method.SAME:
            require(unit.offset < number, "a repetition of a later chunk")
        _search(reader, reader.chunk_hash(number))
    require(total == header.image_bytes, "the chunks are not the image")
    return True


def _search(reader: IndexReader, wanted: bytes) -> None:
    """The order table is checked only while it is used, so a search may refuse; what it finds is right."""
    with contextlib.suppress(PayloadError):
        found = reader.find(wanted)
        require(all(reader.chunk_hash(one) == wanted for one in found), "found another chunk")


def _with_right_roots(data: bytes) -> bytes:
    """`data` with image_root and pack_root of the tables that it has."""
    count = int.from_bytes(data[28:32], "little")
    hashes = data[_INDEX_HEADER : _INDEX_HEADER + _HASH * count] if count < len(data) else b""
    units = data[_INDEX_HEADER + len(hashes) : _INDEX_HEADER + len(hashes) + _UNIT * count] if hashes else b""
    if len(data) < _INDEX_HEADER:
        return data
    image_root, pack_root = hashlib.sha256(hashes).digest(), hashlib.sha256(units).digest()
    return data[:64] + image_root + pack_root + data[128:]


def _pack(data: bytes) -> bool:
    header = PackHeader.parse(data[:64], length=len(data))
    require(header.pack_bytes == len(data), "another length than the header says")
    require(header.to_bytes() == data[:64], "a header that does not round-trip")
    return True


def _frame(data: bytes) -> bool:
    raw = decode_chunk(data, raw_bytes=4096, chunk_bytes=CHUNK_BYTES, what="fuzz")
    require(len(raw) == 4096, "a frame of another length was accepted")
    return True


def _frame_seeds() -> Iterator[bytes]:
    for content in (bytes(4096), bytes(range(256)) * 16, hashlib.sha256(b"x").digest() * 128):
        yield compress_behind(content, b"", level=3, window_log=12)


TARGETS = (
    Target(
        name="release",
        what="release.json",
        run=_release,
        refusals=(PayloadError,),
        seeds=_release_seeds,
        max_bytes=8192,
        modules=("tidewaiter_core.payload",),
    ),
    Target(
        name="index",
        what="chunk index",
        run=_index,
        refusals=(PayloadError,),
        seeds=lambda: [_packed().index_bytes, _packed().index_bytes + _CORRECTED],
        modules=("tidewaiter_core.payload",),
    ),
    Target(
        name="pack",
        what="pack header",
        run=_pack,
        refusals=(PayloadError,),
        seeds=lambda: [PackHeader.parse(_packed().pack[:64]).to_bytes(), _small_pack()],
        max_bytes=256,
        modules=("tidewaiter_core.payload",),
    ),
    Target(
        name="pack-frame",
        what="one stored unit",
        run=_frame,
        refusals=(PayloadError,),
        seeds=_frame_seeds,
        modules=("tidewaiter_updater.zstd", "tidewaiter_core.payload"),
    ),
)


def _small_pack() -> bytes:
    """A pack that is all there, so that its length is right."""
    header = PackHeader.parse(_packed().pack[:64])
    return replace(header, pack_bytes=64).to_bytes()
