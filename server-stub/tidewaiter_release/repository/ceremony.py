"""The rare acts: making a repository, and giving a role new keys."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    Role,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from tidewaiter_release.errors import RepositoryError
from tidewaiter_release.repository import keys
from tidewaiter_release.repository.media import write_media
from tidewaiter_release.repository.roles import DELEGATED, ROLES, RoleSpec, Side
from tidewaiter_release.repository.signing import (
    Calendar,
    Desk,
    WallClock,
    prepare,
    prepare_online,
    write_files,
)
from tidewaiter_release.repository.store import State, Store, make_directories, sync_directories

KeySource = Callable[[RoleSpec], list[Key]]
"""Gives the public keys of a role."""


def init_repository(
    directory: Path, keys_directory: Path, *, clock: WallClock, desk: Desk | None = None
) -> Store:
    """Make keys, root, delegations and an empty repository.

    Both directories appear only when they are complete: they are made beside their place and renamed.

    Raises:
        RepositoryError: One of them exists and is not empty.
    """
    with (
        made_beside(keys_directory, mode=0o700) as new_keys,
        made_beside(directory, mode=0o755) as new_repository,
    ):
        lifetimes = desk.lifetimes if desk is not None else {}
        drafting = Desk(keys=new_keys, clock=clock, lifetimes=lifetimes)
        store = Store(new_repository)
        state, media = first_states(drafting, lambda spec: keys.generate(new_keys, spec.name, spec.keys))
        root = drafting.sign("root", state.root, state.root.signed)
        files = {"1.root.json": root, **prepare(state, drafting, changed=[*state.delegated, "targets"])}
        make_first(store, files)
        media_root = drafting.sign("root", media.root, media.root.signed, side=Side.MEDIA)
        write_media(store, state, media, drafting, before_timestamp={"1.root.json": media_root})
    return Store(directory)


def make_first(store: Store, files: Mapping[str, bytes]) -> None:
    """The directories of a new repository, and the first online metadata."""
    for needed in (store.metadata, store.media.metadata, store.targets):
        make_directories(needed)
    write_files(store, files)


def rotate_keys(store: Store, desk: Desk, roles: Collection[str]) -> None:
    """Give top-level roles new keys under the next root, signed by the old root keys and the new ones.

    Names of the media side begin with `media-`. The targets role belongs to both sides, so both roots change with it;
    with no role at all the online root gets a new version and a new life.
    The old key files stay beside the new ones: a root's old keys have to sign its successor.

    Raises:
        ReleaseToolError: Too few old root keys, or the repository does not verify.
    """
    own = {name for name in roles if name.startswith("media-")}
    with store.lock():
        state = store.load()
        made = {name: _new_keys(desk, name) for name in roles}
        if set(roles) - own or not roles:
            _rotate_online(store, desk, state, {name: made[name] for name in roles if name not in own})
        if own or "targets" in made:
            for_media = {
                name.removeprefix("media-"): public
                for name, public in made.items()
                if name in own or name == "targets"
            }
            _rotate_media(store, desk, state, for_media)


def _rotate_online(store: Store, desk: Desk, state: State, made: Mapping[str, list[Key]]) -> None:
    root = _next_root(state, desk, made)
    files = prepare(state, desk, changed=["targets"] if "targets" in made else [])
    if "snapshot" in made and not any(name.endswith(".snapshot.json") for name in files):
        files = prepare_online(state, desk, renew_snapshot=True)
    timestamp = files.pop("timestamp.json")
    write_files(
        store, {**files, f"{root.version}.root.json": state.root.to_bytes(), "timestamp.json": timestamp}
    )


def _rotate_media(store: Store, desk: Desk, state: State, made: Mapping[str, list[Key]]) -> None:
    media = store.media.load()
    root = _next_root(media, desk, made)
    write_media(
        store, state, media, desk, before_timestamp={f"{root.version}.root.json": media.root.to_bytes()}
    )


def _next_root(state: State, desk: Desk, made: Mapping[str, list[Key]]) -> Root:
    """Turn the root of `state` into its successor, in memory."""
    before = copy.deepcopy(state.root.signed)
    root = state.root.signed
    for name, public in made.items():
        for keyid in list(root.roles[name].keyids):
            root.revoke_key(keyid, name)
        for key in public:
            root.add_key(key, name)
    root.version += 1
    root.expires = desk.expires("root", side=state.side)
    state.root.signatures.clear()
    desk.add_signatures("root", state.root, before, side=state.side)
    desk.add_signatures("root", state.root, root, side=state.side)
    return root


def _new_keys(desk: Desk, name: str) -> list[Key]:
    first = 1 + sum(1 for _ in desk.keys.glob(f"{name}-[0-9]*.pem"))
    return keys.generate(desk.keys, name, ROLES[name].keys, first=first)


def first_states(calendar: Calendar, keys_of: KeySource) -> tuple[State, State]:
    """Both sides of a new repository, unsigned: roots as version 1, the rest as version 0, to get its first version later."""
    public = {spec.name: keys_of(spec) for spec in ROLES.values()}
    online_root = Root(version=1, expires=calendar.expires("root"), consistent_snapshot=True)
    media_root = Root(version=1, expires=calendar.expires("root", side=Side.MEDIA), consistent_snapshot=True)
    for side, root in ((Side.ONLINE, online_root), (Side.MEDIA, media_root)):
        for name in ("root", "targets", "snapshot", "timestamp"):
            spec = side.spec(name)
            root.roles[name] = Role([], spec.threshold)
            for key in public[spec.name]:
                root.add_key(key, name)
    targets = Metadata(Targets(expires=calendar.expires("targets"), delegations=_delegations(public)))
    delegated = {spec.name: Metadata(Targets(expires=calendar.expires(spec.name))) for spec in DELEGATED}
    for draft in (targets, *delegated.values()):
        draft.signed.version = 0
    online, media = (
        _state(side, root, targets, delegated, calendar)
        for side, root in ((Side.ONLINE, online_root), (Side.MEDIA, media_root))
    )
    return online, media


def _state(
    side: Side,
    root: Root,
    targets: Metadata[Targets],
    delegated: dict[str, Metadata[Targets]],
    calendar: Calendar,
) -> State:
    snapshot = Snapshot(expires=calendar.expires("snapshot", side=side))
    timestamp = Timestamp(expires=calendar.expires("timestamp", side=side))
    snapshot.version = timestamp.version = 0
    return State(
        root=Metadata(root),
        timestamp=Metadata(timestamp),
        snapshot=Metadata(snapshot),
        targets=targets,
        delegated=delegated,
        side=side,
    )


def _delegations(public: Mapping[str, list[Key]]) -> Delegations:
    roles = {
        spec.name: DelegatedRole(
            name=spec.name,
            keyids=[key.keyid for key in public[spec.name]],
            threshold=spec.threshold,
            terminating=True,
            paths=list(spec.paths),
        )
        for spec in DELEGATED
    }
    listed = {key.keyid: key for spec in DELEGATED for key in public[spec.name]}
    return Delegations(keys=listed, roles=roles)


@contextlib.contextmanager
def made_beside(directory: Path, *, mode: int) -> Iterator[Path]:
    """A new directory that takes the name `directory` when the block ends well, and vanishes when it does not."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RepositoryError(f"{directory}: exists and is not empty; nothing was made")
    draft = directory.with_name(f".{directory.name}.init")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        yield draft
        draft.chmod(mode)
        sync_directories(draft, up_to=draft)
        draft.replace(directory)
        sync_directories(directory.parent, up_to=directory.parent)
    except OSError as err:
        raise RepositoryError(f"{directory}: cannot be made: {err}") from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)
