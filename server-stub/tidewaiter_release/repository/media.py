"""The media side: the same targets under a second root, for sticks that are carried for weeks.

A stick is a normal TUF repository; nothing is waived for it. Only its snapshot and timestamp differ: signed by offline keys,
2 of 3, valid 90 days. Whatever is published online can be behind here until those keys are fetched, never ahead.

Source: update-engine.md section 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from tuf.api.metadata import MetaFile

from tidewaiter_release.errors import RepositoryError
from tidewaiter_release.repository.roles import Side
from tidewaiter_release.repository.signing import Desk, expired_snapshots, prepare_online, write_files
from tidewaiter_release.repository.store import State, Store


def has_media(store: Store) -> bool:
    """Whether the repository has a media side; one made by an early version of this tool has none."""
    return (store.media.metadata / "1.root.json").exists()


def renew_media(store: Store, desk: Desk) -> int:
    """Sign the present targets for media, under a new snapshot and timestamp; returns the timestamp version.

    Raises:
        ReleaseToolError: The media keys or the repository cannot be used; nothing was written.
    """
    with store.lock():
        media = _load(store)
        write_media(store, store.load(), media, desk)
        return media.timestamp.signed.version


def follow_media(store: Store, state: State, desk: Desk) -> bool:
    """After a change of `state`: the same for media if its keys are at hand; returns whether media is up to date.

    The caller holds the lock.
    """
    if not has_media(store):
        return False
    media = _load(store)
    if is_current(media, state):
        return True
    root = media.root.signed
    if not all(desk.has_keys(role, root, side=Side.MEDIA) for role in ("snapshot", "timestamp")):
        return False
    write_media(store, state, media, desk)
    return True


def is_current(media: State, state: State) -> bool:
    """Whether media names exactly the targets metadata of `state`."""
    return _versions(media) == _named(state)


def write_media(
    store: Store,
    state: State,
    media: State,
    desk: Desk,
    *,
    before_timestamp: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Copy the targets metadata of `state` to the media side and sign a snapshot over it.

    Args:
        before_timestamp: Further files, put in place just before the timestamp: a new root.
    """
    files: dict[str, bytes] = {}
    for name in _named(state):
        file = f"{state.targets_role(name).signed.version}.{name}.json"
        files[file] = store.read(file)
    media.snapshot.signed.meta = media_meta(state)
    signed = prepare_online(media, desk, renew_snapshot=True)
    timestamp = signed.pop("timestamp.json")
    files = {**files, **signed, **before_timestamp, "timestamp.json": timestamp}
    write_files(store.media, files, drop=expired_snapshots(store.media, media, desk.clock))


def media_meta(state: State) -> dict[str, MetaFile]:
    """What a media snapshot over `state` says."""
    return {f"{name}.json": MetaFile(version) for name, version in _named(state).items()}


def _named(state: State) -> dict[str, int]:
    return {
        "targets": state.targets.signed.version,
        **{name: metadata.signed.version for name, metadata in state.delegated.items()},
    }


def _versions(media: State) -> dict[str, int]:
    return {name.removesuffix(".json"): meta.version for name, meta in media.snapshot.signed.meta.items()}


def _load(store: Store) -> State:
    if not has_media(store):
        raise RepositoryError(
            f"{store.media.metadata}: missing; this repository has no media side, so no stick can be made from it"
        )
    return store.media.load()
