"""`publish --request`: signatures that came back become metadata, if they are enough (`proof` says whether).

May be repeated: what is published already is left alone, what a crash left undone is done. Online first, media second; each side
changes in one step, so after a cut each of them is the old one or the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets

from tidewaiter_release.build import part_name
from tidewaiter_release.errors import InputError, StaleRequestError
from tidewaiter_release.repository.founding import found, founds
from tidewaiter_release.repository.media import media_meta
from tidewaiter_release.repository.proof import Present, proven
from tidewaiter_release.repository.request import Item, Request
from tidewaiter_release.repository.roles import Side
from tidewaiter_release.repository.sign import ItemSignature
from tidewaiter_release.repository.signing import (
    Desk,
    describe,
    expired_snapshots,
    prepare_online,
    write_files,
)
from tidewaiter_release.repository.store import State, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    """What `publish --request` did."""

    items: tuple[str, ...]
    """Names of the items that are new in the repository; empty: all were there."""
    targets: tuple[str, ...]
    """Paths of the targets that are new or replaced."""


def adopt(
    store: Store,
    desk: Desk,
    request: Request,
    signatures: Sequence[ItemSignature],
    *,
    builds: Sequence[Path] = (),
) -> Adopted:
    """Publish what a request asks for.

    Args:
        desk: The keys of online snapshot and timestamp.
        builds: Directories with the files of new targets that the request does not carry.

    Raises:
        ThresholdError: Signatures are missing; says whose.
        StaleRequestError: The repository has moved on since it was staged.
        ReleaseToolError: Anything else that is wrong; nothing was published.
    """
    if founds(request) and not (store.metadata / "1.root.json").exists():
        return _found(store, desk, request, signatures)
    with store.lock():
        _check_repository(store, request)
        now = Present(store)
        pending = [item for item in request.items if not now.holds(item)]
        for item in pending:
            now.check_next(item)
        signed = {item.name: proven(item, now, request, signatures) for item in request.items}
        _check_media_snapshot(request, now, pending)
        new_targets = _new_targets(pending, now)
        _place(store, new_targets, request, builds)
        _publish_online(store, desk, now, pending, signed)
        _publish_media(store, desk, pending, signed)
    return Adopted(
        items=tuple(item.name for item in pending), targets=tuple(target.path for target in new_targets)
    )


def _found(store: Store, desk: Desk, request: Request, signatures: Sequence[ItemSignature]) -> Adopted:
    signed = {item.name: proven(item, None, request, signatures) for item in request.items}
    found(store.directory, desk, request, signed)
    return Adopted(items=tuple(item.name for item in request.items), targets=())


def _check_repository(store: Store, request: Request) -> None:
    for side, wanted in request.roots.items():
        place = store if side == Side.ONLINE else store.media
        found = hashlib.sha256(place.read("1.root.json")).hexdigest()
        if found != wanted:
            raise StaleRequestError(
                f"{place.metadata}: its first root has sha256 {found[:16]}, the request is for the repository {wanted[:16]}"
            )


def _check_media_snapshot(request: Request, now: Present, pending: Sequence[Item]) -> None:
    """The media snapshot has to name what will be there: other roles may have been published since it was staged."""
    item = request.item(Side.MEDIA, "snapshot")
    if item is None or item not in pending:
        return
    wanted = {name: meta.version for name, meta in media_meta(now.online).items()}
    wanted |= {f"{one.role}.json": one.version for one in pending if f"{one.role}.json" in wanted}
    signed = item.signed()
    found = {name: meta.version for name, meta in signed.meta.items()} if isinstance(signed, Snapshot) else {}
    if found != wanted:
        raise StaleRequestError(
            f"{item.name}: other roles were published since the request was made, and it does not name them; stage it "
            "again. Nothing was published"
        )


def _new_targets(pending: Sequence[Item], now: Present) -> list[TargetFile]:
    found = []
    for item in pending:
        signed = item.signed()
        present = now.metadata(item)
        if isinstance(signed, Targets):
            old = (
                present.signed.targets if present is not None and isinstance(present.signed, Targets) else {}
            )
            found += [target for path, target in sorted(signed.targets.items()) if old.get(path) != target]
    return found


def _place(store: Store, targets: Sequence[TargetFile], request: Request, builds: Sequence[Path]) -> None:
    """Put the files of new targets in place, under names that nothing knows yet."""
    for target in targets:
        if set(target.hashes) != {"sha256"}:
            raise InputError(f"{target.path}: expected exactly one hash, sha256; nothing was published")
        data = request.files.get(target.path)
        if data is not None:
            store.place_bytes(data, target)
            continue
        candidates = [build / part_name(target.path) for build in builds]
        source = next((path for path in candidates if path.is_file()), None)
        if source is not None:
            store.place_target(source, target)
        elif not store.target_path(target).is_file():
            raise InputError(
                f"{target.path}: its file is neither in the request nor in a build directory; give the directory that "
                "`build` wrote. Nothing was published"
            )


def _publish_online(
    store: Store, desk: Desk, now: Present, pending: Sequence[Item], signed: Mapping[str, Metadata[Any]]
) -> None:
    items = [item for item in pending if item.side is Side.ONLINE]
    if not items:
        return
    state = now.online
    files: dict[str, bytes] = {}
    for item in sorted(items, key=lambda one: (one.role == "root", one.role == "targets")):
        metadata = signed[item.name]
        data = metadata.to_bytes()
        files[f"{item.version}.{item.role}.json"] = data
        _replace(state, item.role, metadata)
        if item.role != "root":
            state.snapshot.signed.meta[f"{item.role}.json"] = describe(item.version, data)
    # A new root may have new online keys: snapshot is signed again even if no targets changed.
    files.update(prepare_online(state, desk, renew_snapshot=True))
    write_files(store, files, drop=expired_snapshots(store, state, desk.clock))


def _publish_media(
    store: Store, desk: Desk, pending: Sequence[Item], signed: Mapping[str, Metadata[Any]]
) -> None:
    items = [item for item in pending if item.side is Side.MEDIA]
    if not items:
        return
    media, online = store.media.load(), store.load()
    files: dict[str, bytes] = {}
    for role in ("targets", *online.delegated):
        name = f"{online.targets_role(role).signed.version}.{role}.json"
        files[name] = store.read(name)
    order = ["root", "snapshot", "timestamp"]
    for item in sorted(items, key=lambda one: order.index(one.role)):
        name = "timestamp.json" if item.role == "timestamp" else f"{item.version}.{item.role}.json"
        files[name] = signed[item.name].to_bytes()
        _replace(media, item.role, signed[item.name])
    write_files(store.media, files, drop=expired_snapshots(store.media, media, desk.clock))


def _replace(state: State, role: str, metadata: Metadata[Any]) -> None:
    if role in state.delegated:
        state.delegated[role] = metadata
    else:
        setattr(state, role, metadata)
