"""Fills a slot with an image, chunk by chunk, so that it can be stopped at any byte and go on later.

Invariants:
1. Stored bytes are hashed before they are decoded, decoded bytes before they are written (I1).
2. If any chunk differs, block 0 of the slot is zeroed and synced before any other write, and chunk 0 is written only after
   all others are synced: whatever a boot script thinks, a half-written slot has no superblock (belt and braces for I2).
3. No byte count is trusted on resume: each chunk is read and hashed, and skipped only if it is right.
4. A chunk that is right in place is not written.
5. Memory does not grow with the image beyond the bounds of `pipeline` and about twenty bytes per chunk.

Where the chunks come from is the business of a `Supply`; `install` brings one that fetches from the pack.

Source: update-engine.md sections 6 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from tidewaiter_core.clock import Clock
from tidewaiter_core.payload.index import IndexReader, require_match
from tidewaiter_core.payload.release import SlotComponent

from tidewaiter_updater.chunk_supply import ChunkSupply
from tidewaiter_updater.device import BLOCK_BYTES, SlotDevice, aligned_buffer, identity
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import ByteCounts, SourceCounts, TransferProgress
from tidewaiter_updater.pipeline import Control, Sink
from tidewaiter_updater.plan import ChunkHashes, Origin
from tidewaiter_updater.readback import Found, IndexTable, matches, read_back, survey
from tidewaiter_updater.sources import Source
from tidewaiter_updater.stage import Step
from tidewaiter_updater.supply import ActiveSlot, ChunkReader, Meter, Supply, Wrong

__all__ = [
    "ActiveSlot",
    "Control",
    "InstallResult",
    "SlotDevice",
    "fill",
    "identity",
    "install",
    "matches",
    "read_back",
    "verify",
]

_REPORT_BYTES: Final = 1024 * 1024


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
    began_bytes: int | None = None,
) -> InstallResult:
    """Make the slot hold the image, by pack; safe to call again after any interruption.

    On return everything is synced, but not yet read back (`read_back`, `verify`).

    Args:
        promised: Recorded hash table of what the target held; only those of its chunks that equal the new image's are
            read, so that a fresh install does not read what it is about to overwrite.
        resume: Hash the whole target first. None: exactly if the store remembers an unfinished write of this image.
        only: Rewrite just these chunks (after a read-back).
        cap_bytes: More than this is not fetched.
        began_bytes: `source.received_bytes` when this attempt began, if it began before this call.

    Raises:
        BudgetError: The plan needs more than `cap_bytes` (nothing was written), or far more arrived than planned.
        SourceError: The pack could not be fetched, or twice had other bytes than the index says.
        PayloadError: Signed but unsound: an entry of the index, or a unit that decodes to something else.
        SlotError: The device refused a read, a write or a sync; or the image does not fit.
        InstallCancelledError: `control` said so.
        StateWriteError: The state directory is full.
    """
    require_match(index.header, component)
    control = control or Control()
    supply = ChunkSupply(
        device,
        component,
        index,
        source,
        store=store,
        active=active,
        promised=promised if only is None else None,
        meter=Meter(source, began_bytes=began_bytes, cap_bytes=cap_bytes),
        step=Step(f"{device.name}: writing", control, clock),
        times=control.times,
    )
    return fill(
        device,
        component,
        IndexTable(index),
        supply,
        store=store,
        clock=clock,
        control=control,
        progress=progress,
        promised=promised,
        resume=resume,
        only=only,
    )


def fill(
    device: SlotDevice,
    component: SlotComponent,
    table: ChunkHashes,
    supply: Supply,
    *,
    store: IndexStore,
    clock: Clock,
    control: Control | None = None,
    progress: Callable[[TransferProgress], None] = lambda report: None,
    promised: ChunkHashes | None = None,
    resume: bool | None = None,
    only: Sequence[int] | None = None,
) -> InstallResult:
    """Make the slot hold the image whose chunk hashes are `table`, from any supply; arguments and errors as for `install`."""
    if device.size_bytes < component.image_bytes:
        raise SlotError(
            f"{device.name}: the slot has {device.size_bytes} bytes, the image needs {component.image_bytes}; not written",
            code="slot.size",
        )
    if resume is None:
        resume = store.is_writing(device.name, component.image_root)
    transfer = _Transfer(device, component, table, supply, store, clock, control or Control(), progress)
    return transfer.run(promised=promised, resume=resume, only=only)


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
    """One pass over a slot. The caller's thread assembles."""

    def __init__(
        self,
        device: SlotDevice,
        component: SlotComponent,
        table: ChunkHashes,
        supply: Supply,
        store: IndexStore,
        clock: Clock,
        control: Control,
        progress: Callable[[TransferProgress], None],
    ) -> None:
        self._device = device
        self._image_bytes = component.image_bytes
        self._root = component.image_root
        self._table = table
        self._supply = supply
        self._store = store
        self._control = control
        self._step = Step(f"{device.name}: writing", control, clock)
        self._progress = progress
        self._reader = ChunkReader(table)
        self._by_source = dict.fromkeys(Origin, 0)
        self._unreported = 0

    def run(self, *, promised: ChunkHashes | None, resume: bool, only: Sequence[int] | None) -> InstallResult:
        wrong = self._survey(promised, resume=resume) if only is None else self._only(only)
        if wrong.chunks.find(1) >= 0:
            self._secure_chunk0(wrong.chunks)
            self._supply.plan(wrong)
            self._supply.meter.require_cap(self._supply.what)
            self._store.mark_writing(self._device.name, self._root)
            self._write(wrong.chunks)
        self._store.keep_hashes(self._table)
        self._store.mark_complete(self._root)
        self._report(force=True)
        report = self._status()
        return InstallResult(
            counts=report.counts, by_source=report.by_source, active_differs=self._supply.active_differs
        )

    def _only(self, only: Sequence[int]) -> Wrong:
        wrong = bytearray(self._table.chunk_count)
        for chunk in only:
            wrong[chunk] = 1
        rewritten = sum(self._reader.length(chunk) for chunk in only)
        self._by_source[Origin.RESUME] = self._image_bytes - rewritten
        return Wrong(chunks=wrong, unmoved=bytearray(len(wrong)))

    def _survey(self, promised: ChunkHashes | None, *, resume: bool) -> Wrong:
        wrong = bytearray(b"\1") * self._table.chunk_count
        # Behind the end of the new image nothing is overwritten.
        behind = max(0, promised.chunk_count - len(wrong)) if promised is not None else 0
        unmoved = bytearray(len(wrong)) + b"\1" * behind
        for chunk, found in survey(self._device, self._table, promised, self._control, whole=resume):
            if found is Found.UNMOVED:
                unmoved[chunk] = 1
                continue
            wrong[chunk] = 0
            self._count(chunk, Origin.RESUME)
            self._report()
        return Wrong(chunks=wrong, unmoved=unmoved)

    def _secure_chunk0(self, wrong: bytearray) -> None:
        """Keep chunk 0 aside if it is there already: its block is zeroed next, and it is written last."""
        digest = self._table.chunk_hash(0)
        if self._store.chunk0(self._root, digest) is not None:
            kept = True
        else:
            data = None if wrong[0] else self._reader.read_right(self._device, 0, 0)
            kept = data is not None
            if data is not None:
                self._store.keep_chunk0(self._root, data)
        if not wrong[0]:
            self._by_source[Origin.RESUME] -= self._reader.length(0)
        wrong[0] = not kept
        if kept:
            self._count(0, Origin.RESUME)

    def _write(self, wrong: bytearray) -> None:
        scratch = aligned_buffer(BLOCK_BYTES)
        with memoryview(scratch) as zeros:
            self._device.write(zeros, 0)
        scratch.close()
        self._device.sync()
        with self._supply.fetching(self._control), Sink(self._device, self._control) as sink:
            chunk = wrong.find(1)
            while chunk >= 0:
                self._step()
                origin, data, following = self._supply.obtain(chunk, sink)
                self._count(chunk, origin)
                if chunk == 0:
                    first = bytes(self._reader.length(0)) if data is None else bytes(data)
                    self._store.keep_chunk0(self._root, first)
                elif data is None:
                    sink.zero(chunk * self._table.chunk_bytes, self._reader.length(chunk))
                else:
                    sink.put(chunk * self._table.chunk_bytes, data)
                for next_chunk, content in enumerate(following, chunk + 1):
                    sink.put(next_chunk * self._table.chunk_bytes, content)
                self._add(origin, sum(map(len, following)))
                self._report()
                chunk = wrong.find(1, chunk + 1 + len(following))
            sink.sync()  # ORDER: chunk 0 makes the slot look whole, so everything else is on storage first
            sink.put(0, self._supply.chunk0())
            sink.sync()

    def _count(self, chunk: int, origin: Origin) -> None:
        self._add(origin, self._reader.length(chunk))

    def _add(self, origin: Origin, length: int) -> None:
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
                total=self._image_bytes,
                written=sum(counts.values()) - skipped,
                skipped=skipped,
                fetched=self._supply.meter.fetched_bytes,
                expected_fetch=self._supply.meter.expected_bytes,
            ),
            by_source=SourceCounts(**{origin.value: value for origin, value in counts.items()}),
        )
