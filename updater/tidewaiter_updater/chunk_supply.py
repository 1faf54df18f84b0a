"""The verified bytes of each chunk of a new image, from the cheapest place that has them.

Nothing leaves here unhashed (I1): stored bytes are hashed before they are decoded, decoded and copied bytes before they are given
out. A copy that is not what a record promised costs a fetch, counted and within the byte budget (I9).
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from tidewaiter_core.payload.errors import PayloadChunkError
from tidewaiter_core.payload.index import IndexReader, Method
from tidewaiter_core.payload.release import SlotComponent

from tidewaiter_updater.device import BLOCK_BYTES, SlotDevice, aligned_buffer
from tidewaiter_updater.errors import BudgetError, SlotError, SourceError
from tidewaiter_updater.fetcher import Fetcher
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes, Origin, Span, TransferPlan
from tidewaiter_updater.sources import Source, hashed_path
from tidewaiter_updater.zstd import decode_chunk

_BUDGET_RATIO: Final = 1.05
_BUDGET_SLACK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveSlot:
    """The running system as a place to copy chunks from: opened for reading, and what it is recorded to hold."""

    device: SlotDevice
    table: ChunkHashes


class Supplied(NamedTuple):
    """A chunk, proven, and where it came from."""

    origin: Origin
    data: bytes | memoryview | None
    """None for a chunk of zeros."""


class ChunkSupply:
    """Gives the chunks of one image to one pass over a slot. One thread uses it."""

    def __init__(
        self,
        device: SlotDevice,
        component: SlotComponent,
        index: IndexReader,
        source: Source,
        *,
        store: IndexStore,
        active: ActiveSlot | None,
        step: Callable[[], None],
    ) -> None:
        """
        Args:
            step: Called about twice a second while waiting for the source; may raise to end the transfer.
        """
        self._device = device
        self._component = component
        self._index = index
        self._source = source
        self._store = store
        self._step = step
        usable = active is not None and active.table.chunk_bytes == index.header.chunk_bytes
        self.active = active if usable else None
        """The active slot, if chunks of the same size can be copied from it."""
        self.pack_path = hashed_path(component.pack.path, component.pack.sha256)
        self.active_differs = 0
        self.expected_fetch_bytes = 0
        """What the plan will fetch; set before the first chunk is asked for."""
        self._root = component.image_root
        self._received_before = source.received_bytes
        self._settled_before = 0
        self._span: Span | None = None
        self._span_data = bytearray()
        self._scratch = aligned_buffer(max(index.header.chunk_bytes, BLOCK_BYTES))

    @property
    def fetched_bytes(self) -> int:
        """Everything that arrived from the source since this pass began."""
        return self._source.received_bytes - self._received_before

    def obtain(self, plan: TransferPlan, chunk: int, fetcher: Fetcher, sink: Sink) -> Supplied:
        """The verified bytes of a chunk, from the cheapest place that has them."""
        origin = plan.origin(chunk)
        data: bytes | memoryview | None = None
        if origin is Origin.COPY:
            data = self._copied(plan.copy_from(chunk), chunk) or self._repeated(chunk, sink)
            if data is None:
                origin = Origin.PACK
                unit_chunk = self._stored_chunk(chunk)
                data = self._decoded(unit_chunk, self._fetched_alone(unit_chunk))
        elif origin is Origin.PACK:
            data = self._from_span(chunk, fetcher)
        return Supplied(origin, data)

    def chunk0(self) -> bytes:
        """The first chunk, kept aside or fetched again."""
        data = self._store.chunk0(self._root, self._index.chunk_hash(0))
        if data is None and self._index.unit(0).method is Method.ZERO:
            return bytes(self._index.chunk_length(0))
        if data is None:  # the state directory lost it since; the pack still has it
            data = bytes(self._decoded(0, self._fetched_alone(0)))
        return data

    def read_right(self, device: SlotDevice, place: int, chunk: int) -> bytes | None:
        """The bytes at chunk position `place` of a device, if they are those of `chunk`."""
        length = self._index.chunk_length(chunk)
        offset = place * self._index.header.chunk_bytes
        if offset + length > device.size_bytes:
            return None
        with memoryview(self._scratch) as view, view[:length] as part:
            device.read_into(part, offset)
            if hashlib.sha256(part).digest() == self._index.chunk_hash(chunk):
                return bytes(part)
        return None

    def _copied(self, found: int | None, chunk: int) -> bytes | None:
        """A chunk from the active slot, if it still is what the record says."""
        if found is None or self.active is None:
            return None
        data = None
        with contextlib.suppress(SlotError):  # an unreadable active slot costs a fetch, not the update
            data = self.read_right(self.active.device, found, chunk)
        if data is None:
            self.active_differs += 1
        return data

    def _repeated(self, chunk: int, sink: Sink) -> bytes | None:
        """A chunk that equals an earlier one of the same image, read back from where that was written."""
        earlier = self._stored_chunk(chunk)
        if earlier == chunk:
            return None
        if earlier == 0:
            return self._store.chunk0(self._root, self._index.chunk_hash(0))
        if earlier >= self._settled_before:
            sink.settle()
            self._settled_before = chunk
        return self.read_right(self._device, earlier, chunk)

    def _stored_chunk(self, chunk: int) -> int:
        """The chunk whose unit of the pack holds the bytes of `chunk`."""
        unit = self._index.unit(chunk)
        return unit.offset if unit.method is Method.SAME else chunk

    def _from_span(self, chunk: int, fetcher: Fetcher) -> bytes | memoryview:
        """A chunk out of the spans that arrive in plan order."""
        if self._span is None:
            self._span, self._span_data = fetcher.next(self._step)
        unit = self._index.unit(chunk)
        start = unit.offset - self._span.offset
        stored: bytes | memoryview = memoryview(self._span_data)[start : start + unit.stored_bytes]
        if hashlib.sha256(stored).digest() != unit.sha256:
            stored = self._fetched_alone(chunk)
        data = self._decoded(chunk, stored)
        if chunk == self._span.chunks[-1]:
            # A stored-raw chunk is a view of the span, which its view keeps alive; the room is free for the next one.
            self._span, self._span_data = None, bytearray()
            fetcher.release()
        self._check_budget()
        return data

    def _fetched_alone(self, chunk: int) -> bytes:
        """The stored bytes of one unit, fetched for it alone: a copy failed, or its span had other bytes."""
        unit = self._index.unit(chunk)
        stored = b"".join(self._source.span(self.pack_path, unit.offset, unit.stored_bytes))
        self._check_budget()
        if len(stored) != unit.stored_bytes or hashlib.sha256(stored).digest() != unit.sha256:
            raise SourceError(
                f"{self._component.pack.path}: bytes {unit.offset}+{unit.stored_bytes} (chunk {chunk}) are not what the "
                "index says, twice; they are not decoded, the slot stays unbootable",
                code="source.bad-bytes",
            )
        return stored

    def _decoded(self, chunk: int, stored: bytes | memoryview) -> bytes | memoryview:
        """The chunk in a unit whose stored bytes are proven."""
        unit = self._index.unit(chunk)
        length = self._index.chunk_length(chunk)
        what = f"{self._component.pack.path}: chunk {chunk}"
        raw = stored
        if unit.method is Method.ZSTD:
            raw = decode_chunk(
                stored, raw_bytes=length, chunk_bytes=self._index.header.chunk_bytes, what=what
            )
        if len(raw) != length or hashlib.sha256(raw).digest() != self._index.chunk_hash(chunk):
            raise PayloadChunkError(f"{what}: decodes to other bytes than the index says; not written")
        return raw

    def _check_budget(self) -> None:
        received = self.fetched_bytes
        allowed = int(self.expected_fetch_bytes * _BUDGET_RATIO) + _BUDGET_SLACK_BYTES
        if received > allowed:
            raise BudgetError(
                f"{self.pack_path}: {received} bytes arrived where {self.expected_fetch_bytes} were planned; stopped, "
                "the next attempt plans anew"
            )
