"""A repository whose keys never met: the first root is staged over public keys, signed by people where they are, then published.

`init` with secret keys is for trials and for a ceremony on one offline machine; this is the way for a product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key
from tuf.api.metadata import Metadata, MetaFile

from tidewaiter_release.errors import KeyFileError, RepositoryError
from tidewaiter_release.repository.ceremony import first_states, made_beside, make_first
from tidewaiter_release.repository.changes import summary
from tidewaiter_release.repository.keys import PUBLIC_SUFFIX, load_public
from tidewaiter_release.repository.media import media_meta
from tidewaiter_release.repository.request import TOOL, Request, write_request
from tidewaiter_release.repository.roles import ROLES, RoleSpec, Side
from tidewaiter_release.repository.signing import Calendar, Desk, describe, prepare_online, write_files
from tidewaiter_release.repository.stage import SideRole, item_of
from tidewaiter_release.repository.store import State, Store


def stage_first(public: Path, out: Path, *, calendar: Calendar) -> Request:
    """Make the signing request for a new repository.

    Args:
        public: Folder with `<role>-<anything>.pub.pem` for every role: as many as the role has keys.

    Raises:
        KeyFileError: Keys are missing, too many, or given to two roles.
    """
    listed = _load_all(public)
    online, media = first_states(calendar, listed.__getitem__)
    for metadata in (online.targets, *online.delegated.values()):
        metadata.signed.version = 1
    media.snapshot.signed.version = media.timestamp.signed.version = 1
    media.snapshot.signed.meta = media_meta(online)
    media.timestamp.signed.snapshot_meta = MetaFile(1)
    wanted: list[SideRole] = [(Side.ONLINE, "root"), (Side.MEDIA, "root"), (Side.ONLINE, "targets")]
    wanted += [(Side.ONLINE, role) for role in online.delegated]
    wanted += [(Side.MEDIA, "snapshot"), (Side.MEDIA, "timestamp")]
    states = {Side.ONLINE: online, Side.MEDIA: media}
    items = [
        item_of(states[side], role, _delegators(states, side, role), present=None) for side, role in wanted
    ]
    made_utc = f"{calendar.clock.now_utc():%Y-%m-%dT%H:%M:%SZ}"
    draft = Request(digest="", made_utc=made_utc, tool=TOOL, roots={}, items=tuple(items), files={})
    text = "\n".join(summary(draft)) + "\n"
    return write_request(out, made_utc=made_utc, roots={}, items=items, files={}, summary=text)


def founds(request: Request) -> bool:
    """Whether a request is for a new repository."""
    root = request.item(Side.ONLINE, "root")
    return root is not None and root.version == 1


def found(directory: Path, desk: Desk, request: Request, signed: Mapping[str, Metadata[Any]]) -> None:
    """Make the repository of a request whose signatures are proven to be enough; it appears whole or not at all.

    Raises:
        ReleaseToolError: Items are missing, or the keys of the online signer.
    """
    online, media = _state(request, signed, Side.ONLINE, desk), _state(request, signed, Side.MEDIA, desk)
    files: dict[str, bytes] = {}
    for role in (*online.delegated, "targets"):
        data = online.targets_role(role).to_bytes()
        files[f"1.{role}.json"] = data
        online.snapshot.signed.meta[f"{role}.json"] = describe(1, data)
        if online.targets_role(role).signed.targets:
            raise RepositoryError(f"{role}-1: names targets; a new repository has none yet")
    copies = dict(files)
    first = {
        "1.root.json": online.root.to_bytes(),
        **files,
        **prepare_online(online, desk, renew_snapshot=True),
    }
    with made_beside(directory, mode=0o755) as new:
        store = Store(new)
        make_first(store, first)
        write_files(
            store.media,
            {
                **copies,
                "1.root.json": media.root.to_bytes(),
                "1.snapshot.json": media.snapshot.to_bytes(),
                "timestamp.json": media.timestamp.to_bytes(),
            },
        )
        store.load()
        store.media.load()


def _state(request: Request, signed: Mapping[str, Metadata[Any]], side: Side, desk: Desk) -> State:
    try:
        roles = {item.role: signed[item.name] for item in request.items if item.side in (side, Side.ONLINE)}
        own = {item.role: signed[item.name] for item in request.items if item.side is side}
        drafts, _ = first_states(desk, lambda spec: [])
        names = list(drafts.delegated)
        return State(
            root=own["root"],
            timestamp=own["timestamp"] if side is Side.MEDIA else drafts.timestamp,
            snapshot=own["snapshot"] if side is Side.MEDIA else drafts.snapshot,
            targets=roles["targets"],
            delegated={name: roles[name] for name in names},
            side=side,
        )
    except KeyError as err:
        raise RepositoryError(
            f"the request has no item of role {err}; no repository can be made of it"
        ) from err


def _delegators(states: Mapping[Side, State], side: Side, role: str) -> Sequence[Any]:
    online = states[Side.ONLINE]
    if role in online.delegated:
        return [online.targets.signed]
    if role == "targets":
        return [states[Side.ONLINE].root.signed, states[Side.MEDIA].root.signed]
    return [states[side].root.signed]


def _load_all(public: Path) -> Mapping[RoleSpec, list[Key]]:
    owners: dict[str, Path] = {}
    listed: dict[RoleSpec, list[Key]] = {}
    for spec in ROLES.values():
        paths = sorted(public.glob(f"{spec.name}-*{PUBLIC_SUFFIX}"))
        if len(paths) != spec.keys:
            raise KeyFileError(
                f"{public}: {len(paths)} public keys called {spec.name}-*{PUBLIC_SUFFIX}, the role has {spec.keys}"
            )
        listed[spec] = [load_public(path) for path in paths]
        for path, key in zip(paths, listed[spec], strict=True):
            other = owners.setdefault(str(sorted(key.keyval.items())), path)
            if other != path:
                raise KeyFileError(f"{path}: is the same key as {other}; one stolen key would count twice")
    return listed
