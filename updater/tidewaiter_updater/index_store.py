"""What the updater keeps about images: the index of the release being installed, and the hash tables of both slots.

All of it is a hint (invariant I3): the index is hashed against the signed release each time it is opened, a hash table against
the image root in its name, and every chunk they promise is re-hashed when it is read. Losing the folder costs fetching.
Layout: `<sha256>.twci`, `<image_root>.hashes`, `<image_root>.chunk0` (verified bytes that are written last), `writing.json`
(which slot is half written with which image, so that the next attempt hashes the target instead of overwriting it).
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import Callable, Iterator
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
from tidewaiter_core.payload.components import IndexRef
from tidewaiter_core.payload.index import IndexReader
from tidewaiter_core.payload.limits import STANDARD, Limits

from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.sources import SPAN_LIMIT_BYTES, Source, hashed_path

_WINDOW_BYTES: Final = 64 * 1024
_HASH_BYTES: Final = 32
_MARK_SCHEMA: Final = 1
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
        """SHA-256 of chunk number `chunk`."""
        offset = chunk * _HASH_BYTES
        at = offset - self._window_start
        if not 0 <= at < len(self._window):
            self._window_start = offset - offset % _WINDOW_BYTES
            self._window = self._disk.read_at(self._fd, _WINDOW_BYTES, self._window_start)
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
        path = self._folder / f"{ref.sha256}.twci"
        if not self._has_digest(path, ref, step):
            self._fetch(ref, source, path, step)
        disk = self._disk
        fd = disk.open(path)
        try:
            reader = IndexReader(
                lambda offset, length: disk.read_at(fd, length, offset), ref.length, limits=self._limits
            )
            reader.verify_tables()
            yield reader
        finally:
            disk.close(fd)

    def hashes(self, image_root: str) -> HashTable | None:
        """The recorded hash table of an image; None if there is none that proves its root."""
        path = self._folder / f"{Sha256.parse(image_root)}.hashes"
        if not _is_table(path, disk=self._disk):
            return None
        return HashTable(path, self._disk.open(path), disk=self._disk)

    def keep_hashes(self, index: IndexReader) -> None:
        """Record the chunk hashes of an installed image."""
        header = index.header
        table = b"".join(index.chunk_hash(chunk) for chunk in range(header.chunk_count))
        trailer = _TRAILER.pack(header.image_bytes, header.chunk_bytes)
        path = self._folder / f"{header.image_root}.hashes"
        write_atomic(path, table + trailer, disk=self._disk)

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
        """All of the image is in the slot."""
        self._disk.remove(self._mark)
        self._disk.remove(self._chunk0(image_root))

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

    def keep_only(self, *, roots: set[str], indexes: set[str]) -> None:
        """Remove what belongs to no slot and no running transaction."""
        for entry in self._disk.entries(self._folder):
            path = self._folder / entry.name
            wanted = roots if path.suffix in (".hashes", ".chunk0") else indexes
            if path.suffix in (".hashes", ".chunk0", ".twci", ".part") and path.stem not in wanted:
                self._disk.remove(path)

    @property
    def _mark(self) -> Path:
        return self._folder / "writing.json"

    def _chunk0(self, image_root: str) -> Path:
        return self._folder / f"{image_root}.chunk0"

    def _fetch(self, ref: IndexRef, source: Source, path: Path, step: Callable[[], None]) -> None:
        part = path.with_suffix(".part")
        try:
            fd = self._disk.create(part)
            try:
                self._disk.truncate(fd, 0)
                found = self._receive(ref, source, fd, step)
                if found != ref.sha256:
                    raise SourceError(
                        f"{ref.path}: expected SHA-256 {ref.sha256}, found {found} in {ref.length} bytes; "
                        "the index is not used and nothing was written to a slot",
                        code="source.bad-bytes",
                    )
                self._disk.sync(fd)
            finally:
                self._disk.close(fd)
            self._disk.replace(part, path)
            self._disk.sync_directory(self._folder)
        except OSError as err:
            with contextlib.suppress(OSError):
                self._disk.remove(part)
            raise StateWriteError(
                f"{path}: cannot be written ({err.strerror or err}); nothing was installed"
            ) from err

    def _receive(self, ref: IndexRef, source: Source, fd: int, step: Callable[[], None]) -> str:
        """Write what the source sends to `fd`; returns its SHA-256."""
        digest = hashlib.sha256()
        repository_path = hashed_path(ref.path, ref.sha256)
        for offset in range(0, ref.length, SPAN_LIMIT_BYTES):
            for piece in source.span(repository_path, offset, min(SPAN_LIMIT_BYTES, ref.length - offset)):
                digest.update(piece)
                done = 0
                while done < len(piece):
                    done += self._disk.write(fd, piece[done:])
                step()
        return digest.hexdigest()

    def _has_digest(self, path: Path, ref: IndexRef, step: Callable[[], None]) -> bool:
        """Whether the file is the index that `ref` names."""
        found = hashlib.sha256()
        try:
            fd = self._disk.open(path)
            try:
                if self._disk.length(fd) != ref.length:
                    return False
                for offset in range(0, ref.length, _WINDOW_BYTES):
                    found.update(self._disk.read_at(fd, _WINDOW_BYTES, offset))
                    step()
            finally:
                self._disk.close(fd)
        except OSError:
            return False
        return found.hexdigest() == ref.sha256


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
