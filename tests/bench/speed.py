"""Full installs and read-back in alternation with dd, rauc and swupdate.

Each round runs every competitor once on the same slot, in another order each time, after the slot was filled with other bytes
and everything was synced. Ratios are taken within a round: the machine's speed drifts, a ratio of neighbors does not.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.bench import peers
from tests.bench.image import BenchImage
from tests.bench.peers import Peer
from tests.bench.result import RSS_BUDGET_BYTES, Budget, Result, spread
from tests.bench.run import act
from tests.bench.storage import Slot, disk_slot, is_root, memory_slot, slow_disk_slot

OURS: Final = "tidewaiter"
SLOW_DISK_MB_PER_S: Final = 300
"""Up to this speed of dd the disk is the limit, and the bound against dd binds."""
FAST_READ_MB_PER_S: Final = 600
"""From this speed of dd on, reading waits for the processor and not for the medium. No eMMC reads half of it."""
RAW_COPY: Final = (
    "rauc copies uncompressed bytes and hashes nothing, which no installer that verifies can meet where only the processor "
    "counts (decision 0030)"
)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all speed benchmarks share."""

    image: BenchImage
    work: Path
    runs: int
    say: Say


def install_on_disk(setting: Setting) -> Result:
    """Against dd with fsync, and against rauc."""
    result = Result(name="install-disk", title="Full install from a pack onto a disk-backed slot")
    with disk_slot(setting.work, setting.image.size_bytes) as slot:
        _on_disk(setting, slot, result)
    return result


def install_on_slow_disk(setting: Setting) -> Result:
    """The same on a disk as slow as those of devices, so that the bounds bind whatever this machine has."""
    result = Result(name="install-slow-disk", title="Full install from a pack onto a slot as slow as an eMMC")
    if not is_root():
        result.skipped.append("everything: needs root for a loop device")
        return result
    try:
        with slow_disk_slot(setting.work, setting.image.size_bytes) as slot:
            _on_disk(setting, slot, result)
    except OSError as err:
        result.skipped.append(f"everything: {err}")
    return result


def _on_disk(setting: Setting, slot: Slot, result: Result) -> None:
    rivals = [peers.dd_write(setting.image.image, slot), *_rauc(setting, slot, result)]
    _compete(setting, slot, "install", rivals, result)
    dd_mb_per_s = result.bars["dd"]
    reason = ""
    if dd_mb_per_s >= SLOW_DISK_MB_PER_S:
        reason = (
            f"dd writes {dd_mb_per_s:.0f} MB/s here, the bound is for disks below {SLOW_DISK_MB_PER_S} MB/s"
        )
    _bound(result, "dd", 0.9, not_binding=reason)
    _bound(result, "rauc write-slot", 1.0, not_binding=reason)


def install_in_memory(setting: Setting) -> Result:
    """Against swupdate and rauc where no disk limits anybody."""
    result = Result(
        name="install-memory", title="Full install onto a memory-backed slot: the processor is the limit"
    )
    if not is_root():
        result.skipped.append("everything: needs root for a loop device")
        return result
    try:
        with memory_slot(setting.image.size_bytes) as slot:
            rivals = [peers.dd_write(setting.image.image, slot), *_rauc(setting, slot, result)]
            if absent := peers.missing("swupdate", "openssl", "zstd"):
                result.skipped.append(f"swupdate: {', '.join(absent)} not found; tools/debian_packages.sh")
            else:
                rivals.append(peers.swupdate(setting.image.compressed(), slot, setting.work / "swupdate"))
            _compete(setting, slot, "install", rivals, result)
            _bound(result, "swupdate", 1.0)
            _bound(result, "rauc write-slot", 1.0, not_binding=RAW_COPY)
    except OSError as err:
        result.skipped.append(f"everything: {err}")
    return result


def read_back(setting: Setting) -> Result:
    """Reading with hashing against dd with direct I/O."""
    result = Result(name="read-back", title="Read-back of the whole slot from the medium, with hashing")
    with disk_slot(setting.work, setting.image.size_bytes) as slot:
        _read_back(setting, slot, result)
    return result


def read_back_slowly(setting: Setting) -> Result:
    """The same from a disk as slow as those of devices."""
    result = Result(name="read-back-slow-disk", title="Read-back from a slot as slow as an eMMC")
    if not is_root():
        result.skipped.append("everything: needs root for a loop device")
        return result
    try:
        with slow_disk_slot(setting.work, setting.image.size_bytes) as slot:
            _read_back(setting, slot, result)
    except OSError as err:
        result.skipped.append(f"everything: {err}")
    return result


def _read_back(setting: Setting, slot: Slot, result: Result) -> None:
    act(peers.dd_write(setting.image.image, slot).command)
    _compete(setting, slot, "read-back", [peers.dd_read(slot)], result)
    dd_mb_per_s = result.bars["dd"]
    reason = ""
    if dd_mb_per_s >= FAST_READ_MB_PER_S:
        reason = (
            f"dd reads {dd_mb_per_s:.0f} MB/s here without looking at a byte: SHA-256 and the copies take both processors; the "
            f"bound is for media below {FAST_READ_MB_PER_S} MB/s (decision 0030)"
        )
    _bound(result, "dd", 0.9, not_binding=reason)


