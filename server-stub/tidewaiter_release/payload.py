"""Builds index and pack of an image: each chunk hashed, stored once, compressed where that pays.

Memory does not grow with the image: chunks in flight are bounded, the pack goes to disk as it is made; what stays is 112
bytes per chunk and one dictionary entry per different chunk (at most 262,144 of each). zstd and hashlib release the
interpreter lock, so threads use every core without copying chunks between processes.
The same image and level give the same bytes: units are written in chunk order whatever order they finish in.

Source: update-engine.md sections 3, 4.2, 4.3.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import BinaryIO, TextIO

from tidewaiter_core.durable import write_atomic
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import STANDARD, IndexHeader, Limits, Method, PackHeader, Unit, build_index
from tidewaiter_core.payload.indexfile import parse_header
from tidewaiter_core.payload.pack import PACK_HEADER_BYTES

from tidewaiter_release import zstd
from tidewaiter_release.errors import InputError
from tidewaiter_release.progress import Progress

INDEX_NAME = "index.twci"
PACK_NAME = "pack.twpk"
DEFAULT_LEVEL = 12
_IN_FLIGHT_PER_WORKER = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltFile:
    """A file that was written."""

    length: int
    sha256: Sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """Index and pack of one image."""

    header: IndexHeader
    index: BuiltFile
    pack: BuiltFile


def build_image(
    image: Path,
    out: Path,
    *,
    level: int = DEFAULT_LEVEL,
    workers: int | None = None,
    limits: Limits = STANDARD,
    stream: TextIO | None = None,
) -> BuiltImage:
    """Write index.twci and pack.twpk for `image` into `out`; an older pair is replaced only when the new one is whole.

    Args:
        level: zstd level.
        workers: Threads that compress; default is one per processor.
        stream: Where progress is shown.

    Raises:
        InputError: The image cannot be read, is empty, or changed its size while it was read.
        PayloadError: The image is larger than the format allows.
    """
    temporary = out / f".{PACK_NAME}.tmp"
    try:
        with image.open("rb") as source, temporary.open("w+b") as pack:
            size = os.fstat(source.fileno()).st_size
            image_bytes = limits.padded(size)
            limits.check_image_bytes(image_bytes, what=image.name)
            progress = Progress(f"building {image.name}", image_bytes, stream=stream)
            writer = _PackWriter(pack, image_bytes=image_bytes, limits=limits, level=level)
            chunks = _chunks(source, size=size, image_bytes=image_bytes, chunk_bytes=writer.chunk_bytes)
            writer.write_all(chunks, workers=workers or os.cpu_count() or 1, progress=progress)
            index, header = writer.finish()
            pack_sha256 = _sha256_of(pack)
            pack.flush()
            os.fsync(pack.fileno())
        temporary.replace(out / PACK_NAME)
    except OSError as err:
        raise InputError(f"{image}: building in {out} failed: {err}; no new pack was written") from err
    finally:
        temporary.unlink(missing_ok=True)
    write_atomic(out / INDEX_NAME, index, mode=0o644)
    progress.finish()
    return BuiltImage(
        header=header,
        index=BuiltFile(length=len(index), sha256=Sha256.of(index)),
        pack=BuiltFile(length=header.pack_bytes, sha256=pack_sha256),
    )


@dataclass(frozen=True, slots=True)
class _Stored:
    """What a worker made of a chunk."""

    method: Method
    data: bytes
    sha256: bytes


class _PackWriter:
    """Collects the tables of one image while its units go to the pack in chunk order."""

    def __init__(self, pack: BinaryIO, *, image_bytes: int, limits: Limits, level: int) -> None:
        self.chunk_bytes = limits.chunk_bytes_for(image_bytes)
        self._pack = pack
        self._image_bytes = image_bytes
        self._limits = limits
        self._level = level
        self._image = hashlib.sha256()
        self._hashes: list[bytes] = []
        self._units: list[Unit] = []
        self._first: dict[bytes, int] = {}
        self._zero: dict[int, bytes] = {}
        self._end = PACK_HEADER_BYTES
        pack.write(bytes(PACK_HEADER_BYTES))  # the header needs the roots; it is written last

    def write_all(self, chunks: Iterator[bytes], *, workers: int, progress: Progress) -> None:
        """Store every chunk."""
        waiting: deque[Unit | Future[_Stored]] = deque()
        done = 0
        with ThreadPoolExecutor(workers, thread_name_prefix="compress") as pool:
            for chunk in chunks:
                waiting.append(self._plan(chunk, pool))
                if len(waiting) >= workers * _IN_FLIGHT_PER_WORKER:
                    self._append(waiting.popleft())
                done += len(chunk)
                progress.update(done)
            while waiting:
                self._append(waiting.popleft())

    def finish(self) -> tuple[bytes, IndexHeader]:
        """Write the pack header; returns the index."""
        index = build_index(
            image_bytes=self._image_bytes,
            image_sha256=self._image.digest(),
            chunk_hashes=self._hashes,
            units=self._units,
            pack_bytes=self._end,
            limits=self._limits,
        )
        header = parse_header(index, length=len(index), limits=self._limits)
        self._pack.seek(0)
        self._pack.write(PackHeader(pack_bytes=self._end, image_root=header.image_root).to_bytes())
        return index, header

    def _plan(self, chunk: bytes, pool: ThreadPoolExecutor) -> Unit | Future[_Stored]:
        number = len(self._hashes)
        digest = hashlib.sha256(chunk).digest()
        self._image.update(chunk)
        self._hashes.append(digest)
        if digest == self._zero_hash(len(chunk)):
            return Unit(0, 0, Method.ZERO)
        earlier = self._first.setdefault(digest, number)
        if earlier != number:
            return Unit(earlier, 0, Method.SAME)
        return pool.submit(_store, chunk, digest, self._level)

    def _append(self, item: Unit | Future[_Stored]) -> None:
        if isinstance(item, Unit):
            self._units.append(item)
            return
        stored = item.result()
        self._pack.write(stored.data)
        self._units.append(Unit(self._end, len(stored.data), stored.method, stored.sha256))
        self._end += len(stored.data)

    def _zero_hash(self, length: int) -> bytes:
        if length not in self._zero:
            self._zero[length] = hashlib.sha256(bytes(length)).digest()
        return self._zero[length]


def _store(chunk: bytes, digest: bytes, level: int) -> _Stored:
    frame = zstd.compress(chunk, level=level)
    if (len(chunk) - len(frame)) * 16 < len(chunk):  # saves less than 1/16: not worth the device's time
        return _Stored(Method.RAW, chunk, digest)
    return _Stored(Method.ZSTD, frame, hashlib.sha256(frame).digest())


def _chunks(source: BinaryIO, *, size: int, image_bytes: int, chunk_bytes: int) -> Iterator[bytes]:
    """The chunks of the image, the last block filled up with zeros."""
    read = 0
    while read < image_bytes:
        wanted = min(chunk_bytes, image_bytes - read)
        chunk = source.read(wanted)
        if len(chunk) != min(wanted, size - read):
            raise InputError(
                f"{source.name}: {size} bytes at first, {read + len(chunk)} could be read; the image changed while read"
            )
        yield chunk.ljust(wanted, b"\0")
        read += wanted
    if source.read(1):
        raise InputError(
            f"{source.name}: longer than the {size} bytes it had at first; the image changed while read"
        )


def _sha256_of(file: BufferedRandom) -> Sha256:
    file.flush()
    file.seek(0)
    return Sha256(hashlib.file_digest(file, "sha256").hexdigest())
