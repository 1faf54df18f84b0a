"""One measured act of the updater in a process of its own, so that its peak memory is the act's and nothing else's.

`python -m tests.bench.worker install|read-back|kill SLOT BUILD STATE` prints one JSON line: `{"seconds": ..., "bytes": ...,
"processor_seconds": ..., "peak_rss_bytes": ..., "work_seconds": {...}, "fetched": ..., "written": ...}`. Seconds run from the
call that makes the plan to the return of the last sync. `kill` is an installation that ends itself by SIGKILL when 80 % of the
pack has arrived, after it printed what it had done so far.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tidewaiter_core import heap
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.payload import Release
from tidewaiter_updater.index_store import IndexStore
from tidewaiter_updater.model import ByteCounts, TransferProgress
from tidewaiter_updater.pipeline import Control
from tidewaiter_updater.slots import SlotDevice, install, read_back

KILLED_AT = 0.8


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


class _Dying(BuildDirectory):
    """Ends the process without a word when enough of the pack has arrived."""

    def __init__(self, build: Path, limit_bytes: int) -> None:
        super().__init__(build)
        self._limit_bytes = limit_bytes
        self.last = TransferProgress(counts=ByteCounts())

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        for data in super().span(path, offset, length):
            if self.received_bytes >= self._limit_bytes:
                done = {"fetched": self.received_bytes, "written": self.last.counts.written}
                os.write(1, json.dumps(done).encode() + b"\n")
                os.kill(os.getpid(), signal.SIGKILL)
            yield data


def main(argv: list[str]) -> int:
    heap.return_large_blocks()  # as tidewaiter-updater does
    act, slot, build, state = argv[0], Path(argv[1]), Path(argv[2]), Path(argv[3])
    release = Release.parse((build / "release.json").read_bytes())
    dying = _Dying(build, int(release.slot.pack.length * KILLED_AT))
    source = dying if act == "kill" else BuildDirectory(build)
    store, control = IndexStore(state), Control()
    last = TransferProgress(counts=ByteCounts())

    def report(progress: TransferProgress) -> None:
        nonlocal last
        last = dying.last = progress

    with store.opened(release.slot.index, source) as index:
        began_s, used_s = time.monotonic(), time.process_time()
        if act == "read-back":
            bad = read_back(SlotDevice.open(slot), index, report, control)
            if bad:
                raise RuntimeError(f"{slot}: {len(bad)} chunks do not read back")
        else:
            with SlotDevice.open(slot) as device:
                install(
                    device, release.slot, index, source,
                    store=store, clock=SystemClock(), control=control, progress=report,
                )  # fmt: skip
        seconds, processor_s = time.monotonic() - began_s, time.process_time() - used_s
    result = {
        "seconds": seconds,
        "processor_seconds": processor_s,
        "bytes": release.slot.image_bytes,
        "peak_rss_bytes": peak_rss_bytes(),
        "work_seconds": {work.value: round(spent, 4) for work, spent in control.times.seconds().items()},
        "fetched": source.received_bytes,
        "written": last.counts.written,
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
