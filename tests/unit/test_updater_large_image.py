"""An image of more than 4 GiB, of which only a few chunks hold anything: every offset that matters is above 32 bits."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.components import FileSystem, IndexRef, PackRef, SlotComponent
from tidewaiter_core.payload.index import build_index
from tidewaiter_core.payload.indexfile import Method, Unit
from tidewaiter_core.payload.pack import PackHeader
from tidewaiter_core.payload.patch import build_head
from tidewaiter_core.payload.patchfile import Segment
from tidewaiter_core.payload.patchhashes import encode_hashes
from tidewaiter_core.payload.patchmap import Kind, MapEncoder
from tidewaiter_core.payload.patchregions import RegionRun, encode_regions
from tidewaiter_core.payload.release import Release, build_release
from tidewaiter_release.zstd import compress_behind
from tidewaiter_updater.health import NeverControl
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.medium import Medium
from tidewaiter_updater.model import SlotRecord, TransferProgress
from tidewaiter_updater.slot_store import DeviceSlots

from tests.sim.clock import FakeClock
from tests.sim.device import release_fields
from tests.sim.packs import CHUNK_BYTES, MemorySource, Packed, patched_by

BLOCK = 4096
PER_CHUNK = CHUNK_BYTES // BLOCK
FIRST_ABOVE = 4 * 1024**3 // CHUNK_BYTES
COUNT = FIRST_ABOVE + 8
A, B = SlotName.A, SlotName.B
Chunks = dict[int, bytes]
"""The chunks of an image that are not zero."""


@dataclass
class SparseSlot:
    """A block device in memory: blocks that nobody wrote are zero. It is its own medium."""

    name: str
    blocks: dict[int, bytes] = field(default_factory=dict)
    size_bytes: int = (COUNT + 1) * CHUNK_BYTES
    zeroes_ranges: bool = True

    @classmethod
    def of(cls, name: str, chunks: Chunks) -> SparseSlot:
        blocks = {
            chunk * PER_CHUNK + number: data[number * BLOCK : (number + 1) * BLOCK]
            for chunk, data in chunks.items()
            for number in range(PER_CHUNK)
        }
        return cls(name, blocks)

    def read(self, buffer: memoryview, offset: int) -> int:
        for at in range(0, len(buffer), BLOCK):
            buffer[at : at + BLOCK] = self.blocks.get((offset + at) // BLOCK, bytes(BLOCK))
        return len(buffer)

    def write(self, buffer: memoryview, offset: int) -> int:
        for at in range(0, len(buffer), BLOCK):
            self.blocks[(offset + at) // BLOCK] = bytes(buffer[at : at + BLOCK])
        return len(buffer)

    def zero(self, offset: int, length: int) -> None:
        for block in [one for one in self.blocks if offset <= one * BLOCK < offset + length]:
            del self.blocks[block]

    def sync(self) -> None:
        """It is there."""

    def reopen(self) -> Medium:
        return self

    def close(self) -> None:
        """It stays."""

    @property
    def content(self) -> dict[int, bytes]:
        """The blocks that are not zero."""
        return {block: data for block, data in self.blocks.items() if data.strip(b"\0")}


@dataclass
class SparseMedia:
    """Port Media over sparse slots."""

    slots: dict[Path, SparseSlot]

    def identity(self, path: Path) -> tuple[int, int]:
        return 7, list(self.slots).index(path)

    def stack(self, path: Path) -> frozenset[tuple[int, int]]:
        return frozenset((self.identity(path),))

    def disks(self, path: Path) -> frozenset[str]:
        return frozenset()

    def label(self, path: Path) -> str | None:
        return None

    def open(self, path: Path, *, writable: bool) -> Medium:
        return self.slots[path]


def noise(seed: int, length: int = CHUNK_BYTES) -> bytes:
    return random.Random(seed).randbytes(length)


OLD: Chunks = {0: noise(1), FIRST_ABOVE: noise(2), FIRST_ABOVE + 2: noise(3)}
_LITERALS = OLD[FIRST_ABOVE + 2][5 : 5 + 4 * BLOCK]
"""Old bytes, but at no block's boundary: they come out of a prefix."""
NEW: Chunks = {
    0: OLD[0],
    FIRST_ABOVE - 1: OLD[FIRST_ABOVE],  # across the boundary
    FIRST_ABOVE + 4: OLD[FIRST_ABOVE + 2],
    FIRST_ABOVE + 5: OLD[0][: 12 * BLOCK] + _LITERALS,
    FIRST_ABOVE + 7: _LITERALS + OLD[FIRST_ABOVE][4 * BLOCK :],
}


def hashes_of(chunks: Chunks) -> list[bytes]:
    zero = hashlib.sha256(bytes(CHUNK_BYTES)).digest()
    return [hashlib.sha256(chunks[chunk]).digest() if chunk in chunks else zero for chunk in range(COUNT)]


