"""What an update costs to download: our patch and our pack with chunk reuse against the tools that a maker could take instead.

Ours is counted by the product itself, which installs each pair and says what it fetched (head and segments; index and units).
The others are asked to make the same new image from the same old one, each in its best known setting:

    zstd --patch-from -12 --long=31   one frame over the whole old image, which a device must hold in memory
    xdelta3 -9 -S lzma, -B 64 MiB     a source window that a device can hold
    casync                            new chunks by content, and their index
    zchunk                            new chunks by content, and their header (`zck_delta_size`)

`python -m tests.bench.patch_bytes` writes out/bench/patch.json. Every figure is kept beside the pairs as soon as it is known, so
that an interrupted run goes on where it stopped; figures of other images are forgotten.

Source: update-engine.md 17.3.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tidewaiter_core.payload.patchfile import PATCH_VERSION

from tests.bench.image_pairs import DIRECTORY, Pair, PairsMissingError, pairs
from tests.bench.pair_releases import BuiltPair, build, built
from tests.bench.patch_speed import act, slot

BOUNDS: Final = {"zstd": 0.8, "xdelta3": 0.7, "casync": 0.5, "zchunk": 0.5}
"""Bytes of our patch over bytes of the other, at most."""
ONE_BYTE_BOUND: Final = 256 * 1024
_PROGRAMS: Final = {"zstd": "zstd", "xdelta3": "xdelta3", "casync": "casync", "zck": "zchunk"}
"""Debian package by program."""
_KEPT: Final = "patch-bytes.json"


class ToolMissingError(RuntimeError):
    """A program to compare with is not installed."""


class _Figures:
    """Numbers that are expensive to find, kept as they are found."""

    def __init__(self, path: Path, images: str) -> None:
        """
        Args:
            images: What the numbers are about; those about anything else are dropped.
        """
        self._path = path
        known = json.loads(path.read_text()) if path.is_file() else {}
        self._known: dict[str, Any] = known if known.get("images") == images else {"images": images}

    def get(self, name: str, find: Callable[[], int]) -> int:
        if name not in self._known:
            started = time.monotonic()
            self._known[name] = find()
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._known, indent=1) + "\n")
            temporary.replace(self._path)
            _say(f"{name}: {self._known[name] / 1e6:.2f} MB, in {time.monotonic() - started:.0f} s")
        return int(self._known[name])


def bench(directory: Path = DIRECTORY) -> dict[str, Any]:
    """Count every pair.

    Raises:
        PairsMissingError, ToolMissingError: What is not there, and how to get it.
    """
    for program, package in _PROGRAMS.items():
        if shutil.which(program) is None:
            raise ToolMissingError(f"{program}: not found; install the package {package} to compare with it")
    found = pairs(directory)
    figures = _Figures(directory / _KEPT, hashlib.sha256((directory / "pairs.json").read_bytes()).hexdigest())
    result: dict[str, Any] = {"pairs": {}}
    for pair in found:
        result["pairs"][pair.fs] = _counted(built(pair, directory), figures, directory)
    result["one_byte_of_1_gib"] = figures.get(
        f"one byte by patch format {PATCH_VERSION}", lambda: _one_byte(found[0], directory)
    )
    result["equal_image"] = figures.get("equal image", lambda: _equal(built(found[0], directory), directory))
    result["budgets"] = verdicts(result)
    return result


def _counted(release: BuiltPair, figures: _Figures, directory: Path) -> dict[str, Any]:
    pair = release.pair
    made = release.release.digest[:16]
    makers: dict[str, Callable[[Pair, Path], int]] = {
        "zstd": _zstd, "xdelta3": _xdelta3, "casync": _casync, "zchunk": _zchunk
    }  # fmt: skip
    ours = {
        way: figures.get(f"{pair.fs} {way} of {made}", lambda way=way: _fetched(way, release, directory))  # type: ignore[misc]
        for way in ("patch", "reuse")
    }
    others: dict[str, int] = {}
    for name, make in makers.items():
        others[name] = figures.get(f"{pair.fs} {name}", lambda make=make: _in_scratch(make, pair, directory))  # type: ignore[misc]
    return {
        "image_bytes": pair.new.stat().st_size,
        "pack_bytes": release.release.slot.pack.length,
        "patch_fetched": ours["patch"],
        "pack_with_chunk_reuse_fetched": ours["reuse"],
        "others": others,
        "ratios_of_patch": {name: round(ours["patch"] / count, 3) for name, count in others.items()},
        "ratios_of_pack_with_chunk_reuse": {
            name: round(ours["reuse"] / others[name], 3) for name in ("casync", "zchunk")
        },
    }


def _fetched(way: str, release: BuiltPair, directory: Path) -> int:
    size = max(release.pair.old.stat().st_size, release.pair.new.stat().st_size)
    with slot(directory, release.pair.old, size) as active, slot(directory, None, size) as target:
        done = act(way, release.new, release.old / "index.twci", active, target)
    return int(done["fetched"])


def _one_byte(pair: Pair, directory: Path) -> int:
    """Another byte in the middle of the image, and everything that is fetched for it: release.json, head, segment."""
    with tempfile.TemporaryDirectory(prefix="tw-one-byte-", dir=directory) as scratch:
        changed = Path(scratch) / "changed.img"
        shutil.copyfile(pair.old, changed)
        with changed.open("r+b") as file:
            file.seek(changed.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        new, old = Path(scratch) / "release", built(pair, directory).old
        build(changed, new, sequence=2, patch_from=old, level=3)
        size = changed.stat().st_size
        with slot(directory, pair.old, size) as active, slot(directory, None, size) as target:
            done = act("patch", new, old / "index.twci", active, target)
        return int(done["fetched"]) + (new / "release.json").stat().st_size


def _equal(release: BuiltPair, directory: Path) -> int:
    """The same image once more: bytes of the image that are fetched for it, metadata not counted."""
    size = release.pair.new.stat().st_size
    with slot(directory, release.pair.new, size) as active, slot(directory, None, size) as target:
        return int(act("patch", release.new, release.new / "index.twci", active, target)["fetched"])


def _in_scratch(make: Callable[[Pair, Path], int], pair: Pair, directory: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="tw-peer-", dir=directory) as scratch:
        return make(pair, Path(scratch))


def _zstd(pair: Pair, scratch: Path) -> int:
    out = scratch / "patch"
    _run("zstd", "-q", "-12", "--long=31", f"--patch-from={pair.old}", str(pair.new), "-o", str(out))
    return out.stat().st_size


def _xdelta3(pair: Pair, scratch: Path) -> int:
    out = scratch / "patch"
    _run(
        "xdelta3",
        "-q",
        "-e",
        "-9",
        "-S",
        "lzma",
        "-B",
        str(64 << 20),
        "-s",
        str(pair.old),
        str(pair.new),
        str(out),
    )
    return out.stat().st_size


def _casync(pair: Pair, scratch: Path) -> int:
    stores: dict[str, set[str]] = {}
    for name, image in (("old", pair.old), ("new", pair.new)):
        _run("casync", "make", f"--store={scratch / name}", str(scratch / f"{name}.caibx"), str(image))
        stores[name] = {str(path.relative_to(scratch / name)) for path in (scratch / name).rglob("*.cacnk")}
    missing = sum((scratch / "new" / chunk).stat().st_size for chunk in stores["new"] - stores["old"])
    return missing + (scratch / "new.caibx").stat().st_size


def _zchunk(pair: Pair, scratch: Path) -> int:
    for name, image in (("old", pair.old), ("new", pair.new)):
        _run("zck", "-o", str(scratch / f"{name}.zck"), str(image))
    said = _run("zck_delta_size", str(scratch / "old.zck"), str(scratch / "new.zck"))
    found = re.search(r"Would download (\d+) of \d+ bytes", said)
    if found is None:
        raise RuntimeError(f"zck_delta_size: no number of bytes in what it says: {said.strip()[-300:]}")
    return int(found[1])


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: exit {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout + done.stderr


def verdicts(result: dict[str, Any]) -> dict[str, bool]:
    """Whether each budget holds."""
    held = {
        f"{fs}: patch at most {bound} x {name}": one["ratios_of_patch"][name] <= bound
        for fs, one in result["pairs"].items()
        for name, bound in BOUNDS.items()
    }
    held["one byte of 1 GiB: at most 256 KiB"] = result["one_byte_of_1_gib"] <= ONE_BYTE_BOUND
    held["equal image: nothing but metadata"] = result["equal_image"] == 0
    return held


def report(result: dict[str, Any]) -> None:
    """The figures a person wants."""
    for fs, one in result["pairs"].items():
        _say(
            f"{fs}: {one['image_bytes'] / 1e6:.0f} MB; pack {one['pack_bytes'] / 1e6:.1f} MB, with chunk reuse "
            f"{one['pack_with_chunk_reuse_fetched'] / 1e6:.1f} MB, patch {one['patch_fetched'] / 1e6:.1f} MB"
        )
        for name, count in one["others"].items():
            _say(f"  {one['ratios_of_patch'][name]:5.2f} x {name:8} ({count / 1e6:.1f} MB)")
    _say(
        f"one byte of 1 GiB: {result['one_byte_of_1_gib']} bytes; equal image: {result['equal_image']} bytes"
    )
    for what, holds in result["budgets"].items():
        _say(f"{'held  ' if holds else 'MISSED'} {what}")


def _say(text: str) -> None:
    print(text, flush=True)


def main(out: Path = Path("out/bench")) -> int:
    """Exit 0 when every budget holds, 1 when one does not, 2 when something to measure with is missing."""
    try:
        result = bench()
    except (PairsMissingError, ToolMissingError) as err:
        _say(f"not measured: {err}")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    (out / "patch.json").write_text(json.dumps(result, indent=2) + "\n")
    report(result)
    return 0 if all(result["budgets"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
