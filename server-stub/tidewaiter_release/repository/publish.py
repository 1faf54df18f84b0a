"""`publish` and `refresh`: a checked build becomes signed targets; online metadata gets a new life.

A version is published once and never changed: its path is a directory of the repository and a promise to mirrors. The
sequence must rise per product, because a device takes nothing that is not above what it runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import STANDARD, Limits, PayloadError, Release
from tidewaiter_core.payload.release import PartRef, UkiComponent
from tuf.api.metadata import TargetFile

from tidewaiter_release.build import part_name
from tidewaiter_release.check import check_build
from tidewaiter_release.errors import InputError, PublishedError, RepositoryError
from tidewaiter_release.repository.media import follow_media
from tidewaiter_release.repository.roles import ROLES, path_matches
from tidewaiter_release.repository.signing import Desk, commit
from tidewaiter_release.repository.store import State, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A release that is in the repository."""

    path: str
    """Target path of its release.json."""
    digest: Sha256
    new: bool
    """False: the very same release was there already."""
    on_media: bool
    """Whether the media side has it too. False: its keys were not at hand; `refresh --media` where they are."""


def publish(
    store: Store, desk: Desk, build: Path, *, limits: Limits = STANDARD, stream: TextIO | None = None
) -> Published:
    """Prove a build, put its files in place and sign them by the role `os`.

    Safe to call again after any failure: what is in the repository is either the old state or the new one.

    Raises:
        ReleaseToolError: The build, the keys or the repository cannot be used, or the version is taken.
        PayloadError: The build cannot be installed.
    """
    data, release = check_build(build, limits=limits, stream=stream)
    with store.lock():
        state = store.load()
        if is_published(state, release):
            on_media = follow_media(store, state, desk)
            return Published(path=release.path, digest=release.digest, new=False, on_media=on_media)
        added = add_release(store, state, data, release, limits=limits)
        for target in added.values():
            store.place_target(build / part_name(target.path), target)
        commit(store, state, desk, changed={role_of(path) for path in added})
        on_media = follow_media(store, state, desk)
    return Published(path=release.path, digest=release.digest, new=True, on_media=on_media)


def add_release(
    store: Store, state: State, data: bytes, release: Release, *, limits: Limits = STANDARD
) -> dict[str, TargetFile]:
    """Make a release and its parts targets of `state`, in memory; returns those that are new, by path.

    Raises:
        PublishedError: Its sequence does not rise, or a firmware version was published with other bytes.
    """
    _check_sequence(store, state, release, limits=limits)
    targets = [
        *os_parts(release),
        *firmware_parts(release),
        _target(release.path, length=len(data), sha256=release.digest),
    ]
    added: dict[str, TargetFile] = {}
    for target in targets:
        signed = state.delegated[role_of(target.path)].signed.targets
        known = signed.get(target.path)
        if known is not None and known.hashes.get("sha256") == target.hashes["sha256"]:
            continue  # firmware that an earlier release brought
        if known is not None:
            raise PublishedError(
                f"{target.path}: is published with other content; a version never changes, build the next one"
            )
        signed[target.path] = added[target.path] = target
    return added


def role_of(path: str) -> str:
    """The role whose pattern a target path matches.

    Raises:
        InputError: None may sign it.
    """
    for spec in ROLES.values():
        if any(path_matches(path, pattern) for pattern in spec.paths):
            return spec.name
    raise InputError(f"{path}: no role may sign a target of this path")


def refresh(store: Store, desk: Desk) -> int:
    """Renew timestamp and, when half of its life is over, snapshot; returns the new timestamp version.

    Needs the two online keys only.

    Raises:
        ReleaseToolError: The keys or the repository cannot be used.
    """
    with store.lock():
        state = store.load()
        commit(store, state, desk, changed=[])
        return state.timestamp.signed.version


def os_parts(release: Release) -> list[TargetFile]:
    """Every file that the role `os` signs for a release, besides release.json itself."""
    slot = release.slot
    parts: list[PartRef] = [slot.index, slot.pack, *slot.patches]
    parts += [part for part in release.components if isinstance(part, UkiComponent)]
    if release.sbom is not None:
        parts.append(release.sbom)
    return [_target(part.path, length=part.length, sha256=part.sha256) for part in parts]


def firmware_parts(release: Release) -> list[TargetFile]:
    """Every file that the role `injector-firmware` signs for a release."""
    return [_target(part.path, length=part.length, sha256=part.sha256) for part in release.firmware]


def read_published(store: Store, target: TargetFile, *, limits: Limits = STANDARD) -> Release:
    """A release document out of the repository.

    Raises:
        RepositoryError: It is missing or not the one that was signed.
    """
    path = store.target_path(target)
    try:
        data = path.read_bytes()
        release = Release.parse(data, limits=limits)
    except (OSError, PayloadError) as err:
        raise RepositoryError(f"{path}: {err}") from err
    if release.digest != target.hashes["sha256"]:
        raise RepositoryError(f"{path}: sha256 {release.digest}, signed as {target.hashes['sha256']}")
    return release


def is_published(state: State, release: Release) -> bool:
    directory = release.path.rpartition("/")[0] + "/"
    signed = state.delegated["os"].signed.targets
    known = signed.get(release.path)
    if known is not None and known.hashes.get("sha256") == release.digest:
        return True
    taken = [path for path in signed if path.startswith(directory)]
    if taken:
        raise PublishedError(
            f"{release.path}: version {release.version} is published with other content; a version never changes, "
            "build the next one"
        )
    return False


def _check_sequence(store: Store, state: State, release: Release, *, limits: Limits) -> None:
    prefix = f"releases/{release.product}/"
    for path, target in state.delegated["os"].signed.targets.items():
        if not path.startswith(prefix) or part_name(path) != "release.json":
            continue
        other = read_published(store, target, limits=limits)
        if other.sequence >= release.sequence:
            raise PublishedError(
                f"{release.path}: sequence {release.sequence} is not above {other.sequence} of version {other.version}; "
                "no device that runs it would take this one"
            )


def _target(path: str, *, length: int, sha256: str) -> TargetFile:
    # Exactly one hash: python-tuf's client puts the first of the dictionary into the URL.
    return TargetFile(length, {"sha256": sha256}, path)
