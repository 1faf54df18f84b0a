"""`publish --request`: signatures that came back become metadata, if they are enough. Nothing that the request says of itself
counts: keys and thresholds are those of the repository, or of a new root that the old one vouches for.

May be repeated: what is published already is left alone, what a crash left undone is done. Online first, media second; each side
changes in one step, so after a cut each of them is the old one or the new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer import Key, Signature
from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from tidewaiter_release.build import part_name
from tidewaiter_release.errors import InputError, RepositoryError, StaleRequestError, ThresholdError
from tidewaiter_release.repository.founding import found, founds
from tidewaiter_release.repository.keys import name_of
from tidewaiter_release.repository.media import has_media, media_meta
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
from tidewaiter_release.repository.stage import all_keys
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
        now = _Present(store)
        pending = [item for item in request.items if not now.holds(item)]
        for item in pending:
            now.check_next(item)
        signed = {item.name: _metadata(item, now, request, signatures) for item in request.items}
        _check_media_snapshot(request, now, pending)
        new_targets = _new_targets(pending, now)
        _place(store, new_targets, request, builds)
        _publish_online(store, desk, now, pending, signed)
        _publish_media(store, desk, pending, signed)
    return Adopted(
        items=tuple(item.name for item in pending), targets=tuple(target.path for target in new_targets)
    )


def _found(store: Store, desk: Desk, request: Request, signatures: Sequence[ItemSignature]) -> Adopted:
    signed = {item.name: _metadata(item, None, request, signatures) for item in request.items}
    found(store.directory, desk, request, signed)
    return Adopted(items=tuple(item.name for item in request.items), targets=())


class _Present:
    """The repository as it is, and the documents of the request over it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.online = store.load()
        self.media = store.media.load() if has_media(store) else None

    def state(self, side: Side) -> State:
        state = self.online if side is Side.ONLINE else self.media
        if state is None:
            raise RepositoryError(f"{self.store.directory}: has no media side, but the request is for one")
        return state

    def metadata(self, item: Item) -> Metadata[Any] | None:
        state = self.state(item.side)
        if item.role not in ("root", "targets", "snapshot", "timestamp", *state.delegated):
            return None
        return dict(state.all())[item.role]

    def root(self, side: Side, version: int) -> Root:
        """A root of the past.

        Raises:
            StaleRequestError: There is none of this version.
        """
        roots = (self.store if side is Side.ONLINE else self.store.media).roots()
        if not 1 <= version <= len(roots):
            raise StaleRequestError(f"{side} side: has roots 1..{len(roots)}, the request is over {version}")
        return roots[version - 1].signed

    def holds(self, item: Item) -> bool:
        """Whether exactly this document is published."""
        present = self.metadata(item)
        return present is not None and CanonicalJSONSerializer().serialize(present.signed) == item.data

    def check_next(self, item: Item) -> None:
        """Refuse an item that was staged over another state than this one."""
        present = self.metadata(item)
        found = "none" if present is None else str(present.signed.version)
        same = present is not None and item.present is not None and self._bytes(item) == item.present
        if not same or present is None or present.signed.version + 1 != item.version:
            raise StaleRequestError(
                f"{item.name}: the repository holds {item.desk_name} version {found} and has moved on since the request "
                "was made; stage it again. Nothing was published"
            )

    def _bytes(self, item: Item) -> bytes:
        store = self.store if item.side is Side.ONLINE else self.store.media
        name = "timestamp.json" if item.role == "timestamp" else f"{item.version - 1}.{item.role}.json"
        return store.read(name)


def _check_repository(store: Store, request: Request) -> None:
    for side, wanted in request.roots.items():
        place = store if side == Side.ONLINE else store.media
        found = hashlib.sha256(place.read("1.root.json")).hexdigest()
        if found != wanted:
            raise StaleRequestError(
                f"{place.metadata}: its first root has sha256 {found[:16]}, the request is for the repository {wanted[:16]}"
            )


def _metadata(
    item: Item, now: _Present | None, request: Request, signatures: Sequence[ItemSignature]
) -> Metadata[Any]:
    """The item with its good signatures, proven to be enough for everyone who delegates to its role."""
    delegators = _delegators(item, now, request)
    keys = all_keys(delegators, item.role)
    metadata: Metadata[Any] = Metadata(item.signed())
    for one in signatures:
        if one.item == item.name and one.signature.keyid in keys:
            _check(item, keys[one.signature.keyid], one.signature)
            metadata.signatures[one.signature.keyid] = one.signature
    missing = list(dict.fromkeys(_missing(item, delegators, metadata)))
    if missing and (now is None or not now.holds(item)):
        raise ThresholdError(f"{'; '.join(missing)}. Nothing was published")
    return metadata


def _check(item: Item, key: Key, signature: Signature) -> None:
    try:
        key.verify_signature(signature, item.data)
    except (UnverifiedSignatureError, VerificationError) as err:
        raise InputError(
            f"{item.name}: the signature of {name_of(key)} is over other bytes or damaged; let them sign this request "
            "again. Nothing was published"
        ) from err


def _missing(item: Item, delegators: Sequence[Root | Targets], metadata: Metadata[Any]) -> list[str]:
    """One sentence per delegator that is not satisfied."""
    sentences = []
    for delegator in delegators:
        role = delegator.get_delegated_role(item.role)
        there = [keyid for keyid in role.keyids if keyid in metadata.signatures]
        lacking = role.threshold - len(there)
        if lacking > 0:
            others = [name_of(delegator.get_key(keyid)) for keyid in role.keyids if keyid not in there]
            sentences.append(
                f"{item.name}: {len(there)} of {role.threshold} signatures, {lacking} more of {', '.join(others)} "
                f"{'has' if lacking == 1 else 'have'} to sign"
            )
    return sentences


def _delegators(item: Item, now: _Present | None, request: Request) -> list[Root | Targets]:
    """Whoever says which keys sign the item; with `now` None the repository is yet to be made."""

    def document(side: Side, role: str) -> Root | Targets:
        changed = request.item(side, role)
        if changed is not None:
            signed = changed.signed()
        elif now is not None:
            signed = now.state(side).document(role)
        else:
            raise InputError(f"the request has no {side.desk_name(role)}; no repository can be made of it")
        if not isinstance(signed, Root | Targets):
            raise InputError(f"{item.name}: request.json has {role} where a root or targets belongs")
        return signed

    if item.role == "root":
        # The predecessor, also when this very root was published by an interrupted attempt.
        before = [] if now is None or item.version == 1 else [now.root(item.side, item.version - 1)]
        return [*before, document(item.side, "root")]
    if item.role == "targets":
        online = document(Side.ONLINE, "root")
        return [online, document(Side.MEDIA, "root")] if now is None or now.media is not None else [online]
    if item.role in ("snapshot", "timestamp"):
        return [document(Side.MEDIA, "root")]
    return [document(Side.ONLINE, "targets")]


def _check_media_snapshot(request: Request, now: _Present, pending: Sequence[Item]) -> None:
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


def _new_targets(pending: Sequence[Item], now: _Present) -> list[TargetFile]:
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
    store: Store, desk: Desk, now: _Present, pending: Sequence[Item], signed: Mapping[str, Metadata[Any]]
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
