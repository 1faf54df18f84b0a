"""The patches of a release: made when it is built, checked before it is signed, applied again by `lint`.

An older image is given as the image itself or as the directory that `build` wrote for it: index and pack hold the whole image.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tidewaiter_core.payload import (
    STANDARD,
    IndexReader,
    Limits,
    PatchReader,
    PayloadChunkError,
    SlotComponent,
)
from tidewaiter_core.payload.components import PatchRef
from tidewaiter_core.payload.patch import require_patch_match

from tidewaiter_release.errors import InputError
from tidewaiter_release.parts import check_file, read_chunk
from tidewaiter_release.payload import INDEX_NAME, PACK_NAME, BuiltImage
from tidewaiter_release.zstd import PUBLISH_LEVEL, ZstdCodec

if TYPE_CHECKING:
    from tidewaiter_release.delta import BuiltPatch

PATCH_SUFFIX = ".twpt"
_NAME_DIGITS = 16


def make_patches(
    image: Path,
    out: Path,
    built: BuiltImage,
    sources: Sequence[Path],
    *,
    target_directory: str,
    level: int = PUBLISH_LEVEL,
    workers: int | None = None,
    limits: Limits = STANDARD,
    stream: TextIO | None = None,
) -> list[dict[str, Any]]:
    """Write a patch from each older image into `out`; returns the entries for release.json.

    A patch that would save less than 1/16 of index and pack is left out: it is not worth its place in the repository.

    Raises:
        InputError: An older image cannot be used, is given twice or is the new image itself.
        PayloadError: A patch would break a bound of the format.
    """
    for stale in out.glob(f"from-*{PATCH_SUFFIX}"):
        stale.unlink()
    if not sources:
        return []
    from tidewaiter_release.delta import make_patch  # brings numpy, which nobody else needs

    entries: dict[str, dict[str, Any]] = {}
    for source in sources:
        temporary = out / f".patch{PATCH_SUFFIX}"
        with older_image(source, out, limits=limits) as old:
            patch = make_patch(
                old, image, temporary, level=level, workers=workers, limits=limits, stream=stream
            )
        root = patch.header.old_root
        try:
            if root == patch.header.new_root or root in entries:
                raise InputError(
                    f"{source}: is the new image itself, or was given twice; no patch was made from it"
                )
            whole = built.index.length + built.pack.length
            if (whole - patch.length) * 16 < whole:
                if stream is not None:
                    stream.write(
                        f"{source}: a patch of {patch.length} bytes saves too little over {whole}; left out\n"
                    )
                continue
            name = f"from-{root[:_NAME_DIGITS]}{PATCH_SUFFIX}"
            temporary.replace(out / name)
            entries[root] = _entry(patch, f"{target_directory}/{name}")
        finally:
            temporary.unlink(missing_ok=True)
    return [entries[root] for root in sorted(entries)]


@contextlib.contextmanager
def older_image(source: Path, work: Path, *, limits: Limits = STANDARD) -> Iterator[Path]:
    """The image behind `source`: itself, or unpacked from a build directory into `work` for a while.

    Raises:
        InputError: `source` is neither, or cannot be read.
        PayloadError: Index and pack do not give the image they promise.
    """
    if not source.is_dir():
        yield source
        return
    with tempfile.NamedTemporaryFile(dir=work, prefix=".older-") as file:
        unpack_image(source / INDEX_NAME, source / PACK_NAME, Path(file.name), limits=limits)
        yield Path(file.name)


def unpack_image(index: Path, pack: Path, target: Path, *, limits: Limits = STANDARD) -> None:
    """Decode a whole image out of index and pack.

    Raises:
        InputError: A file cannot be read or written.
        PayloadError: A file breaks its format, or a chunk has another hash than the index says.
    """
    try:
        with index.open("rb") as index_file, pack.open("rb") as pack_file, target.open("wb") as out:
            reader = IndexReader(
                lambda offset, length: os.pread(index_file.fileno(), length, offset),
                os.fstat(index_file.fileno()).st_size,
                limits=limits,
            )
            reader.verify_tables()
            for number in range(reader.header.chunk_count):
                out.write(
                    read_chunk(
                        reader, lambda offset, length: os.pread(pack_file.fileno(), length, offset), number
                    )
                )
    except OSError as err:
        raise InputError(f"{index.parent}: is no directory that `build` wrote: {err}") from err


def check_patch(path: Path, component: SlotComponent, patch: PatchRef, *, limits: Limits = STANDARD) -> None:
    """Prove all of a patch that can be proven without its old image: lengths, hashes, and every table of its head.

    Raises:
        ReleaseToolError: The file is missing, or is not the one that release.json names.
        PayloadError: It breaks its format, or joins other images.
    """
    check_file(path, length=patch.length, sha256=patch.sha256)
    with path.open("rb") as file:
        head = file.read(patch.head_bytes)
        if hashlib.sha256(head).hexdigest() != patch.head_sha256:
            raise PayloadChunkError(
                f"{path.name}: the head has another sha256 than release.json says; not published"
            )
        reader = PatchReader(
            lambda offset, length: head[offset : offset + length],
            len(head),
            patch_bytes=patch.length,
            limits=limits,
        )
        require_patch_match(reader.header, component, patch)
        reader.verify(ZstdCodec())
        for number, segment in enumerate(reader.segments()):
            stored = file.read(segment.stored_bytes)
            if hashlib.sha256(stored).digest() != segment.sha256:
                raise PayloadChunkError(
                    f"{path.name}: segment {number} has another sha256 than the head says"
                )


def _entry(patch: BuiltPatch, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "length": patch.length,
        "sha256": patch.sha256,
        "from_root": patch.header.old_root,
        "head_bytes": patch.head_bytes,
        "head_sha256": patch.head_sha256,
    }
