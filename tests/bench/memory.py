"""Peak memory of every updater process, what it writes and where, in whole installations by the real service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from tests.bench.device import Running, Seen, install
from tests.bench.image import BenchImage, large_image
from tests.bench.image_pairs import DIRECTORY, PairsMissingError, large_pair, pairs
from tests.bench.pair_releases import built
from tests.bench.result import RSS_BUDGET_BYTES, Budget, Result
from tests.bench.speed import Setting
from tests.bench.storage import disk_slot


def memory(setting: Setting, *, is_quick: bool) -> Result:
    """Service and trust child, 1 GiB and more than 4 GiB, by pack and by patch.

    Args:
        is_quick: Only the image of the other benchmarks, by pack.
    """
    result = Result(
        name="memory",
        title="Peak memory of every updater process, and what is written where",
        bars_unit="MiB",
    )
    for name, image, running in _cases(setting, result, is_quick=is_quick):
        with disk_slot(setting.work, image.size_bytes) as slot:
            seen = install(image, slot, setting.work, running=running, trace=True)
        if running is not None and not seen.by_source["patch"]:
            raise RuntimeError(f"{name}: nothing came from the patch: {seen.by_source}")
        _judge(result, name, seen)
        peaks = ", ".join(
            f"{who} {peak / 2**20:.1f} MiB" for who, peak in sorted(seen.peak_rss_bytes.items())
        )
        setting.say(f"  {name}: {peaks}; state {seen.state_peak_bytes / 2**20:.1f} MiB; {seen.seconds:.0f} s")
    result.commands = ["python -m tests.bench --only memory"]
    result.notes.append(
        "The whole service as a process, installing over its relay from a signed repository up to STAGED, read-back included; "
        "VmHWM of the service and of each child it starts. The trust child verifies the metadata with python-tuf."
    )
    return result


def _cases(
    setting: Setting, result: Result, *, is_quick: bool
) -> Iterator[tuple[str, BenchImage, Running | None]]:
    size = f"{setting.image.size_bytes / 2**30:.2g} GiB"
    yield f"{size} by pack", setting.image, None
    if is_quick:
        result.skipped.append("patches, and an image of more than 4 GiB: --quick")
        return
    try:
        pair = built(pairs(DIRECTORY)[0])
        image = BenchImage(image=pair.pair.new, build=pair.new, what="Debian root image")
        yield "1 GiB by patch", image, Running(image=pair.pair.old, build=pair.old)
        large = large_image()
        size = f"{large.size_bytes / 2**30:.2g} GiB"
        yield f"{size} by pack", large, None
        old = large_pair(DIRECTORY).old
        yield f"{size} by patch", large, Running(image=old, build=DIRECTORY / "release.large.old")
    except PairsMissingError as err:
        result.skipped.append(f"patches, and an image of more than 4 GiB: {err}")


def _judge(result: Result, name: str, seen: Seen) -> None:
    result.pairs.append({"name": name, **asdict(seen)})
    for who, peak in sorted(seen.peak_rss_bytes.items()):
        result.bars[f"{name}, {who}"] = round(peak / 2**20, 1)
        result.budgets.append(
            Budget(
                what=f"peak RSS of the {who}, {name}", value=peak, bound=RSS_BUDGET_BYTES, is_minimum=False, unit="bytes"
            )
        )  # fmt: skip
    result.budgets.append(
        Budget(
            what=f"state directory at its largest, {name}", value=seen.state_peak_bytes,
            bound=seen.state_bound_bytes, is_minimum=False, unit="bytes",
        )
    )  # fmt: skip
    if not seen.is_traced:
        result.skipped.append(f"files written elsewhere, {name}: strace is not installed")
        return
    result.budgets.append(
        Budget(
            what=f"files written outside slot and state, {name}", value=len(seen.written_outside), bound=0,
            is_minimum=False, unit="files",
        )
    )  # fmt: skip
    if seen.written_outside:
        result.notes.append(f"{name}, written outside: {', '.join(seen.written_outside[:10])}")
