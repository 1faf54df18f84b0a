"""The slots of this device: port SlotStore over `slots`, `sources` and the kept indexes.

Each call opens the device anew and closes it: a slot is never held open while nothing is done with it, so that a mounted
one is noticed, and a stick that is pulled leaves no descriptor behind.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from tidewaiter_core.clock import Clock
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.release import Release

from tidewaiter_updater import pipeline, slots
from tidewaiter_updater.device import SYSTEM_MEDIA, Media, SlotDevice, aligned_buffer
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import SlotRecord
from tidewaiter_updater.ports import Control, Report
from tidewaiter_updater.sources import Source

logger = logging.getLogger(__name__)


class DeviceSlots:
    """Slots that are block devices or files."""

    def __init__(
        self,
        paths: Mapping[SlotName, Path],
        *,
        store: IndexStore,
        records: Callable[[], Mapping[SlotName, SlotRecord]],
        source_for: Callable[[str, Control], Source],
        clock: Clock,
        beat: Callable[[str], None],
        media: Media = SYSTEM_MEDIA,
    ) -> None:
        """
        Args:
            records: What each slot was last proven to hold.
            source_for: The repository behind a source name, whose waits end when the control says so.
            beat: Called with the stage that is alive.
            media: Where the paths lead to.
        """
        self._paths = paths
        self._store = store
        self._records = records
        self._source_for = source_for
        self._clock = clock
        self._beat = beat
        self._media = media

    def check(self, slot: SlotName, release: Release) -> None:
        self._open(slot, release, writable=True).close()

    def expected_fetch_bytes(self, slot: SlotName, release: Release, source: str) -> int:
        return release.slot.pack.length + release.slot.index.length

    def write(
        self,
        slot: SlotName,
        release: Release,
        source: str,
        *,
        resume: bool,
        cap_bytes: int | None,
        report: Report,
        control: Control,
    ) -> None:
        component, watch = release.slot, self._watch(control)
        records = self._records()
        target, active = records.get(slot), records.get(slot.other)
        roots = {str(component.image_root), *(str(record.root) for record in records.values())}
        self._store.keep_only(roots=roots, indexes={str(component.index.sha256)})
        repository = self._source_for(source, control)
        with ExitStack() as stack:
            index = stack.enter_context(
                self._store.opened(component.index, repository, step=lambda: self._step(watch))
            )
            promised = self._store.hashes(target.root) if target else None
            table = self._store.hashes(active.root) if active else None
            copy_from = None
            if table is not None:
                stack.callback(table.close)
                reader = stack.enter_context(self._reader(slot.other))
                copy_from = slots.ActiveSlot(device=reader, table=table)
            if promised is not None:
                stack.callback(promised.close)
            result = slots.install(
                stack.enter_context(self._open(slot, release, writable=True)),
                component,
                index,
                repository,
                store=self._store,
                clock=self._clock,
                control=watch,
                progress=report,
                promised=promised,
                active=copy_from,
                resume=True if resume else None,
                cap_bytes=cap_bytes,
            )
        if result.active_differs:
            logger.error(
                "slot.active-differs: %d chunks of slot %s are not what was installed; they were fetched instead",
                result.active_differs,
                slot.other,
            )

    def read_back(self, slot: SlotName, release: Release, *, report: Report, control: Control) -> int:
        watch, source = self._watch(control), self._source_for("relay", control)
        with self._store.opened(release.slot.index, source, step=lambda: self._step(watch)) as index:
            return len(slots.read_back(self._open(slot, release, writable=True), index, report, watch))

    def holds(self, slot: SlotName, release: Release, *, control: Control) -> bool:
        component, watch = release.slot, self._watch(control)
        root = hashlib.sha256()
        with self._reader(slot) as device:
            if device.size_bytes < component.image_bytes:
                return False
            buffer = aligned_buffer(component.chunk_bytes)
            for offset in range(0, component.image_bytes, component.chunk_bytes):
                self._step(watch)
                length = min(component.chunk_bytes, component.image_bytes - offset)
                with memoryview(buffer) as view, view[:length] as part:
                    device.read_into(part, offset)
                    root.update(hashlib.sha256(part).digest())
        return root.hexdigest() == component.image_root

    def _reader(self, slot: SlotName) -> SlotDevice:
        return SlotDevice.open(self._paths[slot], writable=False, media=self._media)

    def _open(self, slot: SlotName, release: Release, *, writable: bool) -> SlotDevice:
        return SlotDevice.open(
            self._paths[slot],
            image_bytes=release.slot.image_bytes,
            forbidden=self._media.identity(self._paths[slot.other]),
            writable=writable,
            media=self._media,
        )

    def _watch(self, control: Control) -> pipeline.Control:
        return pipeline.Control(paused=control.paused, cancelled=control.cancelled, beat=self._beat)

    def _step(self, watch: pipeline.Control) -> None:
        watch.check("reading")
        self._beat("assemble")
