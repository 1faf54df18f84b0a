"""Looks at what a slot really holds: before writing (resume), after writing (read-back), before arming (matches).

A read-back goes through a new O_DIRECT descriptor: with the backing store corrupted after fsync, a buffered read still gave the
good hash (update-engine.md section 7).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from enum import Enum, auto

from tidewaiter_core.payload.index import IndexReader

from tidewaiter_updater.device import SlotDevice, aligned_buffer
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.model import ByteCounts, TransferProgress
from tidewaiter_updater.plan import ChunkHashes
from tidewaiter_updater.scan import chunk_digests
from tidewaiter_updater.stage import Control

_REPORT_BYTES = 8 * 1024 * 1024


class Found(Enum):
    """What a chunk of a target is."""

    RIGHT = auto()
    """The new image's chunk."""
    UNMOVED = auto()
    """What the target was recorded to hold before; only believed, not read, unless the whole target is read."""


class IndexTable:
    """An index, seen as the hash table in it."""

    def __init__(self, index: IndexReader) -> None:
        self.image_root = index.header.image_root
        self.image_bytes = index.header.image_bytes
        self.chunk_bytes = index.header.chunk_bytes
        self.chunk_count = index.header.chunk_count
        self.chunk_hash = index.chunk_hash


def read_back(
    device: SlotDevice,
    table: IndexReader | ChunkHashes,
    progress: Callable[[TransferProgress], None] = lambda report: None,
    control: Control | None = None,
) -> list[int]:
    """The chunks that the medium does not give back; `device` is synced, closed, and read through a new descriptor.

    A chunk that cannot be read counts as wrong: rewriting makes many a medium map a bad sector out.

    Raises:
        SlotError: It cannot be synced or opened again.
        InstallCancelledError: `control` said so.
    """
    hashes = _hashes(table)
    with device.reopened() as reader:
        digests = _digests(reader, hashes, control or Control(), progress)
        return [chunk for chunk, digest in digests if digest != hashes.chunk_hash(chunk)]


def matches(device: SlotDevice, table: IndexReader | ChunkHashes, control: Control | None = None) -> bool:
    """Whether a slot holds exactly an image. Stops at the first wrong chunk; reads past the cache as `device` does."""
    hashes = _hashes(table)
    if device.size_bytes < hashes.image_bytes:
        return False
    digests = _digests(device, hashes, control or Control(), lambda report: None)
    return all(digest == hashes.chunk_hash(chunk) for chunk, digest in digests)


def intact_chunks(device: SlotDevice, table: ChunkHashes, control: Control) -> bytearray:
    """One byte per chunk of a record: 1 where the device really holds it."""
    intact = bytearray(table.chunk_count)
    for chunk, digest in _digests(device, table, control, lambda report: None):
        intact[chunk] = digest == table.chunk_hash(chunk)
    return intact


def survey(
    device: SlotDevice, table: ChunkHashes, promised: ChunkHashes | None, control: Control, *, whole: bool
) -> Iterator[tuple[int, Found]]:
    """What of a target can be used: each chunk that is right already, or is still what it was before.

    Args:
        promised: What the target is recorded to hold; only chunks it promises equal are read.
        whole: Read everything instead.
    """
    usable = promised if promised is not None and promised.chunk_bytes == table.chunk_bytes else None
    if whole:
        for chunk, digest in _digests(device, table, control, lambda report: None):
            if digest is None:
                continue
            if digest == table.chunk_hash(chunk):
                yield chunk, Found.RIGHT
            elif usable is not None and chunk < usable.chunk_count and digest == usable.chunk_hash(chunk):
                yield chunk, Found.UNMOVED
    elif usable is not None:
        yield from _promised(device, table, usable, control)


def _promised(
    device: SlotDevice, table: ChunkHashes, promised: ChunkHashes, control: Control
) -> Iterator[tuple[int, Found]]:
    buffer = aligned_buffer(table.chunk_bytes)
    for chunk in range(min(table.chunk_count, promised.chunk_count)):
        control.check(f"{device.name}: reading")
        control.beat("assemble")
        if promised.chunk_hash(chunk) != table.chunk_hash(chunk):
            yield chunk, Found.UNMOVED
            continue
        length = min(table.chunk_bytes, table.image_bytes - chunk * table.chunk_bytes)
        with memoryview(buffer) as view, view[:length] as part:
            try:
                device.read_into(part, chunk * table.chunk_bytes)
            except SlotError:  # unreadable means not right: it will be rewritten
                continue
            if hashlib.sha256(part).digest() == table.chunk_hash(chunk):
                yield chunk, Found.RIGHT
    buffer.close()


def _hashes(table: IndexReader | ChunkHashes) -> ChunkHashes:
    return IndexTable(table) if isinstance(table, IndexReader) else table


def _digests(
    device: SlotDevice, table: ChunkHashes, control: Control, progress: Callable[[TransferProgress], None]
) -> Iterator[tuple[int, bytes | None]]:
    """The hash of each chunk, None where it cannot be read."""
    total, unreported = table.image_bytes, 0
    digests = chunk_digests(device, image_bytes=total, chunk_bytes=table.chunk_bytes, control=control)
    with contextlib.closing(digests):
        for chunk, digest in digests:
            yield chunk, digest
            unreported += table.chunk_bytes
            if unreported >= _REPORT_BYTES:
                unreported = 0
                read_bytes = min(total, (chunk + 1) * table.chunk_bytes)
                progress(TransferProgress(counts=ByteCounts(total=total, skipped=read_bytes)))
    progress(TransferProgress(counts=ByteCounts(total=total, skipped=total)))
