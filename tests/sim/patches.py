"""Toy patches: real ones by the release tool at small sizes, and hand-made heads that may say anything.

With `TOY` a segment has eight blocks and its prefix at most eight regions of two blocks, so that a few hundred KiB of image
have many of each.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import Limits, PatchReader
from tidewaiter_core.payload.patch import build_head
from tidewaiter_core.payload.patchfile import Segment
from tidewaiter_core.payload.patchhashes import encode_hashes
from tidewaiter_release.delta import BuiltPatch, make_patch
from tidewaiter_release.zstd import compress_behind

BLOCK = 4096
CHUNK = 64 * 1024
TOY = Limits(region_bytes=2 * BLOCK, segment_log=15, prefix_log=16, window_log=15)


@dataclass(frozen=True)
class ToyPatch:
    """A patch in memory, with the images it joins."""

    old: bytes
    new: bytes
    data: bytes
    built: BuiltPatch

    @property
    def head(self) -> bytes:
        return self.data[: self.built.head_bytes]

    @property
    def reader(self) -> PatchReader:
        return reader_of(self.head)


def toy_patch(old: bytes, new: bytes, folder: Path, *, level: int = 3, limits: Limits = TOY) -> ToyPatch:
    """The release tool's patch from `old` to `new`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    built = make_patch(
        folder / "old", folder / "new", folder / "patch", level=level, workers=2, limits=limits
    )
    return ToyPatch(old, new, (folder / "patch").read_bytes(), built)


def changed(old: bytes, *, seed: int, edits: int = 12) -> bytes:
    """An image like `old` as the next build makes it: bytes changed, inserted, removed, moved, zeroed and doubled."""
    rng = random.Random(seed)
    new = bytearray(old)
    for _ in range(edits):
        at = rng.randrange(len(new) // BLOCK) * BLOCK
        size = rng.randrange(1, 6) * BLOCK
        kind = rng.randrange(6)
        if kind == 0:
            new[at + rng.randrange(BLOCK)] ^= 0xFF
        elif kind == 1:
            new[at:at] = rng.randbytes(size)
        elif kind == 2 and len(new) > 8 * size:
            del new[at : at + size]
        elif kind == 3:
            new[at : at + size] = old[:size]
        elif kind == 4:
            new[at : at + size] = bytes(size)
        else:
            new += rng.randbytes(BLOCK) + new[at : at + size]
    return bytes(new[: len(new) // BLOCK * BLOCK])


def reader_of(head: bytes, *, limits: Limits = TOY) -> PatchReader:
    """A reader over a head in memory."""
    return PatchReader(lambda offset, length: head[offset : offset + length], len(head), limits=limits)


def chunk_hashes(image: bytes) -> list[bytes]:
    return [hashlib.sha256(image[at : at + CHUNK]).digest() for at in range(0, len(image), CHUNK)]


def root_of(image: bytes) -> Sha256:
    return Sha256.of(b"".join(chunk_hashes(image)))


def head_with_map(
    raw_map: bytes, *, old: bytes, new: bytes, first_blocks: Sequence[tuple[int, int]] = ()
) -> bytes:
    """A head that is sound but for what the map may say.

    Args:
        first_blocks: (first block, literal blocks) of each segment; the segments' content does not exist.
    """
    segments = [
        Segment(
            offset=number,
            stored_bytes=1,
            literal_bytes=blocks * BLOCK,
            first_block=first,
            region_first=0,
            region_count=0,
            region_stored_bytes=0,
            sha256=bytes(32),
        )
        for number, (first, blocks) in enumerate(first_blocks)
    ]
    return build_head(
        old_bytes=len(old),
        new_bytes=len(new),
        old_root=root_of(old),
        new_root=root_of(new),
        new_sha256=Sha256.of(new),
        map_frame=compress_behind(raw_map, b"", level=3, window_log=10),
        map_bytes=len(raw_map),
        regions=b"",
        hashes=encode_hashes(chunk_hashes(old), chunk_hashes(new)),
        segments=segments,
        limits=TOY,
    )
