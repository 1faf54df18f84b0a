"""Where the chunks of a new image come from, as a port: by pack, by patch, or from the running slot alone.

A pass over a slot (`slots`) asks for each wrong chunk in ascending order and writes what it gets. Whoever supplies has proven it:
nothing leaves a supply unhashed (I1). What it fetches is metered: more than planned and a little is an error (I9).

Source: update-engine.md section 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from tidewaiter_updater.device import BLOCK_BYTES, SlotDevice, aligned_buffer
from tidewaiter_updater.errors import BudgetError
from tidewaiter_updater.pipeline import Sink
from tidewaiter_updater.plan import ChunkHashes, Origin
from tidewaiter_updater.sources import Source
from tidewaiter_updater.stage import Control

_BUDGET_RATIO: Final = 1.05
_BUDGET_SLACK_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveSlot:
    """The running system as a place to copy chunks from: opened for reading, and what it is recorded to hold."""

    device: SlotDevice
    table: ChunkHashes
    intact: bytearray | None = None
    """One byte per chunk of the table: 1 where the slot was read and is what the record says. None: the record is believed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """What a look at the target found, one byte per chunk."""

    chunks: bytearray
    """1 where the target does not hold the new image's chunk."""
    unmoved: bytearray
    """1 where it still holds what it is recorded to hold, as far as is known: a place to copy from until it is overwritten."""


class Supplied(NamedTuple):
    """A chunk, proven, and where it came from."""

    origin: Origin
    data: bytes | memoryview | None
    """None for a chunk of zeros. A view is good until the next chunk is asked for."""
    following: Sequence[bytes | memoryview] = ()
    """The chunks right behind it, from the same origin and as proven: they are not asked for any more."""


class Supply(Protocol):
    """Gives the chunks of one image to one pass over a slot. One thread uses it."""

    what: str
    """The file that is fetched from, for messages."""
    meter: Meter

    @property
    def active_differs(self) -> int:
        """Chunks that the active slot did not hold although its record says so."""

    def plan(self, wrong: Wrong) -> None:
        """Decide where each wrong chunk comes from; sets what the meter expects. Nothing is fetched yet."""

    def fetching(self, control: Control) -> AbstractContextManager[object]:
        """Fetch ahead while this is entered."""

    def obtain(self, chunk: int, sink: Sink) -> Supplied:
        """A wrong chunk from the cheapest place that has it; asked for in ascending order."""

    def chunk0(self) -> bytes:
        """The first chunk again: it is written last."""


class Meter:
    """What arrived from a source since an attempt began, against what was planned."""

    def __init__(
        self, source: Source, *, began_bytes: int | None = None, cap_bytes: int | None = None
    ) -> None:
        """
        Args:
            began_bytes: `source.received_bytes` when the attempt began; an index or a head counts, too.
            cap_bytes: What release and site allow.
        """
        self._source = source
        self._began_bytes = source.received_bytes if began_bytes is None else began_bytes
        self._cap_bytes = cap_bytes
        self.expected_bytes = 0

    @property
    def fetched_bytes(self) -> int:
        return self._source.received_bytes - self._began_bytes

    def expect(self, bytes_to_come: int) -> None:
        """Set what is planned: what arrived already, and this."""
        self.expected_bytes = self.fetched_bytes + bytes_to_come

    def require_cap(self, what: str) -> None:
        """Refuse a plan that fetches more than is allowed.

        Raises:
            BudgetError: Both numbers are in it.
        """
        if self._cap_bytes is not None and self.expected_bytes > self._cap_bytes:
            raise BudgetError(
                f"{what}: {self.expected_bytes} bytes would have to be fetched, {self._cap_bytes} are allowed; "
                "nothing more was fetched or written"
            )

    def check(self, what: str) -> None:
        """Stop when far more arrived than planned.

        Raises:
            BudgetError: Both numbers are in it.
        """
        if self.fetched_bytes > self._allowed_bytes:
            raise BudgetError(
                f"{what}: {self.fetched_bytes} bytes arrived where {self.expected_bytes} were planned; stopped, "
                "the next attempt plans anew"
            )

    def has_room_for(self, more_bytes: int) -> bool:
        """Whether something that was not planned may be fetched without a new plan."""
        allowed = self._allowed_bytes
        if self._cap_bytes is not None:
            allowed = min(allowed, self._cap_bytes)
        return self.fetched_bytes + more_bytes <= allowed

    @property
    def _allowed_bytes(self) -> int:
        return int(self.expected_bytes * _BUDGET_RATIO) + _BUDGET_SLACK_BYTES


class ChunkReader:
    """Reads chunks of the new image from wherever they may be, and gives out only right ones."""

    def __init__(self, table: ChunkHashes) -> None:
        self._table = table
        self._scratch = aligned_buffer(max(table.chunk_bytes, BLOCK_BYTES))

    def length(self, chunk: int) -> int:
        """Bytes of a chunk: the last one may be short."""
        return min(self._table.chunk_bytes, self._table.image_bytes - chunk * self._table.chunk_bytes)

    def read_right(self, device: SlotDevice, place: int, chunk: int) -> bytes | None:
        """The bytes at chunk position `place` of a device, if they are those of `chunk`."""
        length = self.length(chunk)
        offset = place * self._table.chunk_bytes
        if offset + length > device.size_bytes:
            return None
        with memoryview(self._scratch) as view, view[:length] as part:
            device.read_into(part, offset)
            if hashlib.sha256(part).digest() == self._table.chunk_hash(chunk):
                return bytes(part)
        return None