@pytest.fixture(scope="module")
def new() -> Packed:
    """Its index, its pack and the patch to it, made by hand: the builder would read 4 GiB of zeros."""
    hashes = hashes_of(NEW)
    root = Sha256.of(b"".join(hashes))
    units, pack = [Unit(0, 0, Method.ZERO, bytes(32))] * COUNT, b""
    for chunk, data in NEW.items():
        units[chunk] = Unit(64 + len(pack), len(data), Method.RAW, hashes[chunk])
        pack += data
    pack = PackHeader(pack_bytes=64 + len(pack), image_root=root).to_bytes() + pack
    index = build_index(
        image_bytes=COUNT * CHUNK_BYTES,
        image_sha256=bytes(32),
        chunk_hashes=hashes,
        units=units,
        pack_bytes=len(pack),
    )
    component = SlotComponent(
        name="rootfs",
        image_bytes=COUNT * CHUNK_BYTES,
        image_sha256=Sha256.from_raw(bytes(32)),
        image_root=root,
        chunk_bytes=CHUNK_BYTES,
        fs=FileSystem.EXT4,
        verity=None,
        index=IndexRef(path="releases/i/2/index.twci", length=len(index), sha256=Sha256.of(index)),
        pack=PackRef(path="releases/i/2/pack.twpk", length=len(pack), sha256=Sha256.of(pack)),
        patches=(),
    )
    packed = Packed(image=b"", component=component, index_bytes=index, pack=pack)
    head, segment = patch_parts(root)
    return patched_by(packed, head + segment, len(head), from_root=Sha256.of(b"".join(hashes_of(OLD))))


def patch_parts(root: Sha256) -> tuple[bytes, bytes]:
    """Head and only segment of the patch from OLD to NEW."""
    encoder = MapEncoder()

    def add(kind: Kind, blocks: int, source: int = 0) -> None:
        for number in range(blocks):
            encoder.add(kind, source + number)

    above = FIRST_ABOVE * PER_CHUNK
    add(Kind.OLD, PER_CHUNK, 0)
    add(Kind.ZERO, above - 2 * PER_CHUNK)
    add(Kind.OLD, PER_CHUNK, above)
    add(Kind.ZERO, 4 * PER_CHUNK)
    add(Kind.OLD, PER_CHUNK, above + 2 * PER_CHUNK)
    add(Kind.OLD, 12, 0)
    add(Kind.LITERAL, 4)
    add(Kind.ZERO, PER_CHUNK)
    add(Kind.NEW, 4, above + 5 * PER_CHUNK + 12)
    add(Kind.OLD, 12, above + 4)
    assert encoder.blocks == COUNT * PER_CHUNK
    raw_map, prefix = encoder.finish(), OLD[FIRST_ABOVE + 2]
    stored = compress_behind(_LITERALS, prefix, level=3, window_log=22)
    assert len(stored) < BLOCK  # it has them from the prefix
    first_region = (FIRST_ABOVE + 2) * PER_CHUNK
    region_runs = encode_regions([RegionRun(first_region, PER_CHUNK)])
    segment = Segment(
        offset=0,
        stored_bytes=len(stored),
        literal_bytes=len(_LITERALS),
        first_block=above + 5 * PER_CHUNK + 12,
        region_first=0,
        region_count=PER_CHUNK,
        region_stored_bytes=len(region_runs),
        sha256=hashlib.sha256(stored).digest(),
    )
    head = build_head(
        old_bytes=COUNT * CHUNK_BYTES,
        new_bytes=COUNT * CHUNK_BYTES,
        old_root=Sha256.of(b"".join(hashes_of(OLD))),
        new_root=root,
        new_sha256=Sha256.from_raw(bytes(32)),
        map_frame=compress_behind(raw_map, b"", level=3, window_log=10),
        map_bytes=len(raw_map),
        regions=region_runs,
        hashes=encode_hashes(hashes_of(OLD), hashes_of(NEW)),
        segments=[segment],
    )
    return head, stored


def by_patch(new: Packed) -> SlotComponent:
    return new.component


def by_pack(new: Packed) -> SlotComponent:
    return replace(new.component, patches=())


@pytest.mark.parametrize("way", [by_patch, by_pack])
def test_image_above_4_gib_round_trips(
    new: Packed, tmp_path: Path, way: Callable[[Packed], SlotComponent]
) -> None:
    component = way(new)
    garbage = {3: noise(8), FIRST_ABOVE + 3: noise(9), FIRST_ABOVE + 5: noise(10)}
    paths = {A: tmp_path / "a", B: tmp_path / "b"}
    target = SparseSlot.of("b", garbage)
    media = SparseMedia({paths[A]: SparseSlot.of("a", OLD), paths[B]: target})
    store = IndexStore(tmp_path / "index")
    old_root = Sha256.of(b"".join(hashes_of(OLD)))
    store.keep_table(
        hashes_of(OLD), image_root=old_root, image_bytes=COUNT * CHUNK_BYTES, chunk_bytes=CHUNK_BYTES
    )
    record = SlotRecord(digest=Sha256.of(b""), root=old_root, sequence=1, epoch=0, version="1")
    source = MemorySource.of(new)
    slots = DeviceSlots(
        paths,
        store=store,
        records=lambda: {A: record},
        source_for=lambda name, control: source,
        clock=FakeClock(),
        beat=lambda stage: None,
        media=media,
    )
    template = Release.parse(build_release(release_fields("2.0", 2, component.image_root)))
    reports: list[TransferProgress] = []
    notices: list[object] = []
    slots.write(
        B,
        replace(template, components=(component,)),
        "relay",
        resume=False,
        cap_bytes=None,
        report=reports.append,
        notify=notices.append,
        control=NeverControl(),
    )
    assert target.content == SparseSlot.of("b", NEW).content
    assert notices == []
    made = reports[-1].by_source
    assert (made.patch if component.patches else made.pack) > 0
