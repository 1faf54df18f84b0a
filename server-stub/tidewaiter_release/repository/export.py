"""`tidewaiter-release export`: releases of the media side become a stick that a device installs from.

Order on the medium: the first root (which says whose it is), all targets with release.json last of each release, the metadata,
timestamp.json last. Until that last rename a device sees no repository, or the one that was there before.
A medium that holds an earlier export of the same repository is extended; anybody else's files are never touched.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tidewaiter_core.payload import STANDARD, Limits, Release
from tidewaiter_core.payload.release import FirmwareComponent
from tuf.api.exceptions import RepositoryError as TufRepositoryError
from tuf.api.metadata import Metadata, TargetFile, Timestamp
from tuf.api.serialization import DeserializationError

from tidewaiter_release.build import part_name
from tidewaiter_release.errors import InputError, MediumError, RepositoryError
from tidewaiter_release.progress import Progress
from tidewaiter_release.repository.medium import Medium
from tidewaiter_release.repository.publish import os_parts, read_published
from tidewaiter_release.repository.signing import WallClock
from tidewaiter_release.repository.store import State, Store

_CLUSTER_BYTES = 64 * 1024
_SUPERSEDED = re.compile(r"([1-9][0-9]*)\.([a-z-]+)\.json", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What is on the medium now."""

    releases: tuple[Release, ...]
    written_bytes: int
    """Without what was there already."""
    metadata_expires: str
    """Until when devices accept the medium, RFC 3339."""


def export(
    store: Store,
    medium_directory: Path,
    versions: Sequence[str],
    *,
    clock: WallClock,
    patches_from: Collection[str] | None = (),
    limits: Limits = STANDARD,
    medium: Medium | None = None,
    stream: TextIO | None = None,
) -> Exported:
    """Write releases with everything a device needs to `medium_directory`/TIDEWAITER; the same again continues.

    Args:
        versions: `VERSION`, or `PRODUCT/VERSION` where several products have it.
        patches_from: Versions whose patches go along; None: all.

    Raises:
        ReleaseToolError: Nothing a device could mistake for a repository was written.
    """
    media = store.media
    state = media.load()
    _check_life(state, clock)
    medium = medium if medium is not None else Medium(medium_directory)
    medium.check()
    _check_owner(medium, media, state)
    releases = [_find(media, state, version, limits=limits) for version in versions]
    roots = _patch_roots(media, state, releases, patches_from, limits=limits)
    targets = _targets(state, releases, roots)
    missing = _missing(medium, media, targets)
    _check_space(medium, media, missing)
    medium.write(medium.metadata / "1.root.json", media.read("1.root.json"))
    progress = Progress(f"writing {medium.top}", sum(target.length for target in missing), stream=stream)
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress.update(done)

    for target in missing:
        source, place = media.target_path(target), medium.targets / media.relative_path(target)
        medium.copy(source, place, length=target.length, sha256=target.hashes["sha256"], tick=tick)
    progress.finish()
    _write_metadata(medium, media, state)
    return Exported(
        releases=tuple(releases),
        written_bytes=done,
        metadata_expires=f"{state.timestamp.signed.expires:%Y-%m-%dT%H:%M:%SZ}",
    )


def _check_life(state: State, clock: WallClock) -> None:
    for role, metadata in state.all():
        if metadata.signed.expires <= clock.now_utc():
            raise RepositoryError(
                f"{state.side.desk_name(role)}: expired at {metadata.signed.expires:%Y-%m-%dT%H:%M:%SZ}; no device would "
                "take the medium. Sign it again first; nothing was written"
            )


def _check_owner(medium: Medium, media: Store, state: State) -> None:
    """Only an earlier state of this very repository may be extended."""
    held = [path for path in medium.top.rglob("*") if path.is_file()] if medium.top.is_dir() else []
    if not held:
        return
    first = medium.metadata / "1.root.json"
    with contextlib.suppress(OSError):
        if first.read_bytes() != media.read("1.root.json"):
            raise MediumError(f"{medium.top}: belongs to another repository; take another medium")
    if not first.exists() and held != [first.with_name(first.name + ".part")]:
        raise MediumError(f"{medium.top}: holds {held[0].name}, which no export of this repository wrote")
    with contextlib.suppress(OSError):
        data = (medium.metadata / "timestamp.json").read_bytes()
        try:
            there = Metadata[Timestamp].from_bytes(data)
            state.root.signed.verify_delegate("timestamp", there.signed_bytes, there.signatures)
        except (TufRepositoryError, DeserializationError, ValueError):
            return  # damaged, or signed by keys before a rotation: replaced
        if there.signed.version > state.timestamp.signed.version:
            raise MediumError(
                f"{medium.top}: holds version {there.signed.version}, this repository has only "
                f"{state.timestamp.signed.version}; export from the newer repository"
            )


