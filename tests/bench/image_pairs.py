"""Real pairs of root images to measure patches on: Debian as released, and the same packages with the updates since.

`python -m tests.bench.image_pairs` builds them once and keeps them (mmdebstrap from the machine's own mirror, as root):

    old: suite `bookworm` alone         new: the same packages from `bookworm`, `-updates` and `-security`
    each as ext4 without journal and as uncompressed erofs, with fixed identifiers and times, as a device's builder makes them

`pairs.json` beside them says which packages differ and has the digest of every image, so that a ratio can be told from another
one that was measured on another day of the archive. A part that exists is not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.sim.image import ImageToolMissingError, tool

DIRECTORY: Final = Path(os.environ.get("TIDEWAITER_BENCH_PAIRS", "/var/tmp/tw-pairs"))
_SUITE: Final = "bookworm"
_UUID: Final = "6f1c7b1e-52b2-4f5e-9b0e-3d9f1f4f5a01"
_EPOCH: Final = 1685000000
"""Before the suite was released: every time that a build would leave behind is cut down to it."""
_EXT4_BYTES: Final = 1 << 30
_PACKAGES: Final = """
    systemd systemd-sysv udev dbus linux-image-cloud-amd64 python3 python3-cryptography python3-requests openssl
    ca-certificates curl openssh-client network-manager wpasupplicant nftables chrony dnsmasq-base e2fsprogs util-linux
    perl vim-tiny tzdata weston libgl1-mesa-dri libgstreamer1.0-0 gstreamer1.0-plugins-good libwebkit2gtk-4.1-0
    fontconfig fonts-dejavu-core
"""
_LEFT_OUT: Final = ("doc", "man", "locale", "info")
"""Of /usr/share: no device carries it."""


class PairsMissingError(RuntimeError):
    """The images were not built, or not all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two images of one device, an update apart."""

    fs: str
    """ext4 or erofs; or large, which is both."""
    old: Path
    new: Path


def pairs(directory: Path = DIRECTORY) -> tuple[Pair, ...]:
    """The pairs, built before.

    Raises:
        PairsMissingError: They are not there; the message has the command that makes them.
    """
    found = tuple(
        Pair(fs=fs, old=directory / f"old.{fs}", new=directory / f"new.{fs}") for fs in ("ext4", "erofs")
    )
    if not (directory / "pairs.json").is_file():
        raise PairsMissingError(
            f"{directory}: no pairs of images to measure on; make them as root with: python -m tests.bench.image_pairs "
            "(packages mmdebstrap, e2fsprogs and erofs-utils; some minutes, 4 GB)"
        )
    return found


def large_pair(directory: Path = DIRECTORY) -> Pair:
    """A pair of more than 4 GiB, made of the others one behind the other: what memory must not grow with.

    Raises:
        PairsMissingError: As for `pairs`.
    """
    parts = {pair.fs: pair for pair in pairs(directory)}
    large = Pair(fs="large", old=directory / "old.large", new=directory / "new.large")
    for target, release in ((large.old, "old"), (large.new, "new")):
        if target.is_file():
            continue
        made = target.with_name(f"{target.name}.tmp")
        with made.open("wb") as file:
            for fs in ("ext4", "erofs", "ext4", "erofs", "ext4"):
                with getattr(parts[fs], release).open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
        made.replace(target)
    return large


def make(directory: Path = DIRECTORY) -> None:
    """Build what is missing; files appear under their names only when they are complete."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("mmdebstrap", "mkfs.erofs"):
        if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin") is None:
            raise ImageToolMissingError(f"{name}: not found; install the packages mmdebstrap and erofs-utils")
    released, updates, security = (_source(f"{_SUITE}{part}") for part in ("", "-updates", "-security"))
    packages: dict[str, dict[str, str]] = {}
    for release, extra in (("old", []), ("new", [updates, security])):
        wanted = [directory / f"{release}.{fs}" for fs in ("ext4", "erofs")]
        listing = directory / f"{release}.packages.json"
        if not (listing.is_file() and all(image.is_file() for image in wanted)):
            tree = directory / f"{release}.tree"
            _root_tree(tree, [released, *extra])
            packages[release] = _installed(tree)
            _ext4(tree, wanted[0])
            _erofs(tree, wanted[1])
            listing.write_text(json.dumps(packages[release], indent=1) + "\n")
            shutil.rmtree(tree)
        packages[release] = json.loads(listing.read_text())
    changed = _changed(packages["old"], packages["new"])
    record = {
        "changed_packages": changed,
        "packages": len(packages["new"]),
        "images": {image.name: _described(image) for pair in _every(directory) for image in pair},
    }
    (directory / "pairs.json").write_text(json.dumps(record, indent=1) + "\n")
    _say(f"{len(changed)} of {len(packages['new'])} packages differ; see {directory / 'pairs.json'}")


def _source(suite: str) -> str:
    """The line of sources.list by which this machine itself has a suite."""
    fields = "$(RELEASE) $(COMPONENT) $(REPO_URI)"
    for line in _run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]).splitlines():
        found, component, uri = line.split()
        if (found, component) == (suite, "main"):
            return f"deb {uri} {suite} main"
    raise RuntimeError(f"{suite}: not among the sources of this machine's apt; the pairs cannot be made here")


