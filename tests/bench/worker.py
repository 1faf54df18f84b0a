"""One measured act of the updater in a process of its own, so that its peak memory is the act's and nothing else's.

`python -m tests.bench.worker install|read-back SLOT BUILD STATE` prints one JSON line:
`{"seconds": ..., "bytes": ..., "peak_rss_bytes": ...}`; seconds run from the first slot write to the return of the last sync.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tidewaiter_core.clock import SystemClock
from tidewaiter_core.payload import Release
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.pipeline import Control
from tidewaiter_updater.slots import SlotDevice, install, read_back


class BuildDirectory:
    """A `Source` over the files that `tidewaiter-release build` wrote; hash prefixes of the names are dropped."""

    cost_class = "local"

    def __init__(self, build: Path) -> None:
        self._build = build
        self._received = 0

    @property
    def received_bytes(self) -> int:
        return self._received

    def metadata(self, path: str, limit: int) -> Iterator[bytes]:
        yield from self.span(path, 0, limit)

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        name = path.rsplit("/", 1)[-1].split(".", 1)[1]
        fd = os.open(self._build / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while length > 0 and (data := os.pread(fd, min(length, 256 << 10), offset)):
                offset, length = offset + len(data), length - len(data)
                self._received += len(data)
                yield data
        finally:
            os.close(fd)


def peak_rss_bytes() -> int:
    """VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def main(argv: list[str]) -> int:
    act, slot, build, state = argv[0], Path(argv[1]), Path(argv[2]), Path(argv[3])
    release = Release.parse((build / "release.json").read_bytes())
    source = BuildDirectory(build)
    store = IndexStore(state)
    with store.opened(release.slot.index, source) as index:
        started = time.monotonic()
        if act == "install":
            with SlotDevice.open(slot) as device:
                install(device, release.slot, index, source, store=store, clock=SystemClock(), resume=False)
        else:
            bad = read_back(SlotDevice.open(slot), index, lambda progress: None, Control())
            if bad:
                raise RuntimeError(f"{slot}: {len(bad)} chunks do not read back")
        seconds = time.monotonic() - started
    result = {"seconds": seconds, "bytes": release.slot.image_bytes, "peak_rss_bytes": peak_rss_bytes()}
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