def _rauc(setting: Setting, slot: Slot, result: Result) -> list[Peer]:
    if not is_root():
        result.skipped.append("rauc: needs root for a loop device")
    elif peers.missing("rauc"):
        result.skipped.append("rauc: not found; tools/debian_packages.sh")
    else:
        return [peers.rauc(setting.image.image, slot, setting.work / "rauc")]
    return []


def _bound(result: Result, peer: str, bound: float, *, not_binding: str = "") -> None:
    """Hold the speed against a peer's to a bound, if the peer was there."""
    what = "read-back" if result.name.startswith("read-back") else "the install"
    if f"speed_to_{peer}" in result.medians:
        result.budgets.append(
            Budget(
                what=f"speed of {what}, of {peer}", value=result.medians[f"speed_to_{peer}"]["median"],
                bound=bound, is_minimum=True, not_binding=not_binding,
            )
        )  # fmt: skip


def _compete(setting: Setting, slot: Slot, what: str, rivals: Sequence[Peer], result: Result) -> None:
    ours: list[dict[str, Any]] = []
    for number in range(setting.runs):
        # Another order each time: whoever comes second finds the caches of the first.
        turns: list[Peer | None] = [None, *rivals]
        turns = turns[number % len(turns) :] + turns[: number % len(turns)]
        done: dict[str, Any] = {}
        for turn in turns:
            if what == "install":
                slot.soil()
            if turn is None:
                done[OURS] = _ours(what, slot, setting)
                ours.append(done[OURS])
            else:
                ran = act(turn.command, environment=turn.environment)
                done[turn.name] = {"wall_seconds": ran.wall_s, "processor_seconds": ran.processor_s}
        result.pairs.append(done)
        setting.say(f"  run {number + 1} of {setting.runs}: " + _line(done, slot.size_bytes))
    _conclude(result, rivals, ours, slot, setting)
    result.commands.append(f"python -m tests.bench.worker {what} SLOT RELEASE STATE")
    result.commands += [peer.as_text(_names(slot, setting)) for peer in rivals]


def _ours(what: str, slot: Slot, setting: Setting) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="state-", dir=setting.work) as state:
        ran = act(worker(what, slot.path, setting.image.build, Path(state)))
    said: dict[str, Any] = json.loads(ran.output)
    return {**said, "wall_seconds": ran.wall_s, "processor_seconds": ran.processor_s}


def worker(what: str, slot: Path, build: Path, state: Path) -> list[str]:
    """The command for one act of the updater."""
    return [sys.executable, "-m", "tests.bench.worker", what, str(slot), str(build), str(state)]


def _conclude(
    result: Result, rivals: Sequence[Peer], ours: Sequence[dict[str, Any]], slot: Slot, setting: Setting
) -> None:
    size = slot.size_bytes
    # Ours counts from the plan to the return of the last sync (update-engine.md 17.3): on a device the service runs already.
    # The peers are whole processes; what starting an interpreter adds to ours is the bar "whole process".
    result.bars[OURS] = _mb_per_s(size, [one["seconds"] for one in ours])
    for peer in rivals:
        theirs = [pair[peer.name]["wall_seconds"] for pair in result.pairs]
        result.medians[f"speed_to_{peer.name}"] = spread(
            [their / pair[OURS]["seconds"] for their, pair in zip(theirs, result.pairs, strict=True)]
        )
        result.medians[f"processor_seconds_of_{peer.name}"] = spread(
            [pair[peer.name]["processor_seconds"] for pair in result.pairs]
        )
        result.bars[peer.name] = _mb_per_s(size, theirs)
        result.peers[peer.name] = peer.version
    result.bars[f"{OURS}, whole process"] = _mb_per_s(size, [one["wall_seconds"] for one in ours])
    result.medians["processor_seconds_of_tidewaiter"] = spread([one["processor_seconds"] for one in ours])
    _stages(result, ours)
    peak = max(one["peak_rss_bytes"] for one in ours)
    result.budgets.append(
        Budget(what="peak RSS", value=peak, bound=RSS_BUDGET_BYTES, is_minimum=False, unit="bytes")
    )
    result.notes.append(
        f"Image: {setting.image.what}, {size >> 20} MiB; slot: {slot.what}; {setting.runs} rounds."
    )
    result.figures = {"image_bytes": size, "pack_bytes": setting.image.release.slot.pack.length}


def _stages(result: Result, ours: Sequence[dict[str, Any]]) -> None:
    works = ours[0]["work_seconds"]
    seconds = {work: spread([one["work_seconds"][work] for one in ours])["median"] for work in works}
    total = sum(seconds.values())
    if total:
        result.stage_seconds = seconds
        result.stage_shares = {work: round(spent / total, 3) for work, spent in seconds.items()}


def _names(slot: Slot, setting: Setting) -> dict[str, str]:
    # The longest first, so that no name replaces a part of another.
    places = {
        str(slot.path): "SLOT",
        str(setting.image.image): "IMAGE",
        str(setting.work / "rauc"): "RAUC",
        str(setting.work / "swupdate"): "SWUPDATE",
    }
    return dict(sorted(places.items(), key=lambda place: -len(place[0])))


def _mb_per_s(size_bytes: int, seconds: Sequence[float]) -> float:
    return round(size_bytes / spread(seconds)["median"] / 1e6, 1)


def _line(done: dict[str, Any], size_bytes: int) -> str:
    return ", ".join(
        f"{name} {size_bytes / one.get('seconds', one['wall_seconds']) / 1e6:.0f} MB/s"
        for name, one in done.items()
    )
