"""Small images, built by the release tool's own builder, and a repository of them in memory that can lie."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import IndexReader, SlotComponent
from tidewaiter_core.payload.components import FileSystem, IndexRef, PackRef, PatchRef
from tidewaiter_release.delta import make_patch
from tidewaiter_release.payload import build_image

CHUNK_BYTES = 64 * 1024


def random_image(
    chunks: int, *, seed: int, zero: tuple[int, ...] = (), same: dict[int, int] | None = None
) -> bytes:
    """An image of chunks that half compress; `zero` chunks are zeros, `same` repeats earlier ones."""
    rng = random.Random(seed)
    parts: list[bytes] = []
    for chunk in range(chunks):
        if chunk in zero:
            parts.append(bytes(CHUNK_BYTES))
        elif same and chunk in same:
            parts.append(parts[same[chunk]])
        elif chunk % 3 == 2:
            parts.append(rng.randbytes(CHUNK_BYTES))  # stored raw
        else:
            parts.append(rng.randbytes(CHUNK_BYTES // 4) * 4)
    return b"".join(parts)


@dataclass(frozen=True)
class Packed:
    """One image with its index and pack."""

    image: bytes
    component: SlotComponent
    index_bytes: bytes
    pack: bytes
    patch: bytes = b""
    """The only patch of the component, if it has one."""

    @property
    def index(self) -> IndexReader:
        return IndexReader(
            lambda offset, length: self.index_bytes[offset : offset + length], len(self.index_bytes)
        )

    @property
    def pack_target(self) -> str:
        folder, _, name = self.component.pack.path.rpartition("/")
        return f"{folder}/{self.component.pack.sha256}.{name}"

    @property
    def patch_target(self) -> str:
        (patch,) = self.component.patches
        folder, _, name = patch.path.rpartition("/")
        return f"{folder}/{patch.sha256}.{name}"

    @property
    def index_target(self) -> str:
        folder, _, name = self.component.index.path.rpartition("/")
        return f"{folder}/{self.component.index.sha256}.{name}"


def packed(image: bytes, folder: Path, *, version: str = "1.0") -> Packed:
    """Build `image` in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "image").write_bytes(image)
    built = build_image(folder / "image", folder, level=1, workers=2, stream=io.StringIO())
    path = f"releases/mri-injector/{version}"
    component = SlotComponent(
        name="rootfs",
        image_bytes=built.header.image_bytes,
        image_sha256=built.header.image_sha256,
        image_root=built.header.image_root,
        chunk_bytes=built.header.chunk_bytes,
        fs=FileSystem.EXT4,
        verity=None,
        index=IndexRef(path=f"{path}/index.twci", length=built.index.length, sha256=built.index.sha256),
        pack=PackRef(path=f"{path}/pack.twpk", length=built.pack.length, sha256=built.pack.sha256),
        patches=(),
    )
    return Packed(
        image=image,
        component=component,
        index_bytes=(folder / "index.twci").read_bytes(),
        pack=(folder / "pack.twpk").read_bytes(),
    )


def with_patch(new: Packed, old: Packed, folder: Path, *, level: int = 3) -> Packed:
    """`new` with a patch from `old`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (("old", old.image), ("new", new.image)):
        (folder / name).write_bytes(data)
    built = make_patch(folder / "old", folder / "new", folder / "patch", level=level, workers=2)
    return patched_by(new, (folder / "patch").read_bytes(), built.head_bytes, from_root=built.header.old_root)


def patched_by(new: Packed, patch: bytes, head_bytes: int, *, from_root: Sha256) -> Packed:
    """`new` with any bytes as its patch, rightly signed."""
    ref = PatchRef(
        path=new.component.pack.path.replace("pack.twpk", "from-old.twpt"),
        length=len(patch),
        sha256=Sha256.of(patch),
        from_root=from_root,
        head_bytes=head_bytes,
        head_sha256=Sha256.of(patch[:head_bytes]),
    )
    return replace(new, component=replace(new.component, patches=(ref,)), patch=patch)


class MemorySource:
    """A `Source` over a dictionary of targets. `tamper` sees each answer and may change it."""

    cost_class = "metered"

    def __init__(self, targets: dict[str, bytes]) -> None:
        self.targets = targets
        self.spans: list[tuple[str, int, int]] = []
        self.tamper: Callable[[str, int, bytes], bytes] = lambda path, offset, data: data
        self.before: Callable[[int], None] = lambda number: None
        """Called with the number of each span before it is served; may raise."""
        self._received_bytes = 0

    @classmethod
    def of(cls, *images: Packed) -> MemorySource:
        targets = {}
        for image in images:
            targets[image.pack_target] = image.pack
            targets[image.index_target] = image.index_bytes
            if image.component.patches:
                targets[image.patch_target] = image.patch
        return cls(targets)

    @property
    def received_bytes(self) -> int:
        return self._received_bytes

    def metadata(self, path: str, limit: int) -> Iterator[bytes]:
        raise NotImplementedError("this world has no metadata")

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        self.before(len(self.spans))
        self.spans.append((path, offset, length))
        data = self.tamper(path, offset, self.targets[path][offset : offset + length])
        self._received_bytes += len(data)
        for at in range(0, len(data), 64 * 1024):
            yield data[at : at + 64 * 1024]
