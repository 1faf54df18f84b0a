"""Single files and single chunks of a release, as the tool reads them back: nothing is used before its hash is right."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from tidewaiter_core.payload import IndexReader, Method, PayloadChunkError
from tidewaiter_core.payload.index import ReadAt

from tidewaiter_release import zstd
from tidewaiter_release.errors import BuildMismatchError, InputError


def check_file(path: Path, *, length: int, sha256: str) -> None:
    """Refuse a file that is not the one signed for.

    Raises:
        InputError: It cannot be read.
        BuildMismatchError: Length or hash differ.
    """
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found == length:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    if found != length:
        raise BuildMismatchError(f"{path}: {found} bytes, its release names {length}; not published")
    if digest != sha256:
        raise BuildMismatchError(f"{path}: sha256 {digest}, its release names {sha256}; not published")


def read_chunk(reader: IndexReader, read_pack: ReadAt, number: int) -> bytes:
    """One chunk of the image, hashed before and after decoding.

    Raises:
        PayloadError: It cannot be what the index says.
    """
    length, what = reader.chunk_length(number), f"chunk {number}"
    unit = reader.unit(number)
    if unit.method is Method.SAME:
        unit = reader.unit(unit.offset)
    if unit.method is Method.ZERO:
        chunk = bytes(length)
    else:
        stored = read_pack(unit.offset, unit.stored_bytes)
        if hashlib.sha256(stored).digest() != unit.sha256:
            raise PayloadChunkError(f"pack: {what}: the stored bytes have another hash than the index says")
        chunk = (
            stored
            if unit.method is Method.RAW
            else zstd.decompress(stored, length=length, what=f"pack: {what}")
        )
    if hashlib.sha256(chunk).digest() != reader.chunk_hash(number):
        raise PayloadChunkError(f"pack: {what}: the decoded bytes have another hash than the index says")
    return chunk
