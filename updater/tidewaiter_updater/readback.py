"""Looks at what a slot really holds: before writing (resume), after writing (read-back), before arming (matches).

A read-back goes through a new O_DIRECT descriptor: with the backing store corrupted after fsync, a buffered read still gave the
good hash (update-engine.md section 7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

from tidewaiter_core.payload.index import IndexReader

from tidewaiter_updater.device import SlotDevice, aligned_buffer
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.model import ByteCounts, TransferProgress
from tidewaiter_updater.pipeline import BUFFER_BYTES, Control
from tidewaiter_updater.plan import ChunkHashes

_REPORT_BYTES = 8 * 1024 * 1024


class _IndexTable:
    """An index, seen as the hash table in it."""

    def __init__(self, index: IndexReader) -> None:
        self.image_bytes = index.header.image_bytes
        self.chunk_bytes = index.header.chunk_bytes
        self.chunk_count = index.header.chunk_count
        self.chunk_hash = index.chunk_hash


def read_back(
    device: SlotDevice,
    index: IndexReader,
    progress: Callable[[TransferProgress], None] = lambda report: None,
    control: Control | None = None,
) -> list[int]:
    """The chunks that the medium does not give back; `device` is synced, closed, and read through a new descriptor.

    A chunk that cannot be read counts as wrong: rewriting makes many a medium map a bad sector out.

    Raises:
        SlotError: It cannot be synced or opened again.
        InstallCancelledError: `control` said so.
    """
    table = _IndexTable(index)
    bad: list[int] = []
    with device.reopened() as reader:
        for chunk, right in _judged(reader, table, control or Control(), progress):
            if not right:
                bad.append(chunk)
    return bad


def matches(device: SlotDevice, table: IndexReader | ChunkHashes, control: Control | None = None) -> bool:
    """Whether a slot holds exactly an image. Stops at the first wrong chunk; reads past the cache as `device` does."""
    hashes = _IndexTable(table) if isinstance(table, IndexReader) else table
    if device.size_bytes < hashes.image_bytes:
        return False
    return all(right for _, right in _judged(device, hashes, control or Control(), lambda report: None))


def right_chunks(
    device: SlotDevice, index: IndexReader, promised: ChunkHashes | None, control: Control, *, whole: bool
) -> Iterator[int]:
    """The chunks that a target already holds.

    Args:
        promised: What the target is recorded to hold; only chunks it promises equal are read.
        whole: Read everything instead.
    """
    table = _IndexTable(index)
    if whole:
        for chunk, right in _judged(device, table, control, lambda report: None):
            if right:
                yield chunk
    elif promised is not None and promised.chunk_bytes == table.chunk_bytes:
        buffer = aligned_buffer(table.chunk_bytes)
        for chunk in range(min(table.chunk_count, promised.chunk_count)):
            if promised.chunk_hash(chunk) != table.chunk_hash(chunk):
                continue
            control.check(f"{device.name}: reading")
            control.beat("assemble")
            with memoryview(buffer) as view, view[: index.chunk_length(chunk)] as part:
                try:
                    device.read_into(part, chunk * table.chunk_bytes)
                except SlotError:  # unreadable means not right: it will be rewritten
                    continue
                if hashlib.sha256(part).digest() == table.chunk_hash(chunk):
                    yield chunk
        buffer.close()


def _judged(
    device: SlotDevice, table: ChunkHashes, control: Control, progress: Callable[[TransferProgress], None]
) -> Iterator[tuple[int, bool]]:
    """Each chunk with whether it is right, reading in windows of at least 1 MiB."""
    window_bytes = max(table.chunk_bytes, BUFFER_BYTES)
    buffer = aligned_buffer(window_bytes)
    for start in range(0, table.image_bytes, window_bytes):
        control.check(f"{device.name}: reading")
        length = min(window_bytes, table.image_bytes - start)
        readable = True
        with memoryview(buffer) as view, view[:length] as part:
            try:
                device.read_into(part, start)
            except SlotError:
                readable = False
            for at in range(0, length, table.chunk_bytes):
                control.beat("assemble")
                chunk = (start + at) // table.chunk_bytes
                digest = hashlib.sha256(part[at : at + table.chunk_bytes]).digest()
                yield chunk, readable and digest == table.chunk_hash(chunk)
        if (start + length) % _REPORT_BYTES < window_bytes:
            progress(TransferProgress(counts=ByteCounts(total=table.image_bytes, skipped=start + length)))
    progress(TransferProgress(counts=ByteCounts(total=table.image_bytes, skipped=table.image_bytes)))