def _every(directory: Path) -> tuple[tuple[Path, Path], ...]:
    return tuple((directory / f"old.{fs}", directory / f"new.{fs}") for fs in ("ext4", "erofs"))


def _root_tree(tree: Path, sources: list[str]) -> None:
    _say(f"{tree.name}: installing {len(_PACKAGES.split())} packages and what they need; some minutes")
    shutil.rmtree(tree, ignore_errors=True)
    archive = tree.with_suffix(".tar")
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    command = [
        "mmdebstrap",
        "--mode=root",
        "--variant=minbase",
        *options,
        f"--include={','.join(_PACKAGES.split())}",
    ]
    _run([*command, _SUITE, str(archive), *sources])
    tree.mkdir()
    # By way of an archive, because that is where mmdebstrap cuts times down to the epoch.
    _run(
        [
            "tar",
            "--extract",
            "--file",
            str(archive),
            "--directory",
            str(tree),
            "--numeric-owner",
            "--exclude=./dev/*",
        ]
    )
    archive.unlink()
    # What differs from build to build and is no part of a device's image.
    for name in ("var/log", "var/cache", "var/lib/apt/lists", "usr/share/icons"):
        shutil.rmtree(tree / name, ignore_errors=True)
    for path in (tree / "boot").glob("initrd*"):
        path.unlink()
    (tree / "etc/machine-id").write_text("uninitialized\n")
    for directory, _, files in os.walk(tree, topdown=False):
        for name in [*files, "."]:
            path = Path(directory) / name
            if path.lstat().st_mtime > _EPOCH:
                os.utime(path, (_EPOCH, _EPOCH), follow_symlinks=False)


def _installed(tree: Path) -> dict[str, str]:
    """Version by package."""
    database = f"--admindir={tree / 'var/lib/dpkg'}"
    done = _run(["dpkg-query", database, "--show", "--showformat", "${Package} ${Version}\n"])
    return dict(line.split() for line in done.splitlines())


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> dict[str, list[str | None]]:
    names = sorted(old.keys() | new.keys())
    return {name: [old.get(name), new.get(name)] for name in names if old.get(name) != new.get(name)}


def _ext4(tree: Path, image: Path) -> None:
    _say(f"{image.name}: mke2fs")
    made = image.with_suffix(".ext4.tmp")
    made.unlink(missing_ok=True)
    features = ["-q", "-t", "ext4", "-b", "4096", "-m", "0", "-O", "^has_journal,^resize_inode"]
    identifiers = ["-U", _UUID, "-E", f"hash_seed={_UUID},root_owner=0:0,lazy_itable_init=0"]
    _run([tool("mke2fs"), *features, *identifiers, "-d", str(tree), str(made), f"{_EXT4_BYTES >> 10}k"])
    # mke2fs takes over the times of reading and of changing an inode, which nobody can set in the tree: both are set here.
    lines = [
        f"set_inode_field <{number}> {name} {value}"
        for number in _used_inodes(made)
        for name, value in (
            ("atime", f"@{_EPOCH}"),
            ("ctime", f"@{_EPOCH}"),
            ("atime_extra", "0"),
            ("ctime_extra", "0"),
        )
    ]
    _run([tool("debugfs"), "-w", "-f", "-", str(made)], given="\n".join(lines) + "\n")
    made.replace(image)


def _used_inodes(image: Path) -> list[int]:
    """The numbers of all inodes of files."""
    free: set[int] = set()
    count = 0
    for line in _run([tool("dumpe2fs"), str(image)]).splitlines():
        if line.startswith("Inode count:"):
            count = int(line.split()[-1])
        elif line.startswith("  Free inodes: "):
            for part in filter(None, line.removeprefix("  Free inodes: ").split(", ")):
                first, _, last = part.strip().partition("-")
                free.update(range(int(first), int(last or first) + 1))
    return [number for number in (2, *range(11, count + 1)) if number not in free]


def _erofs(tree: Path, image: Path) -> None:
    _say(f"{image.name}: mkfs.erofs")
    made = image.with_suffix(".erofs.tmp")
    made.unlink(missing_ok=True)
    _run(["mkfs.erofs", "--quiet", f"-T{_EPOCH}", "-U", _UUID, str(made), str(tree)])
    with made.open("r+b") as file:  # an image for a slot is a multiple of 4096 bytes
        file.truncate(-(-made.stat().st_size // 4096) * 4096)
    made.replace(image)


def _described(image: Path) -> dict[str, Any]:
    with image.open("rb") as file:
        return {"bytes": image.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _run(command: list[str], *, given: str | None = None) -> str:
    environment = {
        **os.environ,
        "E2FSPROGS_FAKE_TIME": str(_EPOCH),
        "SOURCE_DATE_EPOCH": str(_EPOCH),
        "LC_ALL": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-8:])
        raise RuntimeError(f"{command[0]}: exit {done.returncode}; the pair was not made: {last}")
    return done.stdout


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    """Build the pairs."""
    summary = __doc__.splitlines()[0] if __doc__ else None
    parser = argparse.ArgumentParser(prog="python -m tests.bench.image_pairs", description=summary)
    parser.add_argument(
        "--to", type=Path, default=DIRECTORY, help="where they are kept (default: %(default)s)"
    )
    make(parser.parse_args().to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
