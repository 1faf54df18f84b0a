"""`tidewaiter-release apply`: a patch applied to bare files, by the code and within the memory of the device.

The same core as in the updater (core.payload.patch and patchapply) with other ports: files instead of slots, no network, no
resume. The old image is hashed here to get the table that a device keeps; every chunk is hashed before it is written.

Source: update-engine.md sections 4.4 and 15.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tidewaiter_core.payload import STANDARD, Limits, PatchHeader, PatchReader
from tidewaiter_core.payload.components import PATCH_HEADER_BYTES
from tidewaiter_core.payload.errors import PayloadChunkError, PayloadError, PayloadLengthError
from tidewaiter_core.payload.patchapply import BlockSource, ChunkAssembler, Literals, Room, SegmentDecoder
from tidewaiter_core.payload.patchfile import HASH_BYTES, parse_patch_header

from tidewaiter_release.errors import BuildMismatchError, InputError
from tidewaiter_release.image import ImageFile, ImageHashes
from tidewaiter_release.outfile import replacing
from tidewaiter_release.progress import Progress
from tidewaiter_release.zstd import ZstdCodec


def apply_patch(
    old: Path, patch: Path, out: Path, *, limits: Limits = STANDARD, stream: TextIO | None = None
) -> PatchHeader:
    """Write the new image to `out`; an older file is replaced only when every chunk was proven.

    Raises:
        InputError: A file cannot be read or written, or `out` is one of the inputs.
        BuildMismatchError: `old` is not the image that the patch starts from.
        PayloadError: The patch breaks its format, or gives other bytes than it promises.
    """
    with (
        ImageFile(old, limits=limits) as old_image,
        _PatchFile(patch, limits=limits) as source,
        replacing(out, inputs=(old, patch), consequence="there is no new image") as temporary,
        temporary.open("w+b") as file,
    ):
        made = _Made(file.fileno())
        old_hashes = old_image.hashes()
        _Application(source, old_image, old_hashes, made).run(
            made.write, label=f"applying {source.name}", stream=stream
        )
        os.fsync(file.fileno())
        return source.reader.header


def prove_patch(
    old: ImageFile, patch: Path, new: ImageFile, *, name: str = "", stream: TextIO | None = None
) -> PatchHeader:
    """Apply a patch without writing: every chunk it gives must have the hash that the patch promises, and `new` be that image.

    `name` is what a person calls the patch, where it still has another one.

    Raises:
        InputError, BuildMismatchError, PayloadError: As for `apply_patch`.
    """
    with _PatchFile(patch, limits=old.limits, name=name) as source:
        _Application(source, old, old.hashes(), new).run(
            lambda offset, data: None, label=f"checking {source.name}", stream=stream
        )
        found = new.hashes()
        if found.root != source.reader.header.new_root or found.sha256 != source.reader.header.new_sha256:
            raise BuildMismatchError(f"{source.name}: makes another image than {new.name}; not published")
        return source.reader.header


class _PatchFile:
    """A patch on disk."""

    def __init__(self, path: Path, *, limits: Limits, name: str = "") -> None:
        self.name = name or path.name
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise InputError(f"{path}: cannot be read: {err.strerror}; nothing was written") from err
        try:
            length = os.fstat(self._fd).st_size
            header = parse_patch_header(self.read(0, PATCH_HEADER_BYTES), patch_bytes=length, limits=limits)
            self.reader = PatchReader(self.read, header.data_offset, patch_bytes=length, limits=limits)
        except PayloadError as err:
            self.close()
            raise type(err)(f"{path}: {err}") from err
        except OSError as err:
            self.close()
            raise InputError(f"{path}: cannot be read: {err.strerror}; nothing was written") from err

    def read(self, offset: int, length: int) -> bytes:
        """Like pread; shorter at the end of the file."""
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> _PatchFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Made:
    """The image as far as it was written."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, offset: int, data: memoryview) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        if os.preadv(self._fd, [buffer], offset) != len(buffer):
            raise InputError(f"output: bytes {offset}+{len(buffer)} are not there any more")


class _Application:
    """One pass over a patch."""

    def __init__(self, source: _PatchFile, old: ImageFile, old_hashes: ImageHashes, new: BlockSource) -> None:
        reader = source.reader
        if old_hashes.root != reader.header.old_root:
            raise BuildMismatchError(
                f"{source.name}: starts from the image with root {reader.header.old_root}, {old.name} has "
                f"{old_hashes.root}; nothing was written"
            )
        self._source = source
        self._reader = reader
        self._old = old
        self._new = new
        self._codec = ZstdCodec()
        reader.verify(self._codec)
        self._hashes = b"".join(reader.new_hashes(lambda chunk: old_hashes.chunks[chunk]))

    def run(self, put: Callable[[int, memoryview], None], *, label: str, stream: TextIO | None) -> None:
        header = self._reader.header
        decoder = SegmentDecoder(self._reader, self._codec, self._old)
        assembler = ChunkAssembler(
            self._reader,
            self._reader.runs(self._codec),
            old=self._old,
            new=self._new,
            literals=lambda number: self._literals(decoder, number),
        )
        room = Room(header.chunk_bytes)
        progress = Progress(label, header.new_bytes, stream=stream)
        for chunk in range(header.chunk_count):
            offset = chunk * header.chunk_bytes
            data = room.view(min(header.chunk_bytes, header.new_bytes - offset))
            if not assembler.assemble(chunk, data):
                data[:] = bytes(len(data))
            expected = self._hashes[chunk * HASH_BYTES : (chunk + 1) * HASH_BYTES]
            if hashlib.sha256(data).digest() != expected:
                raise PayloadChunkError(
                    f"{self._source.name}: chunk {chunk} comes out with another hash; not written"
                )
            put(offset, data)
            progress.update(offset + len(data))
        progress.finish()

    def _literals(self, decoder: SegmentDecoder, number: int) -> Literals:
        segment = self._reader.segment(number)
        what = f"{self._source.name}: segment {number}"
        stored = self._source.read(segment.offset, segment.stored_bytes)
        if len(stored) != segment.stored_bytes:
            raise PayloadLengthError(f"{what}: {len(stored)} of {segment.stored_bytes} bytes could be read")
        if hashlib.sha256(stored).digest() != segment.sha256:
            raise PayloadChunkError(
                f"{what}: the stored bytes have another hash than the patch says; not decoded"
            )
        return decoder.decode(segment, stored, what=what)
