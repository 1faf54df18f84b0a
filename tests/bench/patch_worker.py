"""A built release goes into a slot file, by patch, by pack with chunk reuse, or by pack alone, in a process of its own.

`python -m tests.bench.patch_worker patch|reuse|pack BUILD OLD_INDEX ACTIVE TARGET STATE` prints one JSON line:
`{"seconds": ..., "processor_seconds": ..., "fetched": ..., "peak_rss_bytes": ..., "by_source": {...}}`; from the first request to
the last sync.
"""

import json
import os
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tidewaiter_core import heap
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload import IndexReader, Release
from tidewaiter_updater.health import NeverControl
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import SlotRecord, TransferProgress
from tidewaiter_updater.readback import IndexTable
from tidewaiter_updater.slot_store import DeviceSlots

from tests.bench.worker import BuildDirectory, peak_rss_bytes


def main(argv: list[str]) -> int:
    heap.return_large_blocks()  # as tidewaiter-updater does
    way = argv[0]
    build, old_index, active, target, state = map(Path, argv[1:])
    release = Release.parse((build / "release.json").read_bytes())
    if way != "patch":
        release = replace(release, components=(replace(release.slot, patches=()),))
    source, store = BuildDirectory(build), IndexStore(state)
    records: dict[SlotName, SlotRecord] = {}
    if way != "pack":
        records[SlotName.A] = recorded(old_index, store)
    slots = DeviceSlots(
        {SlotName.A: active, SlotName.B: target},
        store=store,
        records=lambda: records,
        source_for=lambda name, control: source,
        clock=SystemClock(),
        beat=lambda stage: None,
    )
    last: list[TransferProgress] = []
    notices: list[Any] = []
    started, used = time.monotonic(), time.process_time()
    slots.write(
        SlotName.B,
        release,
        "relay",
        resume=False,
        cap_bytes=None,
        report=lambda report: last.__setitem__(slice(None), [report]),
        notify=notices.append,
        control=NeverControl(),
    )
    seconds, processor_seconds = time.monotonic() - started, time.process_time() - used
    if notices:
        raise RuntimeError(f"the {way} did not go straight: {notices}")
    result = {
        "seconds": seconds,
        "processor_seconds": processor_seconds,
        "fetched": source.received_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "by_source": asdict(last[0].by_source),
    }
    print(json.dumps(result))
    return 0


def recorded(old_index: Path, store: IndexStore) -> SlotRecord:
    """The running slot's record, as the installation of the old release left it."""
    fd = os.open(old_index, os.O_RDONLY | os.O_CLOEXEC)
    try:
        index = IndexReader(lambda offset, length: os.pread(fd, length, offset), os.fstat(fd).st_size)
        store.keep_hashes(IndexTable(index))
        root = index.header.image_root
    finally:
        os.close(fd)
    return SlotRecord(digest=root, root=root, sequence=1, epoch=0, version="1")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
