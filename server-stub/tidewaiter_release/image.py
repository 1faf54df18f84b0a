"""An image file as the formats see it: padded with zeros to whole blocks, read at any place, hashed in one pass."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import STANDARD, Limits

from tidewaiter_release.errors import InputError

_WINDOW_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHashes:
    """What identifies an image."""

    sha256: Sha256
    root: Sha256
    chunks: tuple[bytes, ...]
    """32 bytes per chunk, in order."""


class ImageFile:
    """An image that is open for reading; threads may share it."""

    def __init__(self, path: Path, *, limits: Limits = STANDARD) -> None:
        """Open `path`.

        Raises:
            InputError: It cannot be read.
            PayloadLimitError: Its size is none an image may have.
        """
        self.name = path.name
        self.limits = limits
        if path.is_dir():
            raise InputError(f"{path}: expected an image, found a folder; nothing was made of it")
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # Not fstat: a block device has size 0 there.
            self._size = os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as err:
            raise InputError(f"{path}: cannot be read: {err.strerror}; nothing was made of it") from err
        self.image_bytes = limits.padded(self._size)
        self.chunk_bytes = limits.chunk_bytes_for(self.image_bytes)
        try:
            limits.check_image_bytes(self.image_bytes, what=path.name)
        except BaseException:
            self.close()
            raise

    @property
    def blocks(self) -> int:
        return self.image_bytes // self.limits.block_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes of the padded image.

        Raises:
            InputError: The file shrank, or cannot be read.
        """
        there = max(0, min(length, self._size - offset))
        data = b""
        try:
            while len(data) < there:
                piece = os.pread(self._fd, there - len(data), offset + len(data))
                if not piece:
                    raise InputError(
                        f"{self.name}: ends at {offset + len(data)} of {self._size} bytes; it changed while it was read"
                    )
                data += piece
        except OSError as err:
            raise InputError(f"{self.name}: cannot be read at byte {offset}: {err}") from err
        return data.ljust(length, b"\0")

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`; for the ports of core.payload.patchapply."""
        done = 0
        while done < len(buffer):
            part = buffer[done : done + _WINDOW_BYTES]
            part[:] = self.read(offset + done, len(part))
            done += len(part)

    def read_many(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        """Fill each buffer from its offset."""
        for buffer, offset in parts:
            self.read_into(buffer, offset)

    def windows(self) -> Iterator[bytes]:
        """The image from front to back in pieces of 1 MiB, a whole number of chunks each."""
        size = max(_WINDOW_BYTES, self.chunk_bytes)
        for offset in range(0, self.image_bytes, size):
            yield self.read(offset, min(size, self.image_bytes - offset))

    def hashes(self, *, each_window: Callable[[bytes], None] = lambda window: None) -> ImageHashes:
        """All hashes of the image; `each_window` sees the same bytes, so that one pass is enough."""
        image, root = hashlib.sha256(), hashlib.sha256()
        chunks: list[bytes] = []
        for window in self.windows():
            image.update(window)
            view = memoryview(window)
            for at in range(0, len(window), self.chunk_bytes):
                chunks.append(hashlib.sha256(view[at : at + self.chunk_bytes]).digest())
                root.update(chunks[-1])
            each_window(window)
        return ImageHashes(
            sha256=Sha256(image.hexdigest()), root=Sha256(root.hexdigest()), chunks=tuple(chunks)
        )

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
