"""Fills a slot with an image, chunk by chunk, so that it can be stopped at any byte and go on later.

Invariants:
1. Stored bytes are hashed before they are decoded, decoded bytes before they are written (I1).
2. If any chunk differs, block 0 of the slot is zeroed and synced before any other write, and chunk 0 is written only after
   all others are synced: whatever a boot script thinks, a half-written slot has no superblock (belt and braces for I2).
3. No byte count is trusted on resume: each chunk is read and hashed, and skipped only if it is right.
4. A chunk that is right in place is not written.
5. Memory does not grow with the image beyond the bounds of `pipeline` and about ten bytes per chunk.

Source: update-engine.md sections 6 and 7.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tidewaiter_core.clock import Clock
from tidewaiter_core.payload.index import IndexReader, require_match
from tidewaiter_core.payload.release import SlotComponent

from tidewaiter_updater.chunk_supply import ActiveSlot, ChunkSupply
from tidewaiter_updater.device import BLOCK_BYTES, SlotDevice, aligned_buffer, identity
from tidewaiter_updater.errors import BudgetError, SlotError
from tidewaiter_updater.fetcher import Fetcher
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import ByteCounts, SourceCounts, TransferProgress
from tidewaiter_updater.pipeline import Control, Sink
from tidewaiter_updater.plan import ChunkHashes, HashLookup, Origin, TransferPlan
from tidewaiter_updater.readback import matches, read_back, right_chunks
from tidewaiter_updater.sources import Source

__all__ = [
    "ActiveSlot",
    "Control",
    "InstallResult",
    "SlotDevice",
    "identity",
    "install",
    "matches",
    "read_back",
    "verify",
]

_REPORT_BYTES: Final = 1024 * 1024
_PAUSE_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallResult:
    """What one pass over the slot did."""

    counts: ByteCounts
    by_source: SourceCounts
    active_differs: int
    """Chunks that the active slot did not hold although its record says so; to be reported once (slot.active-differs)."""


def install(
    device: SlotDevice,
    component: SlotComponent,
    index: IndexReader,
    source: Source,
    *,
    store: IndexStore,
    clock: Clock,
    control: Control | None = None,
    progress: Callable[[TransferProgress], None] = lambda report: None,
    promised: ChunkHashes | None = None,
    active: ActiveSlot | None = None,
    resume: bool | None = None,
    only: Sequence[int] | None = None,
    cap_bytes: int | None = None,
) -> InstallResult:
    """Make the slot hold the image; safe to call again after any interruption.

    On return everything is synced, but not yet read back (`read_back`, `verify`).

    Args:
        promised: Recorded hash table of what the target held; only those of its chunks that equal the new image's are
            read, so that a fresh install does not read what it is about to overwrite.
        resume: Hash the whole target first. None: exactly if the store remembers an unfinished write of this image.
        only: Rewrite just these chunks (after a read-back).
        cap_bytes: More than this is not fetched.

    Raises:
        BudgetError: The plan needs more than `cap_bytes` (nothing was written), or far more arrived than planned.
        SourceError: The pack could not be fetched, or twice had other bytes than the index says.
        PayloadError: Signed but unsound: an entry of the index, or a unit that decodes to something else.
        SlotError: The device refused a read, a write or a sync; or the image does not fit.
        InstallCancelledError: `control` said so.
        StateWriteError: The state directory is full.
    """
    require_match(index.header, component)
    if device.size_bytes < component.image_bytes:
        raise SlotError(
            f"{device.name}: the slot has {device.size_bytes} bytes, the image needs {component.image_bytes}; not written",
            code="slot.size",
        )
    transfer = _Transfer(
        device, component, index, source, store, clock, control or Control(), progress, active
    )
    if resume is None:
        resume = store.is_writing(device.name, component.image_root)
    return transfer.run(promised=promised, resume=resume, only=only, cap_bytes=cap_bytes)


def verify(
    open_slot: Callable[[], SlotDevice],
    component: SlotComponent,
    index: IndexReader,
    source: Source,
    *,
    store: IndexStore,
    clock: Clock,
    control: Control | None = None,
    progress: Callable[[TransferProgress], None] = lambda report: None,
) -> int:
    """Read the slot back from the medium; rewrite chunks that are wrong once. Returns how many were rewritten.

    Raises:
        SlotError: slot.medium: a chunk is wrong again after it was rewritten.
    """
    control = control or Control()
    bad = read_back(open_slot(), index, progress, control)
    if not bad:
        return 0
    with open_slot() as device:
        install(
            device,
            component,
            index,
            source,
            store=store,
            clock=clock,
            control=control,
            progress=progress,
            only=bad,
        )
    again = read_back(open_slot(), index, progress, control)
    if again:
        raise SlotError(
            f"chunk {again[0]} (and {len(again) - 1} more) was written twice and does not read back; the slot stays "
            "unbootable, the medium needs service",
            code="slot.medium",
        )
    return len(bad)


class _Transfer:
    """One call of `install`. The caller's thread assembles."""

    def __init__(
        self,
        device: SlotDevice,
        component: SlotComponent,
        index: IndexReader,
        source: Source,
        store: IndexStore,
        clock: Clock,
        control: Control,
        progress: Callable[[TransferProgress], None],
        active: ActiveSlot | None,
    ) -> None:
        self._device = device
        self._component = component
        self._index = index
        self._source = source
        self._store = store
        self._clock = clock
        self._control = control
        self._progress = progress
        self._root = component.image_root
        self._by_source = dict.fromkeys(Origin, 0)
        self._unreported = 0
        self._supply = ChunkSupply(
            device, component, index, source, store=store, active=active, step=self._step
        )

    def run(
        self, *, promised: ChunkHashes | None, resume: bool, only: Sequence[int] | None, cap_bytes: int | None
    ) -> InstallResult:
        wrong = self._survey(promised, resume=resume, only=only)
        if wrong.find(1) >= 0:
            self._secure_chunk0(wrong)
            plan = TransferPlan(
                self._index,
                wrong,
                active=HashLookup(self._supply.active.table) if self._supply.active else None,
                step=lambda: self._control.beat("assemble"),
            )
            self._supply.expected_fetch_bytes = plan.expected_fetch_bytes
            self._check_plan(cap_bytes)
            self._store.mark_writing(self._device.name, self._root)
            self._write(plan)
        self._store.keep_hashes(self._index)
        self._store.mark_complete(self._root)
        self._report(force=True)
        report = self._status()
        return InstallResult(
            counts=report.counts, by_source=report.by_source, active_differs=self._supply.active_differs
        )

    def _survey(self, promised: ChunkHashes | None, *, resume: bool, only: Sequence[int] | None) -> bytearray:
        """One byte per chunk: 1 where the target does not hold it."""
        count = self._index.header.chunk_count
        if only is not None:
            wrong = bytearray(count)
            for chunk in only:
                wrong[chunk] = 1
            rewritten = sum(self._index.chunk_length(chunk) for chunk in only)
            self._by_source[Origin.RESUME] = self._component.image_bytes - rewritten
        else:
            wrong = bytearray(b"\1") * count
            for chunk in right_chunks(self._device, self._index, promised, self._control, whole=resume):
                wrong[chunk] = 0
                self._count(chunk, Origin.RESUME)
                self._report()
        return wrong

    def _secure_chunk0(self, wrong: bytearray) -> None:
        """Keep chunk 0 aside if it is there already: its block is zeroed next, and it is written last."""
        digest = self._index.chunk_hash(0)
        if self._store.chunk0(self._root, digest) is not None:
            kept = True
        else:
            data = None if wrong[0] else self._supply.read_right(self._device, 0, 0)
            kept = data is not None
            if data is not None:
                self._store.keep_chunk0(self._root, data)
        if not wrong[0]:
            self._by_source[Origin.RESUME] -= self._index.chunk_length(0)
        wrong[0] = not kept
        if kept:
            self._count(0, Origin.RESUME)

    def _check_plan(self, cap_bytes: int | None) -> None:
        expected = self._supply.expected_fetch_bytes
        if cap_bytes is not None and expected > cap_bytes:
            raise BudgetError(
                f"{self._supply.pack_path}: {expected} bytes would have to be fetched, {cap_bytes} are allowed; "
                "nothing was fetched or written"
            )

    def _write(self, plan: TransferPlan) -> None:
        scratch = aligned_buffer(BLOCK_BYTES)
        with memoryview(scratch) as zeros:
            self._device.write(zeros, 0)
        scratch.close()
        self._device.sync()
        with (
            Fetcher(self._source, self._supply.pack_path, plan.spans, self._control) as fetcher,
            Sink(self._device, self._control) as sink,
        ):
            for chunk in plan.wrong_chunks():
                self._step()
                origin, data = self._supply.obtain(plan, chunk, fetcher, sink)
                self._count(chunk, origin)
                if chunk == 0:
                    first = bytes(self._index.chunk_length(0)) if data is None else bytes(data)
                    self._store.keep_chunk0(self._root, first)
                elif data is None:
                    sink.zero(chunk * self._index.header.chunk_bytes, self._index.chunk_length(chunk))
                else:
                    sink.put(chunk * self._index.header.chunk_bytes, data)
                self._report()
            sink.sync()  # ORDER: chunk 0 makes the slot look whole, so everything else is on storage first
            sink.put(0, self._supply.chunk0())
            sink.sync()

    def _step(self) -> None:
        never = threading.Event()
        self._control.check(f"{self._device.name}: writing")
        self._control.beat("assemble")
        while self._control.paused():
            self._control.check(f"{self._device.name}: writing")
            self._control.beat("assemble")
            self._clock.wait(never, _PAUSE_S)

    def _count(self, chunk: int, origin: Origin) -> None:
        length = self._index.chunk_length(chunk)
        self._by_source[origin] += length
        self._unreported += length

    def _report(self, *, force: bool = False) -> None:
        if force or self._unreported >= _REPORT_BYTES:
            self._unreported = 0
            self._progress(self._status())

    def _status(self) -> TransferProgress:
        counts = self._by_source
        skipped = counts[Origin.RESUME]
        return TransferProgress(
            counts=ByteCounts(
                total=self._component.image_bytes,
                written=sum(counts.values()) - skipped,
                skipped=skipped,
                fetched=self._supply.fetched_bytes,
                expected_fetch=self._supply.expected_fetch_bytes,
            ),
            by_source=SourceCounts(**{origin.value: value for origin, value in counts.items()}),
        )
