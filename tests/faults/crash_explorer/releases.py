"""Releases of four chunks for the crash explorer, built by the release tool with toy limits.

The sectors of a chunk are zero but for two: writing a slot leaves few units pending, and every subset of them can be tried.
Chunk 1 is the same in all releases: it is what a transfer must not write again.
"""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.limits import Limits
from tidewaiter_core.payload.release import Release, build_release
from tidewaiter_release.delta import make_patch
from tidewaiter_release.payload import BuiltImage, build_image
from tidewaiter_updater.boot.ukiname import UkiName
from tidewaiter_updater.model import RunningRelease

from tests.sim.boot.sdboot import toy_uki
from tests.sim.device import FIRST_BUILT_UTC, HW, PRODUCT, release_fields
from tests.sim.storage import SECTOR_BYTES
from tests.sim.storage.units import BLOCK_BYTES

LIMITS = Limits(
    min_chunk_bytes=BLOCK_BYTES, region_bytes=BLOCK_BYTES, segment_log=13, prefix_log=14, window_log=13
)
"""A segment of a patch has two blocks, its prefix up to four."""
CHUNKS = 4
IMAGE_BYTES = CHUNKS * BLOCK_BYTES
SECTORS_USED = (0, 128)

Blocks = tuple[bytes, ...]


@dataclass(frozen=True)
class Made:
    """A release as the repository holds it."""

    data: bytes
    release: Release
    blocks: Blocks
    identity: RunningRelease
    targets: dict[str, bytes]

    @property
    def txn(self) -> str:
        return self.release.txn


@cache
def made(
    version: str,
    sequence: int,
    *,
    security_epoch: int = 0,
    reversible: bool = True,
    writes: int = 1,
    patch_from: tuple[str, int] | None = None,
    has_kernels: bool = False,
) -> Made:
    """Build a release once per process.

    Args:
        patch_from: Version and sequence of the release that it has a patch from.
        has_kernels: It has a kernel image for each slot, for a loader that takes none from the slot.
    """
    image = _image(version)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "image").write_bytes(image)
        built = build_image(folder / "image", folder, level=1, workers=1, limits=LIMITS, stream=io.StringIO())
        index, pack = (folder / "index.twci").read_bytes(), (folder / "pack.twpk").read_bytes()
    fields = release_fields(
        version,
        sequence,
        built.header.image_root,
        security_epoch=security_epoch,
        data={"writes": writes, "reads_min": 1, "reads_max": writes, "reversible": reversible},
    )
    component = fields["components"][0]
    component.update(_component(component, built))
    targets = {
        _target(component["index"]["path"], built.index.sha256): index,
        _target(component["pack"]["path"], built.pack.sha256): pack,
    }
    if patch_from is not None:
        entry, data = _patch(component["pack"]["path"], old=made(*patch_from), image=image)
        component["patches"] = [entry]
        targets[_target(entry["path"], entry["sha256"])] = data
    for slot in SlotName if has_kernels else ():
        kernel = toy_uki(UkiName(version=version, slot=slot))
        part = _part(f"{component['pack']['path'].rpartition('/')[0]}/kernel-{slot.lower()}.efi", kernel)
        fields["components"].append({"kind": "uki", "slot": slot.value, **part, "pieces": [part["sha256"]]})
        targets[_target(part["path"], part["sha256"])] = kernel
    data = build_release(fields, limits=LIMITS)
    release = Release.parse(data, limits=LIMITS)
    return Made(
        data=data,
        release=release,
        blocks=_blocks(image),
        identity=RunningRelease(
            product=PRODUCT,
            version=version,
            sequence=sequence,
            security_epoch=security_epoch,
            built_utc=FIRST_BUILT_UTC,
            hw=(HW,),
            data=release.data,
        ),
        targets=targets,
    )


def _component(component: dict[str, Any], built: BuiltImage) -> dict[str, Any]:
    header = built.header
    return {
        "image_bytes": header.image_bytes,
        "image_sha256": header.image_sha256,
        "image_root": header.image_root,
        "chunk_bytes": header.chunk_bytes,
        "index": component["index"] | {"length": built.index.length, "sha256": built.index.sha256},
        "pack": component["pack"] | {"length": built.pack.length, "sha256": built.pack.sha256},
    }


def _patch(sibling: str, *, old: Made, image: bytes) -> tuple[dict[str, Any], bytes]:
    """The entry and the bytes of a patch that lies beside the pack."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "old").write_bytes(b"".join(old.blocks))
        (folder / "new").write_bytes(image)
        built = make_patch(
            folder / "old",
            folder / "new",
            folder / "patch",
            level=1,
            workers=1,
            limits=LIMITS,
            stream=io.StringIO(),
        )
        data = (folder / "patch").read_bytes()
    entry = {
        "path": f"{sibling.rpartition('/')[0]}/from-{old.identity.sequence}.twpt",
        "length": built.length,
        "sha256": built.sha256,
        "from_root": old.release.slot.image_root,
        "head_bytes": built.head_bytes,
        "head_sha256": built.head_sha256,
    }
    return entry, data


def _part(path: str, data: bytes) -> dict[str, Any]:
    return {"path": path, "length": len(data), "sha256": Sha256.of(data)}


def _image(version: str) -> bytes:
    return b"".join(_chunk(version, number) for number in range(CHUNKS))


def _blocks(image: bytes) -> Blocks:
    return tuple(image[at : at + BLOCK_BYTES] for at in range(0, IMAGE_BYTES, BLOCK_BYTES))


def _target(path: str, sha256: str) -> str:
    folder, _, name = path.rpartition("/")
    return f"{folder}/{sha256}.{name}"


def _chunk(version: str, number: int) -> bytes:
    rng = random.Random("shared" if number == 1 else f"{version}/{number}")
    chunk = bytearray(BLOCK_BYTES)
    for sector in SECTORS_USED:
        at = sector * SECTOR_BYTES
        chunk[at : at + SECTOR_BYTES] = rng.randbytes(SECTOR_BYTES)
    return bytes(chunk)


class Repository:
    """Port Source over the releases that were published. `faulty` answers are damaged, the first ones."""

    cost_class = "metered"

    def __init__(self, releases: tuple[Made, ...], *, faulty: int = 0) -> None:
        self._targets = {name: data for made in releases for name, data in made.targets.items()}
        self._faulty = faulty
        self.received_bytes = 0

    def metadata(self, path: str, limit: int) -> Iterator[bytes]:
        raise NotImplementedError("trust is a port of its own here")

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        data = self._targets[path][offset : offset + length]
        self.received_bytes += len(data)
        if self._faulty > 0 and path.endswith(".twpk"):
            self._faulty -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        yield data