def _find(media: Store, state: State, version: str, *, limits: Limits) -> Release:
    signed = state.delegated["os"].signed.targets if "os" in state.delegated else {}
    wanted = f"/{version}/release.json" if "/" not in version else f"releases/{version}/release.json"
    found = sorted(path for path in signed if path.endswith(wanted) and part_name(path) == "release.json")
    if not found:
        known = ", ".join(
            sorted(
                path.removeprefix("releases/").removesuffix("/release.json")
                for path in signed
                if part_name(path) == "release.json"
            )
        )
        raise InputError(
            f"release {version}: not on the media side of this repository, which has {known or 'none'}; if it was "
            "published online only, sign the media side first"
        )
    if len(found) > 1:
        raise InputError(f"release {version}: several products have it; say which: {', '.join(found)}")
    return read_published(media, signed[found[0]], limits=limits)


def _patch_roots(
    media: Store,
    state: State,
    releases: Sequence[Release],
    patches_from: Collection[str] | None,
    *,
    limits: Limits,
) -> set[str]:
    """The `from_root` of every patch that goes along."""
    offered = {patch.from_root for release in releases for patch in release.slot.patches}
    if patches_from is None:
        return set(offered)
    chosen: set[str] = set()
    for version in patches_from:
        root = _find(media, state, version, limits=limits).slot.image_root
        if root not in offered:
            raise InputError(f"patches from {version}: no exported release has one; nothing was written")
        chosen.add(root)
    return chosen


def _targets(state: State, releases: Sequence[Release], roots: Collection[str]) -> list[TargetFile]:
    """All targets of the export in the order they are written."""
    wanted: dict[str, TargetFile] = {}
    for role in ("support-authority", "trust-anchors"):
        if role in state.delegated:
            wanted.update(sorted(state.delegated[role].signed.targets.items()))
    for release in releases:
        for path, permit in sorted(state.targets.signed.targets.items()):
            if path.startswith(f"permits/{release.product}/"):
                wanted[path] = permit
        left_out = {patch.path for patch in release.slot.patches if patch.from_root not in roots}
        signed = state.delegated["os"].signed.targets
        wanted.update({part.path: part for part in os_parts(release) if part.path not in left_out})
        for firmware in release.components:
            if isinstance(firmware, FirmwareComponent):
                wanted[firmware.path] = _firmware(state, firmware)
        wanted[release.path] = signed[release.path]
    return list(wanted.values())


def _firmware(state: State, firmware: FirmwareComponent) -> TargetFile:
    role = state.delegated.get("injector-firmware")
    target = role.signed.targets.get(firmware.path) if role is not None else None
    if target is None:
        raise RepositoryError(f"{firmware.path}: no target of injector-firmware; `lint` says more")
    return target


def _missing(medium: Medium, media: Store, targets: Sequence[TargetFile]) -> list[TargetFile]:
    """What the medium does not hold yet; refuses a hole in the repository before anything is written."""
    missing = []
    for target in targets:
        source, place = media.target_path(target), medium.targets / media.relative_path(target)
        if medium.holds(place, length=target.length, sha256=target.hashes["sha256"]):
            continue
        if not source.is_file():
            raise RepositoryError(f"{source}: missing; the repository is incomplete, nothing was written")
        missing.append(target)
    return missing


def _check_space(medium: Medium, media: Store, missing: Sequence[TargetFile]) -> None:
    largest = medium.largest_file_bytes()
    for target in missing:
        if largest is not None and target.length > largest:
            raise MediumError(
                f"{target.path}: {target.length} bytes, FAT holds files of at most {largest}; format the medium as exFAT"
            )
    needed = sum(target.length + _CLUSTER_BYTES for target in missing) + 32 * _CLUSTER_BYTES
    # What an interrupted export left is written over, not beside.
    free = medium.free_bytes() + sum(medium.part_bytes(media.relative_path(target)) for target in missing)
    if needed > free:
        raise MediumError(
            f"{medium.directory}: {free // 2**20} MiB free, {-(-needed // 2**20)} MiB are needed; nothing was written"
        )


def _write_metadata(medium: Medium, media: Store, state: State) -> None:
    """Roots, targets, snapshot; timestamp last. Then the superseded files go, which nothing names any more."""
    names = [f"{number}.root.json" for number in range(1, state.root.signed.version + 1)]
    for role in ("targets", *state.delegated):
        names.append(f"{state.targets_role(role).signed.version}.{role}.json")
    names += [f"{state.snapshot.signed.version}.snapshot.json", "timestamp.json"]
    for name in names:
        medium.write(medium.metadata / name, media.read(name))
    with contextlib.suppress(OSError):  # nothing names them: a medium that keeps them is as good
        for path in medium.metadata.iterdir():
            match = _SUPERSEDED.fullmatch(path.name)
            if match is not None and match.group(2) != "root" and path.name not in names:
                path.unlink(missing_ok=True)
