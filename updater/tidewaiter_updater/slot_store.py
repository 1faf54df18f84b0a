"""The slots of this device: port SlotStore over `slots`, `sources` and the kept indexes.

Each call opens the device anew and closes it: a slot is never held open while nothing is done with it, so that a mounted
one is noticed, and a stick that is pulled leaves no descriptor behind.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tidewaiter_core.clock import Clock
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.index import IndexReader
from tidewaiter_core.payload.release import Release

from tidewaiter_updater import pipeline, slots
from tidewaiter_updater.device import SYSTEM_MEDIA, Media, SlotDevice, label_in_name
from tidewaiter_updater.errors import SlotError
from tidewaiter_updater.index_store import HashTable, IndexStore
from tidewaiter_updater.model import SlotRecord
from tidewaiter_updater.ports import Control, Notify, Report
from tidewaiter_updater.scan import chunk_digests
from tidewaiter_updater.slot_write import Given, SlotWrite, patch_from
from tidewaiter_updater.sources import Source
from tidewaiter_updater.stage import Step


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
        component, records = release.slot, self._records()
        target, active = records.get(slot), records.get(slot.other)
        if component.image_root in {record.root for record in (target, active) if record is not None}:
            return 0
        patch = patch_from(component, active.root if active else None)
        return patch.length if patch is not None else component.index.length + component.pack.length

    def write(
        self,
        slot: SlotName,
        release: Release,
        source: str,
        *,
        resume: bool,
        cap_bytes: int | None,
        report: Report,
        notify: Notify,
        control: Control,
    ) -> None:
        component, records = release.slot, self._records()
        target, active = records.get(slot), records.get(slot.other)
        self._store.keep_only(
            roots={component.image_root, *(record.root for record in records.values())},
            parts={component.index.sha256, *(patch.head_sha256 for patch in component.patches)},
        )
        with ExitStack() as stack:
            active_table = self._table(active, stack)
            given = Given(
                component=component,
                target=stack.enter_context(self._open(slot, release, writable=True)),
                active=stack.enter_context(self._reader(slot.other)) if active_table else None,
                active_table=active_table,
                promised=self._table(target, stack),
                source=self._source_for(source, control),
                resume=resume,
                cap_bytes=cap_bytes,
            )
            write = SlotWrite(
                given,
                store=self._store,
                clock=self._clock,
                control=self._watch(control),
                report=report,
                notify=notify,
            )
            write.run()

    def read_back(
        self, slot: SlotName, release: Release, source: str, *, report: Report, control: Control
    ) -> int:
        component, watch = release.slot, self._watch(control)
        with ExitStack() as stack:
            table: HashTable | IndexReader | None = self._store.hashes(component.image_root)
            if isinstance(table, HashTable):
                stack.callback(table.close)
            else:
                repository = self._source_for(source, control)
                step = Step("reading back", watch, self._clock)
                table = stack.enter_context(self._store.opened(component.index, repository, step=step))
            return len(slots.read_back(self._open(slot, release, writable=True), table, report, watch))

    def holds(self, slot: SlotName, release: Release, *, control: Control, beats: bool = True) -> bool:
        component, watch = release.slot, self._watch(control)
        root = hashlib.sha256()
        with self._reader(slot) as device:
            if device.size_bytes < component.image_bytes:
                return False
            digests = chunk_digests(
                device,
                image_bytes=component.image_bytes,
                chunk_bytes=component.chunk_bytes,
                control=watch if beats else replace(watch, beat=lambda stage: None),
            )
            for chunk, digest in digests:
                if digest is None:  # not the same as "holds something else": nothing is decided on it
                    raise SlotError(
                        f"{device.name}: chunk {chunk} cannot be read; whether it holds {component.name} is not known",
                        code="slot.io",
                        retryable=True,
                    )
                root.update(digest)
        return root.hexdigest() == component.image_root

    def _table(self, record: SlotRecord | None, stack: ExitStack) -> HashTable | None:
        """The kept hash table of what a slot is recorded to hold."""
        table = self._store.hashes(record.root) if record is not None else None
        if table is not None:
            stack.callback(table.close)
        return table

    def _reader(self, slot: SlotName) -> SlotDevice:
        return SlotDevice.open(self._paths[slot], writable=False, media=self._media)

    def _open(self, slot: SlotName, release: Release, *, writable: bool) -> SlotDevice:
        return SlotDevice.open(
            self._paths[slot],
            image_bytes=release.slot.image_bytes,
            booted=self._paths[slot.other],
            label=label_in_name(self._paths[slot]),
            writable=writable,
            media=self._media,
        )

    def _watch(self, control: Control) -> pipeline.Control:
        return pipeline.Control(paused=control.paused, cancelled=control.cancelled, beat=self._beat)
