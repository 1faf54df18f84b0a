"""`tidewaiter-release inspect`: any object of the update engine, checked, for a person or (`--json`) for a program."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidewaiter_core import strictjson
from tidewaiter_core.payload import STANDARD, IndexReader, PackHeader, PatchReader, Release
from tidewaiter_core.payload.components import PATCH_HEADER_BYTES
from tidewaiter_core.payload.pack import PACK_HEADER_BYTES
from tidewaiter_core.payload.patch import Kind
from tidewaiter_core.payload.patchfile import parse_patch_header
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES

from tidewaiter_release.describe import release_lines
from tidewaiter_release.errors import InputError
from tidewaiter_release.repository import describe_metadata
from tidewaiter_release.repository.changes import summary
from tidewaiter_release.repository.request import REQUEST_NAME, read_request
from tidewaiter_release.repository.sign import fingerprint, read_signatures, signature_files
from tidewaiter_release.zstd import ZstdCodec

_HEAD_BYTES = 4096
_METADATA_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Description:
    """What a file is."""

    kind: str
    facts: dict[str, Any]
    """The same as JSON values."""
    lines: list[str]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **self.facts}


def inspect(path: Path) -> Description:
    """Describe release.json, an index, a pack, a patch, TUF metadata, or a signing request (its folder).

    Raises:
        InputError: The file cannot be read, or is none of these.
        PayloadError: It is one of these, and damaged.
    """
    if path.is_dir() or path.name == REQUEST_NAME:
        return _request(path if path.is_dir() else path.parent)
    try:
        with path.open("rb") as file:
            length = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            if head.startswith(b"TWCI"):
                return _index(file.fileno(), length)
            if head.startswith(b"TWPK"):
                return _pack(head, length)
            if head.startswith(b"TWPT"):
                return _patch(file.fileno(), length)
            file.seek(0)
            data = file.read(_METADATA_LIMIT_BYTES)
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    return _json(path, data)


def _json(path: Path, data: bytes) -> Description:
    try:
        document = strictjson.loads(data, limit_bytes=_METADATA_LIMIT_BYTES, depth=32)
    except strictjson.StrictJsonError as err:
        raise InputError(f"{path}: neither index, pack, patch, release.json nor metadata: {err}") from err
    if isinstance(document, dict) and "signed" in document:
        lines = describe_metadata(data)
        signatures = [entry["keyid"] for entry in document["signatures"]]
        return Description("metadata", {"signed": document["signed"], "signed_by": signatures}, lines)
    if isinstance(document, dict) and "format" in document:
        release = Release.parse(data[: RELEASE_LIMIT_BYTES + 1])
        facts = {"digest": release.digest, "txn": release.txn, "release": document}
        return Description("release", facts, list(release_lines(release)))
    raise InputError(f"{path}: JSON, but neither release.json nor metadata")


def _index(fd: int, length: int) -> Description:
    reader = IndexReader(lambda offset, size: os.pread(fd, size, offset), length)
    reader.verify_tables()
    header = reader.header
    methods = Counter(reader.unit(number).method for number in range(header.chunk_count))
    stored = {method.name.lower(): methods[method] for method in sorted(methods)}
    facts = {
        "image_bytes": header.image_bytes,
        "chunk_count": header.chunk_count,
        "chunk_bytes": header.chunk_bytes,
        "image_sha256": header.image_sha256,
        "image_root": header.image_root,
        "pack_bytes": header.pack_bytes,
        "stored": stored,
    }
    lines = [
        "index (tables match their roots)",
        f"  image_bytes   {header.image_bytes}",
        f"  chunks        {header.chunk_count} of {header.chunk_bytes}",
        f"  image_sha256  {header.image_sha256}",
        f"  image_root    {header.image_root}",
        f"  pack_bytes    {header.pack_bytes} ({header.pack_bytes * 100 // header.image_bytes} % of the image)",
        "  stored        " + ", ".join(f"{name} {count}" for name, count in stored.items()),
    ]
    return Description("index", facts, lines)


def _pack(head: bytes, length: int) -> Description:
    header = PackHeader.parse(head[:PACK_HEADER_BYTES], length=length)
    facts = {"pack_bytes": header.pack_bytes, "image_root": header.image_root}
    lines = ["pack", f"  pack_bytes  {header.pack_bytes}", f"  image_root  {header.image_root}"]
    return Description("pack", facts, lines)


def _patch(fd: int, length: int) -> Description:
    header = parse_patch_header(os.pread(fd, PATCH_HEADER_BYTES, 0), patch_bytes=length)
    reader = PatchReader(
        lambda offset, size: os.pread(fd, size, offset), header.data_offset, patch_bytes=length
    )
    reader.verify(ZstdCodec())
    counted = Counter[int]()
    for run in reader.runs(ZstdCodec()):
        counted[run.kind] += run.blocks
    blocks = {kind.name.lower(): counted[kind] for kind in Kind}
    regions = sum(segment.region_count for segment in reader.segments())
    facts = {
        "from_root": header.old_root,
        "from_bytes": header.old_bytes,
        "to_root": header.new_root,
        "to_bytes": header.new_bytes,
        "to_sha256": header.new_sha256,
        "patch_bytes": length,
        "head_bytes": header.data_offset,
        "segments": header.segment_count,
        "regions": regions,
        "region_bytes_stored": header.regions.stored_bytes,
        "hash_bytes": header.hashes.stored_bytes,
        "blocks": blocks,
    }
    lines = [
        "patch (every table is sound)",
        f"  from          {header.old_root}, {header.old_bytes} bytes",
        f"  to            {header.new_root}, {header.new_bytes} bytes",
        f"  patch_bytes   {length}, of which head {header.data_offset}",
        f"  head          map {header.map.stored_bytes}, regions {header.regions.stored_bytes}, hashes "
        f"{header.hashes.stored_bytes} bytes",
        f"  prefixes      {regions} regions of {STANDARD.region_bytes} bytes",
        f"  segments      {header.segment_count}",
        "  blocks        " + ", ".join(f"{name} {count}" for name, count in blocks.items()),
    ]
    return Description("patch", facts, lines)


def _request(directory: Path) -> Description:
    request = read_request(directory)
    signatures: dict[str, list[str]] = {item.name: [] for item in request.items}
    for path in signature_files(directory):
        for one in read_signatures(path, request):
            signatures.setdefault(one.item, []).append(one.signature.keyid)
    items = [
        {
            "item": item.name,
            "side": item.side,
            "role": item.role,
            "version": item.version,
            "keys": dict(item.keys),
            "thresholds": list(item.thresholds),
            "signed_by": signatures[item.name],
        }
        for item in request.items
    ]
    shown = summary(request)
    lines = [*shown, "", f"request {fingerprint(request)}"]
    for item in request.items:
        names = ", ".join(item.keys.get(keyid, keyid[:16]) for keyid in signatures[item.name])
        lines.append(f"  {item.name} signed by {names or 'nobody'} (not verified here)")
    facts = {"request": request.digest, "made_utc": request.made_utc, "items": items, "summary": shown}
    return Description("signing-request", facts, lines)
