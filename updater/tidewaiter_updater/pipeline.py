"""The writing end of a transfer: one thread that writes a slot, one that syncs it, and bounded room before them.

Bounds, which are also what a power cut may cost (update-engine.md section 7): 4 buffers of 1 MiB, at most 8 MiB written but not
synced. An error in a thread is kept, raised in the caller at its next step, and ends the transfer; no thread outlives `close`.
"""

from __future__ import annotations

import contextlib
import mmap
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from tidewaiter_updater.device import BLOCK_BYTES, SlotDevice, aligned_buffer
from tidewaiter_updater.stage import POLL_S, Control, Stage, Work

__all__ = ["BUFFER_BYTES", "Control", "Sink"]

BUFFER_BYTES: Final = 1024 * 1024
BUFFERS: Final = 4
UNSYNCED_BYTES: Final = 8 * 1024 * 1024
_ZEROS_BYTES: Final = 16 * BLOCK_BYTES
_ZEROS: Final = memoryview(bytes(_ZEROS_BYTES))


class Sink:
    """Writes a slot front to back: callers put verified bytes, a thread writes whole buffers, another one syncs."""

    def __init__(self, device: SlotDevice, control: Control) -> None:
        self._device = device
        self._control = control
        self._free: queue.SimpleQueue[mmap.mmap] = queue.SimpleQueue()
        self._work: queue.SimpleQueue[tuple[mmap.mmap | None, int, int] | None] = queue.SimpleQueue()
        self._buffers = [aligned_buffer(BUFFER_BYTES) for _ in range(BUFFERS)]
        for buffer in self._buffers:
            self._free.put(buffer)
        self._buffer: mmap.mmap | None = None
        self._start = self._filled = 0
        self._zero_start = self._zero_bytes = 0
        self._submitted = 0
        self._change = threading.Condition()
        self._written = self._synced = self._done = 0
        self._sync_now = self._stop_sync = False
        self._stages = [Stage("write", self._write_all), Stage("sync", self._sync_all)]
        for stage in self._stages:
            stage.start()

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write `data` at `offset`; adjacent puts share a buffer. Lengths are multiples of 4096."""
        self._flush_zeros()
        self._copy(offset, memoryview(data))

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, by the device's own means where a run is long enough."""
        if self._zero_bytes and (
            offset != self._zero_start + self._zero_bytes or self._zero_bytes >= UNSYNCED_BYTES // 2
        ):
            self._flush_zeros()
        if not self._zero_bytes:
            self._zero_start = offset
        self._zero_bytes += length

    def settle(self) -> None:
        """Return when everything put so far is written (not necessarily synced)."""
        self._flush_zeros()
        self._submit()
        self._until(lambda: self._done >= self._submitted)

    def sync(self) -> None:
        """Return when everything put so far is on storage."""
        self.settle()
        self._sync_now = True
        self._until(lambda: self._synced >= self._written)
        self._sync_now = False

    @property
    def synced_bytes(self) -> int:
        """How many of the bytes written are known to be on storage."""
        return self._synced

    def close(self) -> None:
        """End the threads. What was not settled may or may not be written."""
        self._work.put(None)
        self._stages[0].join(lambda: self._control.beat("assemble"))
        with self._change:
            self._stop_sync = True
            self._change.notify_all()
        self._stages[1].join(lambda: self._control.beat("assemble"))
        for buffer in self._buffers:
            with contextlib.suppress(BufferError):  # a failed stage's traceback may still name a view of it
                buffer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _copy(self, offset: int, data: memoryview) -> None:
        at, length = 0, len(data)
        while at < length:
            if self._buffer is not None and (
                self._filled == BUFFER_BYTES or offset + at != self._start + self._filled
            ):
                self._submit()
            if self._buffer is None:
                self._buffer = self._take_free()
                self._start, self._filled = offset + at, 0
            count = min(length - at, BUFFER_BYTES - self._filled)
            # A chunk that fits is copied as it is: this runs for every chunk.
            piece = data if count == length else data[at : at + count]
            self._buffer[self._filled : self._filled + count] = piece
            self._filled += count
            at += count

    def _flush_zeros(self) -> None:
        start, length = self._zero_start, self._zero_bytes
        self._zero_bytes = 0
        if length >= BUFFER_BYTES and self._device.zeroes_ranges:
            self._submit()
            self._push(None, start, length)
            return
        for done in range(0, length, _ZEROS_BYTES):
            self._copy(start + done, _ZEROS[: min(_ZEROS_BYTES, length - done)])

    def _submit(self) -> None:
        if self._buffer is not None:
            buffer, self._buffer = self._buffer, None
            self._push(buffer, self._start, self._filled)

    def _push(self, buffer: mmap.mmap | None, offset: int, length: int) -> None:
        self._raise_failure()
        self._submitted += 1
        self._work.put((buffer, offset, length))

    def _take_free(self) -> mmap.mmap:
        while True:
            self._raise_failure()
            self._control.beat("assemble")
            with contextlib.suppress(queue.Empty):
                return self._free.get(timeout=POLL_S)

    def _until(self, condition: Callable[[], bool]) -> None:
        with self._change:
            while not condition():
                self._raise_failure()
                self._control.beat("assemble")
                self._change.notify_all()
                self._change.wait(POLL_S)

    def _raise_failure(self) -> None:
        for stage in self._stages:
            if stage.failure is not None:
                raise stage.failure

    def _write_all(self) -> None:
        while (item := self._next_work()) is not None:
            buffer, offset, length = item
            with self._change:
                while self._written + length - self._synced > UNSYNCED_BYTES and self._written > self._synced:
                    if self._stages[1].ended.is_set():
                        return  # the sync stage holds the error
                    self._control.beat("write")
                    self._change.wait(POLL_S)
            began_s = self._control.times.now()
            if buffer is None:
                self._device.zero(offset, length)
            else:
                with memoryview(buffer) as view:
                    self._device.write(view[:length], offset)
                self._free.put(buffer)
            self._control.times.spent(Work.WRITE, began_s)
            self._control.beat("write")
            with self._change:
                self._written += length
                self._done += 1
                self._change.notify_all()

    def _next_work(self) -> tuple[mmap.mmap | None, int, int] | None:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._work.get(timeout=POLL_S)
            self._control.beat("write")

    def _sync_all(self) -> None:
        while True:
            with self._change:
                while not self._wants_sync():
                    if self._stop_sync:
                        return
                    self._control.beat("sync")
                    self._change.wait(POLL_S)
                upto = self._written
            began_s = self._control.times.now()
            self._device.sync()
            self._control.times.spent(Work.SYNC, began_s)
            self._control.beat("sync")
            with self._change:
                self._synced = upto
                self._change.notify_all()

    def _wants_sync(self) -> bool:
        unsynced = self._written - self._synced
        # Half the bound, so that the writer goes on while the first half is synced; everything when the caller waits.
        return unsynced >= UNSYNCED_BYTES // 2 or (unsynced > 0 and self._sync_now)
