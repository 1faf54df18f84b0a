"""`tidewaiter-release inspect`: any object of the update engine, checked and printed for a person."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tidewaiter_core import strictjson
from tidewaiter_core.payload import IndexReader, PackHeader, PatchReader, Release
from tidewaiter_core.payload.components import PATCH_HEADER_BYTES
from tidewaiter_core.payload.pack import PACK_HEADER_BYTES
from tidewaiter_core.payload.patch import Kind
from tidewaiter_core.payload.patchfile import REGION_NUMBER_BYTES, parse_patch_header
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES

from tidewaiter_release.describe import release_lines
from tidewaiter_release.errors import InputError
from tidewaiter_release.repository import describe_metadata
from tidewaiter_release.zstd import ZstdCodec

_HEAD_BYTES = 4096
_METADATA_LIMIT_BYTES = 16 * 2**20


def inspect(path: Path) -> list[str]:
    """The lines that describe a file: release.json, index, pack, patch, or TUF metadata.

    Raises:
        InputError: The file cannot be read, or is none of these.
        PayloadError: It is one of these, and damaged.
    """
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            if head.startswith(b"TWCI"):
                return list(_index(file.fileno(), length))
            if head.startswith(b"TWPK"):
                header = PackHeader.parse(head[:PACK_HEADER_BYTES], length=length)
                return ["pack", f"  pack_bytes  {header.pack_bytes}", f"  image_root  {header.image_root}"]
            if head.startswith(b"TWPT"):
                return list(_patch(file.fileno(), length))
            file.seek(0)
            data = file.read(_METADATA_LIMIT_BYTES)
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    return _json(path, data)


def _json(path: Path, data: bytes) -> list[str]:
    try:
        document = strictjson.loads(data, limit_bytes=_METADATA_LIMIT_BYTES, depth=32)
    except strictjson.StrictJsonError as err:
        raise InputError(f"{path}: neither index, pack, patch, release.json nor metadata: {err}") from err
    if isinstance(document, dict) and "signed" in document:
        return describe_metadata(data)
    if isinstance(document, dict) and "format" in document:
        return list(release_lines(Release.parse(data[: RELEASE_LIMIT_BYTES + 1])))
    raise InputError(f"{path}: JSON, but neither release.json nor metadata")


def _index(fd: int, length: int) -> Iterator[str]:
    reader = IndexReader(lambda offset, size: os.pread(fd, size, offset), length)
    reader.verify_tables()
    header = reader.header
    yield "index (tables match their roots)"
    yield f"  image_bytes   {header.image_bytes}"
    yield f"  chunks        {header.chunk_count} of {header.chunk_bytes}"
    yield f"  image_sha256  {header.image_sha256}"
    yield f"  image_root    {header.image_root}"
    yield f"  pack_bytes    {header.pack_bytes} ({header.pack_bytes * 100 // header.image_bytes} % of the image)"
    methods = Counter(reader.unit(number).method for number in range(header.chunk_count))
    yield "  stored        " + ", ".join(
        f"{method.name.lower()} {methods[method]}" for method in sorted(methods)
    )


def _patch(fd: int, length: int) -> Iterator[str]:
    header = parse_patch_header(os.pread(fd, PATCH_HEADER_BYTES, 0), patch_bytes=length)
    reader = PatchReader(
        lambda offset, size: os.pread(fd, size, offset), header.data_offset, patch_bytes=length
    )
    reader.verify(ZstdCodec())
    blocks = Counter[int]()
    for run in reader.runs(ZstdCodec()):
        blocks[run.kind] += run.blocks
    regions = header.regions.raw_bytes // REGION_NUMBER_BYTES
    yield "patch (every table is sound)"
    yield f"  from          {header.old_root}, {header.old_bytes} bytes"
    yield f"  to            {header.new_root}, {header.new_bytes} bytes"
    yield f"  patch_bytes   {length}, of which head {header.data_offset}"
    yield f"  head          map {header.map.stored_bytes}, regions {regions}, hashes {header.hashes.stored_bytes} bytes"
    yield f"  segments      {header.segment_count}"
    yield "  blocks        " + ", ".join(f"{kind.name.lower()} {blocks[kind]}" for kind in Kind)
