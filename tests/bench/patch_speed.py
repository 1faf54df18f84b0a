"""A patch applied through the product's install path against the full install of the same image from its pack.

Both run alternately, each in a process of its own, into the same preallocated slot (a loop device with direct I/O where this is
root, a file else) and from the same local files: what is compared is the work of the device, not a network. Medians of the
runs' ratios, in wall time and in processor time, because a machine that others use stretches the one and not the other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.bench.image_pairs import DIRECTORY, PairsMissingError, large_pair, pairs
from tests.bench.pair_releases import BuiltPair, built

RUNS: Final = 5
RSS_BUDGET_BYTES: Final = 64 << 20
SPEED_BUDGET: Final = 1.0
"""Seconds of the patch over seconds of the pack, at most."""


def bench(directory: Path = DIRECTORY, *, runs: int = RUNS) -> dict[str, Any]:
    """Measure every pair.

    Raises:
        PairsMissingError: There are none; the message has the command that makes them.
    """
    measured = {pair.fs: _measured(built(pair, directory), directory, runs) for pair in pairs(directory)}
    # Once: this one is about memory, which does not vary from run to run.
    measured["large"] = _measured(built(large_pair(directory), directory), directory, 1)
    return measured


def _measured(release: BuiltPair, directory: Path, runs: int) -> dict[str, Any]:
    size = max(release.pair.old.stat().st_size, release.pair.new.stat().st_size)
    found: dict[str, list[dict[str, Any]]] = {"patch": [], "pack": []}
    with (
        slot(directory, release.pair.old, size) as active,
        slot(directory, release.pair.old, size) as target,
    ):
        for number in range(runs):
            # Every other pair the other way round: whoever comes second finds the caches of the first.
            for way in ("patch", "pack") if number % 2 == 0 else ("pack", "patch"):
                found[way].append(act(way, release.new, release.old / "index.twci", active, target))
            patch, pack = found["patch"][-1], found["pack"][-1]
            _say(
                f"{release.pair.fs} run {number + 1} of {runs}: patch {patch['seconds']:.2f} s "
                f"({patch['processor_seconds']:.2f} s of processor), pack {pack['seconds']:.2f} s "
                f"({pack['processor_seconds']:.2f} s), {patch['seconds'] / pack['seconds']:.2f} x"
            )
    return {
        "image_bytes": release.pair.new.stat().st_size,
        "runs": runs,
        "cpus": os.cpu_count(),
        "ratio_seconds": _summary([one["seconds"] / two["seconds"] for one, two in _both(found)]),
        "ratio_processor_seconds": _summary(
            [one["processor_seconds"] / two["processor_seconds"] for one, two in _both(found)]
        ),
        "peak_rss_bytes": max(one["peak_rss_bytes"] for way in found.values() for one in way),
        **{way: _described(acts) for way, acts in found.items()},
    }


def _both(found: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    return zip(found["patch"], found["pack"], strict=True)


def _described(acts: list[dict[str, Any]]) -> dict[str, Any]:
    figures = ("seconds", "processor_seconds")
    return {
        **{figure: _summary([act[figure] for act in acts]) for figure in figures},
        "peak_rss_bytes": max(act["peak_rss_bytes"] for act in acts),
        "fetched_bytes": acts[-1]["fetched"],
        "by_source": acts[-1]["by_source"],
    }


def act(way: str, build: Path, old_index: Path, active: Path, target: Path) -> dict[str, Any]:
    """Install `build` into `target` by `patch_worker`, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="tw-bench-state-") as state:
        command = [sys.executable, "-m", "tests.bench.patch_worker", way, str(build)]
        command += [str(old_index), str(active), str(target), state]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{way} of {build.name}: exit {done.returncode}: {done.stderr.strip()[-600:]}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@contextlib.contextmanager
def slot(directory: Path, image: Path | None, size_bytes: int) -> Iterator[Path]:
    """A slot that holds `image`, on the disk to measure: written once, so that no run pays for allocating it."""
    with tempfile.NamedTemporaryFile(prefix="tw-bench-slot-", dir=directory) as file:
        if image is not None:
            with image.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)
        file.truncate(size_bytes)
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        os.fsync(file.fileno())
        if os.geteuid() != 0 or shutil.which("losetup") is None:
            yield Path(file.name)
            return
        command = ["losetup", "--find", "--show", "--direct-io=on", file.name]
        device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        try:
            yield Path(device)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)


def _summary(values: list[float]) -> dict[str, float]:
    pick: dict[str, Callable[[list[float]], float]] = {"min": min, "median": statistics.median, "max": max}
    return {name: round(choose(values), 3) for name, choose in pick.items()}


def verdicts(result: dict[str, Any]) -> dict[str, bool]:
    """Whether each budget of update-engine.md 17.3 holds that this measures; one run says nothing about speed."""
    held = {
        f"{fs}: peak RSS at most 64 MiB": one["peak_rss_bytes"] <= RSS_BUDGET_BYTES
        for fs, one in result.items()
    }
    for fs, one in result.items():
        if one["runs"] > 1:
            held[f"{fs}: patch is not slower than the pack"] = one["ratio_seconds"]["median"] <= SPEED_BUDGET
    return held


def _say(text: str) -> None:
    print(text, flush=True)


def main(out: Path = Path("out/bench")) -> int:
    """Exit 0 when every budget holds, 1 when one does not, 2 when there is nothing to measure on."""
    try:
        result = bench()
    except PairsMissingError as err:
        _say(f"not measured: {err}")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    held = verdicts(result)
    (out / "patch-speed.json").write_text(json.dumps({**result, "budgets": held}, indent=2) + "\n")
    for what, holds in held.items():
        _say(f"{'held  ' if holds else 'MISSED'} {what}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
