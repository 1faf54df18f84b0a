"""Hashes what a device holds, chunk by chunk: some threads read and hash windows, the caller gets the digests in order.

One thread that reads and hashes in turn leaves the medium idle while it hashes and the processor idle while it reads: 0.49 of
the speed of `dd iflag=direct`. With several, windows are read while others are hashed (reading and hashing both release the
interpreter's lock), and a fast medium has more than one request at a time.

Source: update-engine.md section 7 (read-back).
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import queue
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from tidewaiter_updater.device import SlotDevice, aligned_buffer
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.stage import Control

WINDOW_BYTES: Final = 1024 * 1024
READERS: Final = 3
"""Windows in work at a time: one being read and two being hashed, or the other way round."""
_WINDOWS_AHEAD: Final = 2 * READERS


def chunk_digests(
    device: SlotDevice, *, image_bytes: int, chunk_bytes: int, control: Control
) -> Generator[tuple[int, bytes | None]]:
    """Number and SHA-256 of each chunk in ascending order; None for a digest where the chunk cannot be read.

    Memory: `READERS` windows of 1 MiB, or of one chunk if that is longer. Closing the iterator ends the threads.

    Raises:
        InstallCancelledError: `control` said so.
    """
    scan = _Scan(device, image_bytes, chunk_bytes)
    window_chunks = scan.window_bytes // chunk_bytes
    for number, digests in enumerate(scan.windows(control)):
        for chunk, digest in enumerate(digests, number * window_chunks):
            control.beat("assemble")
            yield chunk, digest


class _Scan:
    """One pass over a device."""

    def __init__(self, device: SlotDevice, image_bytes: int, chunk_bytes: int) -> None:
        self.window_bytes = max(chunk_bytes, WINDOW_BYTES)
        self._device = device
        self._image_bytes = image_bytes
        self._chunk_bytes = chunk_bytes
        self._buffers: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()

    def windows(self, control: Control) -> Iterator[list[bytes | None]]:
        """The digests of each window, in order."""
        starts = range(0, self._image_bytes, self.window_bytes)
        readers = min(READERS, len(starts))
        buffers = [aligned_buffer(min(self.window_bytes, self._image_bytes)) for _ in range(readers)]
        for buffer in buffers:
            self._buffers.put(buffer)
        if readers == 1:  # one window: nothing to read beside it, so no thread is worth its start
            control.check(f"{self._device.name}: reading")
            with contextlib.closing(buffers[0]):
                yield self._window(starts[0])
            return
        pool = ThreadPoolExecutor(readers, "slot-scan")
        ahead: deque[Future[list[bytes | None]]] = deque()
        try:
            for start in starts:
                control.check(f"{self._device.name}: reading")
                ahead.append(pool.submit(self._window, start))
                if len(ahead) > _WINDOWS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                control.check(f"{self._device.name}: reading")
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
            for buffer in buffers:
                buffer.close()

    def _window(self, start: int) -> list[bytes | None]:
        buffer = self._buffers.get()
        try:
            return self._digests(buffer, start)
        finally:
            self._buffers.put(buffer)

    def _digests(self, buffer: mmap.mmap, start: int) -> list[bytes | None]:
        length = min(self.window_bytes, self._image_bytes - start)
        with memoryview(buffer) as view, view[:length] as part:
            try:
                self._device.read_into(part, start)
            except SlotError:
                return [None] * -(-length // self._chunk_bytes)
            return [
                hashlib.sha256(part[at : at + self._chunk_bytes]).digest()
                for at in range(0, length, self._chunk_bytes)
            ]
