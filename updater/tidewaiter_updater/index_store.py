"""What the updater keeps about images: index or patch head of the release being installed, and the hash tables of both slots.

All of it is a hint (invariant I3): the index is hashed against the signed release each time it is opened, a hash table against
the image root in its name, and every chunk they promise is re-hashed when it is read. Losing the folder costs fetching.
Layout: `<sha256>.twci`, `<sha256>.twph` (the head of a patch), `<image_root>.hashes`, `<image_root>.chunk0` (verified bytes that
are written last), `writing.json` (which slot is half written with which image, so that the next attempt hashes the target
instead of overwriting it).
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tidewaiter_core.disk import SYSTEM_DISK, Disk
from tidewaiter_core.durable import (
    DOCUMENT_LIMIT_BYTES,
    load_document,
    make_directory,
    save_document,
    write_atomic,
)
from tidewaiter_core.errors import StateError, StateWriteError
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.components import IndexRef, PatchRef
from tidewaiter_core.payload.index import IndexReader
from tidewaiter_core.payload.limits import STANDARD, Limits
from tidewaiter_core.payload.patch import PatchReader

from tidewaiter_updater.plan import ChunkHashes
from tidewaiter_updater.sources import Source, hashed_path
from tidewaiter_updater.spool import Spool, SpooledPart

logger = logging.getLogger(__name__)

_WINDOW_BYTES: Final = 64 * 1024
_HASH_BYTES: Final = 32
_MARK_SCHEMA: Final = 1
_INDEX_SUFFIX: Final = ".twci"
_HEAD_SUFFIX: Final = ".twph"
_BY_ROOT: Final = frozenset({".hashes", ".chunk0"})
_BY_DIGEST: Final = frozenset({_INDEX_SUFFIX, _HEAD_SUFFIX, ".part"})
_TRAILER: Final = struct.Struct("<QQ")


class HashTable:
    """The recorded chunk hashes of an image that was once installed. On disk: the table, then image and chunk size."""

    def __init__(self, path: Path, fd: int, *, disk: Disk) -> None:
        self._fd = fd
        self._disk = disk
        table_bytes = disk.length(fd) - _TRAILER.size
        self.image_bytes, self.chunk_bytes = _TRAILER.unpack(disk.read_at(fd, _TRAILER.size, table_bytes))
        self.chunk_count = table_bytes // _HASH_BYTES
        self.image_root = Sha256(path.stem)
        self._window_start = 0
        self._window = b""

    def chunk_hash(self, chunk: int) -> bytes:
        """SHA-256 of chunk number `chunk`; empty, which no chunk has, if the table cannot be read any more."""
        offset = chunk * _HASH_BYTES
        at = offset - self._window_start
        if not 0 <= at < len(self._window):
            self._window_start = offset - offset % _WINDOW_BYTES
            try:
                self._window = self._disk.read_at(self._fd, _WINDOW_BYTES, self._window_start)
            except OSError as err:
                logger.warning("hash table of %s: %s; its chunks count as unknown", self.image_root[:16], err)
                self._window = b""
            at = offset - self._window_start
        return self._window[at : at + _HASH_BYTES]

    def close(self) -> None:
        self._disk.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class IndexStore:
    """The folder `index/` of the updater's state."""

    def __init__(self, folder: Path, *, disk: Disk = SYSTEM_DISK, limits: Limits = STANDARD) -> None:
        self._folder = folder
        self._disk = disk
        self._limits = limits
        self._spool = Spool(folder, disk=disk)
        make_directory(folder, disk=disk)

    @contextlib.contextmanager
    def opened(
        self, ref: IndexRef, source: Source, *, step: Callable[[], None] = lambda: None
    ) -> Iterator[IndexReader]:
        """The index that `ref` names, fetched first if it is not here or not intact.

        Raises:
            SourceError: It could not be fetched, or is not what the release signed (source.bad-bytes).
            PayloadError: What the release signed is no sound index.
            StateWriteError: No room for it.
        """
        with self._spool.opened(_index_part(ref), source, step) as read_at:
            reader = IndexReader(read_at, ref.length, limits=self._limits)
            reader.verify_tables()
            yield reader

    @contextlib.contextmanager
    def opened_head(
        self, patch: PatchRef, source: Source, *, step: Callable[[], None] = lambda: None
    ) -> Iterator[PatchReader]:
        """The head of a patch, fetched first if it is not here or not intact; only its header is checked here.

        Raises:
            SourceError, StateWriteError: As for `opened`.
            PayloadError: What the release signed is no patch of its length.
        """
        with self._spool.opened(_head_part(patch), source, step) as read_at:
            yield PatchReader(read_at, patch.head_bytes, patch_bytes=patch.length, limits=self._limits)

    def missing_bytes(self, ref: IndexRef | PatchRef) -> int:
        """What opening the index, or the head of the patch, would fetch."""
        part = _index_part(ref) if isinstance(ref, IndexRef) else _head_part(ref)
        return 0 if self._spool.has(part) else part.length

    def hashes(self, image_root: str) -> HashTable | None:
        """The recorded hash table of an image; None if there is none that proves its root."""
        path = self._table(image_root)
        if not _is_table(path, disk=self._disk):
            return None
        try:
            fd = self._disk.open(path)
        except OSError:
            return None
        try:
            return HashTable(path, fd, disk=self._disk)
        except OSError:
            self._disk.close(fd)
            return None

    def keep_hashes(self, table: ChunkHashes) -> None:
        """Record the chunk hashes of an installed image, unless they are recorded already."""
        if not _is_table(self._table(table.image_root), disk=self._disk):
            self.keep_table(
                map(table.chunk_hash, range(table.chunk_count)),
                image_root=table.image_root,
                image_bytes=table.image_bytes,
                chunk_bytes=table.chunk_bytes,
            )

    def keep_table(
        self, hashes: Iterable[bytes], *, image_root: str, image_bytes: int, chunk_bytes: int
    ) -> None:
        """Record a table of chunk hashes, in chunk order.

        Raises:
            StateWriteError: No room for it.
        """
        table = bytearray()
        for digest in hashes:
            table += digest
        table += _TRAILER.pack(image_bytes, chunk_bytes)
        write_atomic(self._table(image_root), bytes(table), disk=self._disk)

    def mark_writing(self, slot: str, image_root: str) -> None:
        """Record, before the first changed byte, that `slot` is being filled with an image."""
        mark = {"slot": slot, "image_root": image_root}
        save_document(self._mark, mark, schema=_MARK_SCHEMA, disk=self._disk)

    def is_writing(self, slot: str, image_root: str) -> bool:
        """Whether an earlier attempt left `slot` half filled with this very image."""
        try:
            mark = load_document(self._mark, schema=_MARK_SCHEMA, disk=self._disk)
        except StateError:
            return True  # unreadable: hashing the target costs time, overwriting what is right costs money
        return mark is not None and mark.get("slot") == slot and mark.get("image_root") == image_root

    def mark_complete(self, image_root: str) -> None:
        """All of the image is in the slot.

        Raises:
            StateWriteError: The mark stays; the next attempt finds the slot right and tries again.
        """
        self._remove(self._mark)
        self._remove(self._chunk0(image_root))

    def keep_chunk0(self, image_root: str, data: bytes) -> None:
        """Keep the verified first chunk until it may be written."""
        write_atomic(self._chunk0(image_root), data, disk=self._disk)

    def chunk0(self, image_root: str, digest: bytes) -> bytes | None:
        """The kept first chunk, if its bytes are still right."""
        try:
            data = self._disk.read(self._chunk0(image_root), DOCUMENT_LIMIT_BYTES)
        except OSError:
            return None
        return data if hashlib.sha256(data).digest() == digest else None

    def keep_only(self, *, roots: set[str], parts: set[str]) -> None:
        """Remove what belongs to no slot and no running transaction.

        Args:
            roots: Images whose tables and first chunks stay.
            parts: SHA-256 of indexes and patch heads that stay.

        Raises:
            StateWriteError: The medium refuses to list or remove.
        """
        try:
            entries = self._disk.entries(self._folder)
        except OSError as err:
            raise StateWriteError(
                f"{self._folder}: cannot be listed: {err.strerror}; what no slot needs stays"
            ) from err
        for entry in entries:
            path = self._folder / entry.name
            wanted = roots if path.suffix in _BY_ROOT else parts
            if path.suffix in _BY_ROOT | _BY_DIGEST and path.stem not in wanted:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        try:
            self._disk.remove(path)
        except OSError as err:
            raise StateWriteError(f"{path}: cannot be removed: {err.strerror}; it stays") from err

    @property
    def _mark(self) -> Path:
        return self._folder / "writing.json"

    def _table(self, image_root: str) -> Path:
        return self._folder / f"{Sha256.parse(image_root)}.hashes"

    def _chunk0(self, image_root: str) -> Path:
        return self._folder / f"{image_root}.chunk0"


def _index_part(ref: IndexRef) -> SpooledPart:
    target = hashed_path(ref.path, ref.sha256)
    return SpooledPart(target=target, length=ref.length, sha256=ref.sha256, suffix=_INDEX_SUFFIX)


def _head_part(patch: PatchRef) -> SpooledPart:
    target = hashed_path(patch.path, patch.sha256)
    return SpooledPart(target=target, length=patch.head_bytes, sha256=patch.head_sha256, suffix=_HEAD_SUFFIX)


def _is_table(path: Path, *, disk: Disk) -> bool:
    """Whether the file is a hash table of the image root in its name, with plausible sizes behind it."""
    try:
        data = disk.read(path, DOCUMENT_LIMIT_BYTES)
    except OSError:
        return False
    table_bytes = len(data) - _TRAILER.size
    if table_bytes <= 0 or table_bytes % _HASH_BYTES:
        return False
    image_bytes, chunk_bytes = _TRAILER.unpack_from(data, table_bytes)
    with memoryview(data) as view:
        is_root = hashlib.sha256(view[:table_bytes]).hexdigest() == path.stem
    return is_root and chunk_bytes > 0 and -(-image_bytes // chunk_bytes) == table_bytes // _HASH_BYTES
