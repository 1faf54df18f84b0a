"""The rare acts: making a repository, and giving a role new keys."""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Collection, Iterator, Mapping
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
from tidewaiter_release.repository.roles import DELEGATED, ROLES, ROOT, TOP_LEVEL, Side
from tidewaiter_release.repository.signing import Desk, WallClock, prepare, prepare_online, write_files
from tidewaiter_release.repository.store import State, Store, make_directories, sync_directories


def init_repository(
    directory: Path, keys_directory: Path, *, clock: WallClock, desk: Desk | None = None
) -> Store:
    """Make keys, root, delegations and an empty repository.

    Both directories appear only when they are complete: they are made beside their place and renamed.

    Raises:
        RepositoryError: One of them exists and is not empty.
    """
    with (
        _made_beside(keys_directory, mode=0o700) as new_keys,
        _made_beside(directory, mode=0o755) as new_repository,
    ):
        lifetimes = desk.lifetimes if desk is not None else {}
        drafting = Desk(keys=new_keys, clock=clock, lifetimes=lifetimes)
        store = Store(new_repository)
        for needed in (store.metadata, store.media.metadata, store.targets):
            make_directories(needed)
        state, files = _first_state(drafting)
        files.update(prepare(state, drafting, changed=[*state.delegated, "targets"]))
        write_files(store, files)
        media, root_bytes = _first_media_state(drafting, state)
        write_files(store.media, {"1.root.json": root_bytes})
        write_media(store, state, media, drafting)
    return Store(directory)


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


def _first_state(desk: Desk) -> tuple[State, dict[str, bytes]]:
    """Root 1, and the other roles as version 0 drafts: `prepare` gives each its first version."""
    root = Root(version=1, expires=desk.expires("root"), consistent_snapshot=True)
    for spec in TOP_LEVEL:
        public = keys.generate(desk.keys, spec.name, spec.keys)
        root.roles[spec.name] = Role([], spec.threshold)
        for key in public:
            root.add_key(key, spec.name)
    signed_root = Metadata(root)
    data = desk.sign(ROOT.name, signed_root, root)
    targets = Targets(expires=desk.expires("targets"), delegations=_delegations(desk))
    delegated = {spec.name: Metadata(Targets(expires=desk.expires(spec.name))) for spec in DELEGATED}
    snapshot = Snapshot(expires=desk.expires("snapshot"))
    timestamp = Timestamp(expires=desk.expires("timestamp"))
    for draft in (targets, snapshot, timestamp, *(metadata.signed for metadata in delegated.values())):
        draft.version = 0
    state = State(
        root=signed_root,
        timestamp=Metadata(timestamp),
        snapshot=Metadata(snapshot),
        targets=Metadata(targets),
        delegated=delegated,
    )
    return state, {"1.root.json": data}


def _first_media_state(desk: Desk, state: State) -> tuple[State, bytes]:
    """Root 1 of the media side, over the targets of `state`: the same targets keys, everything else of its own."""
    root = Root(version=1, expires=desk.expires("root", side=Side.MEDIA), consistent_snapshot=True)
    for role in ("root", "snapshot", "timestamp"):
        spec = Side.MEDIA.spec(role)
        root.roles[role] = Role([], spec.threshold)
        for key in keys.generate(desk.keys, spec.name, spec.keys):
            root.add_key(key, role)
    online = state.root.signed
    root.roles["targets"] = Role([], online.roles["targets"].threshold)
    for keyid in online.roles["targets"].keyids:
        root.add_key(online.keys[keyid], "targets")
    signed_root = Metadata(root)
    data = desk.sign("root", signed_root, root, side=Side.MEDIA)
    snapshot = Snapshot(expires=desk.expires("snapshot", side=Side.MEDIA))
    timestamp = Timestamp(expires=desk.expires("timestamp", side=Side.MEDIA))
    for draft in (snapshot, timestamp):
        draft.version = 0
    return State(
        root=signed_root,
        timestamp=Metadata(timestamp),
        snapshot=Metadata(snapshot),
        targets=state.targets,
        delegated=state.delegated,
        side=Side.MEDIA,
    ), data


def _delegations(desk: Desk) -> Delegations:
    public: dict[str, Key] = {}
    roles: dict[str, DelegatedRole] = {}
    for spec in DELEGATED:
        made = keys.generate(desk.keys, spec.name, spec.keys)
        public.update({key.keyid: key for key in made})
        roles[spec.name] = DelegatedRole(
            name=spec.name,
            keyids=[key.keyid for key in made],
            threshold=spec.threshold,
            terminating=True,
            paths=list(spec.paths),
        )
    return Delegations(keys=public, roles=roles)


@contextlib.contextmanager
def _made_beside(directory: Path, *, mode: int) -> Iterator[Path]:
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
