"""The image that full installs are measured with, its release, and the same image compressed for peers that want a stream.

A real Debian root image where `tests.bench.image_pairs` made some; else an ext4 full of this machine's own files.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tidewaiter_core.payload import Release

from tests.bench.image_pairs import DIRECTORY, PairsMissingError, large_pair, pairs
from tests.bench.pair_releases import build, built
from tests.sim.image import tool

LEVEL: Final = 12
"""zstd level of our pack and of the peer's stream."""
_FULL: Final = 0.8
"""How much of an image of this machine's files is files; a real one has about as many zeros."""
_TREES: Final = ("/usr/lib", "/usr/share", "/usr/bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchImage:
    """An image and what was built from it."""

    image: Path
    build: Path
    what: str

    @property
    def size_bytes(self) -> int:
        return self.image.stat().st_size

    @property
    def release(self) -> Release:
        return Release.parse((self.build / "release.json").read_bytes())

    def compressed(self) -> Path:
        """One zstd stream of the whole image, kept beside the build."""
        target = self.build / "image.zst"
        if not target.is_file():
            made = target.with_suffix(".tmp")
            subprocess.run(
                ["zstd", "-q", f"-{LEVEL}", "-T0", "-f", str(self.image), "-o", str(made)], check=True
            )
            made.replace(target)
        return target


def full_image(work: Path, *, mib: int | None) -> BenchImage:
    """The image to install: 1 GiB, real if there is one.

    Args:
        mib: Make one of this size from the machine's own files instead.
    """
    if mib is None:
        try:
            pair = pairs(DIRECTORY)[0]
        except PairsMissingError:
            return made_image(work, mib=1024)
        folder = DIRECTORY / "release.full.new"
        build(pair.new, folder, sequence=2, level=LEVEL)
        return BenchImage(image=pair.new, build=folder, what=f"Debian root image, {pair.fs}")
    return made_image(work, mib=mib)


def large_image() -> BenchImage:
    """More than 4 GiB.

    Raises:
        PairsMissingError: There is none; the message has the command that makes it.
    """
    release = built(large_pair(DIRECTORY))
    return BenchImage(
        image=release.pair.new, build=release.new, what="five Debian root images, one behind the other"
    )


def made_image(work: Path, *, mib: int) -> BenchImage:
    """An ext4 of real files of this machine, and its release."""
    image, tree = work / f"image-{mib}.ext4", work / "tree"
    if not image.is_file():
        used, limit = 0, int(mib * _FULL) << 20
        for file in _files():
            size = -(-file.stat().st_size // 4096) * 4096
            if used + size > limit:
                continue
            used += size
            target = tree / file.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        features = ["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode"]
        command = [tool("mke2fs"), *features, "-N", "131072", "-d", str(tree), str(image), f"{mib}m"]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(tree)
    folder = work / f"release-{mib}"
    build(image, folder, sequence=2, level=LEVEL)
    return BenchImage(image=image, build=folder, what=f"ext4 of this machine's files, {mib} MiB")


def _files() -> Iterator[Path]:
    for tree in _TREES:
        for directory, names, files in os.walk(tree):
            names.sort()
            for name in sorted(files):
                path = Path(directory) / name
                if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                    yield path
