"""The releases of an image pair, built once beside it: the old one's index and pack, the new one's with the patch between them.

`python -m tests.bench.pair_releases` makes what is missing; the patch at the publishing level takes some minutes per image.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidewaiter_core.payload import Release
from tidewaiter_core.payload.patchfile import PATCH_VERSION

from tests.bench.image_pairs import DIRECTORY, Pair, pairs

PRODUCT: Final = "injector"
HARDWARE: Final = "inj-a1"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPair:
    """What `tidewaiter-release build` wrote for both images of a pair."""

    pair: Pair
    old: Path
    new: Path

    @property
    def release(self) -> Release:
        """The new one."""
        return Release.parse((self.new / "release.json").read_bytes())

    @property
    def patch(self) -> Path:
        """The patch from the old image to the new one."""
        (found,) = self.new.glob("from-*.twpt")
        return found


def built(pair: Pair, directory: Path = DIRECTORY) -> BuiltPair:
    """The builds of a pair, made now if they are not there."""
    release = BuiltPair(
        pair=pair,
        old=directory / f"release.{pair.fs}.old",
        new=directory
        / f"release.{pair.fs}.new.twpt{PATCH_VERSION}",  # no device reads a patch of another format
    )
    build(pair.old, release.old, sequence=1)
    build(pair.new, release.new, sequence=2, patch_from=release.old)
    return release


def build(
    image: Path, out: Path, *, sequence: int, patch_from: Path | None = None, level: int | None = None
) -> None:
    """A release of `image` in `out`, if it is not there yet.

    Args:
        level: zstd level of the pack; None: the one to publish with.
    """
    if out.is_dir():
        return
    print(f"{out.name}: tidewaiter-release build, with what it takes to publish", flush=True)
    made = out.with_name(f"{out.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    command = [
        str(Path(sys.executable).with_name("tidewaiter-release")), "build", str(image), "--out", str(made),
        "--product", PRODUCT, "--version", f"{sequence}.0.0", "--sequence", str(sequence), "--hw", HARDWARE,
    ]  # fmt: skip
    if patch_from is not None:
        command += ["--patch-from", str(patch_from)]
    if level is not None:
        command += ["--level", str(level)]
    subprocess.run(command, check=True)
    made.replace(out)


def main() -> int:
    """Build the releases of all pairs."""
    for pair in pairs():
        built(pair)
    return 0


if __name__ == "__main__":
    sys.exit(main())
