"""Proves that a build can be installed before anybody signs it: every unit is decoded and every hash recomputed.

The checks are those a device makes, in one pass over index and pack, with one chunk in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tidewaiter_core.payload import (
    STANDARD,
    IndexReader,
    Limits,
    PackHeader,
    PayloadChunkError,
    PayloadLengthError,
    Release,
    SlotComponent,
    require_match,
)
from tidewaiter_core.payload.components import PartRef, UkiComponent, uki_pieces
from tidewaiter_core.payload.index import ReadAt

from tidewaiter_release.build import part_name, read_release, slot_files
from tidewaiter_release.parts import check_file, read_chunk
from tidewaiter_release.patches import check_patch
from tidewaiter_release.progress import Progress


def check_build(
    directory: Path, *, limits: Limits = STANDARD, stream: TextIO | None = None
) -> tuple[bytes, Release]:
    """The release document of a build directory, after proving that its index and pack give the image it names
    and that its patches are sound (that they apply was proven when they were made).

    Raises:
        ReleaseToolError: A file is missing, or is not the one that release.json names.
        PayloadError: A file breaks its format, or the image it gives is another.
    """
    data, release = read_release(directory, limits=limits)
    slot, index_name, pack_name = slot_files(release)
    index_path, pack_path = directory / index_name, directory / pack_name
    others = [part for part in (*release.components, release.sbom) if isinstance(part, PartRef)]
    for part in (slot.index, slot.pack, *others):
        check_file(directory / part_name(part.path), length=part.length, sha256=part.sha256)
    for part in others:
        if isinstance(part, UkiComponent):
            check_pieces(part, (directory / part_name(part.path)).read_bytes())
    progress = Progress(f"checking {release.version}", slot.image_bytes, stream=stream)
    with index_path.open("rb") as index, pack_path.open("rb") as pack:
        reader = IndexReader(_read_at(index.fileno()), slot.index.length, limits=limits)
        check_slot(slot, reader, _read_at(pack.fileno()), limits=limits, progress=progress.update)
    progress.finish()
    for patch in slot.patches:
        check_patch(directory / part_name(patch.path), slot, patch, limits=limits)
    return data, release


def check_pieces(part: UkiComponent, data: bytes) -> None:
    """Compare a kernel image with the pieces that release.json names: a device would fetch them all, and then refuse the whole.

    Raises:
        PayloadChunkError: A piece is another.
    """
    for signed, found in itertools.zip_longest(part.pieces, uki_pieces(data)):
        if signed != found:
            where = (signed or found).offset
            raise PayloadChunkError(
                f"{part.path}: the piece at {where} is not the one that release.json names; a device would never stage it"
            )


def check_slot(
    slot: SlotComponent,
    reader: IndexReader,
    read_pack: ReadAt,
    *,
    limits: Limits = STANDARD,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Decode the whole image and compare it with what release.json says.

    Raises:
        PayloadError: The first thing that is wrong.
    """
    require_match(reader.header, slot)
    reader.verify_tables()
    header = PackHeader.parse(read_pack(0, 64), length=slot.pack.length, limits=limits)
    if header.image_root != slot.image_root:
        raise PayloadChunkError(f"pack: of image {header.image_root}, release.json says {slot.image_root}")
    image = hashlib.sha256()
    done = 0
    for number in range(reader.header.chunk_count):
        chunk = read_chunk(reader, read_pack, number)
        image.update(chunk)
        done += len(chunk)
        if progress is not None:
            progress(done)
    if image.hexdigest() != slot.image_sha256:
        raise PayloadChunkError(f"image: sha256 {image.hexdigest()}, release.json says {slot.image_sha256}")


def _read_at(fd: int) -> ReadAt:
    def read_at(offset: int, length: int) -> bytes:
        data = os.pread(fd, length, offset)
        if len(data) != length:
            raise PayloadLengthError(f"file: ends within bytes {offset}+{length}")
        return data

    return read_at
