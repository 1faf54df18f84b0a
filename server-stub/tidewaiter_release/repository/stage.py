"""`stage`: changes the repository in memory and writes down what has to be signed for it; nothing is published.

Online snapshot and timestamp are not part of a request: `publish` signs them, with the keys of the online signer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tuf.api.metadata import Key, MetaFile, Root, Targets
from tuf.api.serialization.json import CanonicalJSONSerializer

from tidewaiter_release.errors import InputError
from tidewaiter_release.repository.changes import summary
from tidewaiter_release.repository.keys import name_of
from tidewaiter_release.repository.media import has_media, is_current, media_meta
from tidewaiter_release.repository.request import TOOL, Item, Request, Signed, write_request
from tidewaiter_release.repository.roles import Side
from tidewaiter_release.repository.signing import Calendar
from tidewaiter_release.repository.store import State, Store

SideRole = tuple[Side, str]


class Drafts:
    """Both sides of a repository, to be changed in memory."""

    def __init__(self, store: Store) -> None:
        """Load the repository.

        Raises:
            RepositoryError: It does not verify.
        """
        self.store = store
        self.online = store.load()
        self.media = store.media.load() if has_media(store) else None
        self.touched: set[SideRole] = set()
        self.files: dict[str, bytes] = {}
        """Documents that the request carries, by target path."""

    def touch(self, side: Side, role: str) -> None:
        """Note that a role changes: it gets the next version and a new life."""
        self.touched.add((side, role))

    def state(self, side: Side) -> State:
        """One side.

        Raises:
            InputError: The repository has no such side.
        """
        state = self.online if side is Side.ONLINE else self.media
        if state is None:
            raise InputError(f"{self.store.directory}: has no media side")
        return state


Change = Callable[[Drafts], None]


def stage(store: Store, out: Path, change: Change, *, calendar: Calendar, media: bool = True) -> Request:
    """Make the signing request for one change.

    Args:
        media: Also sign the change for media; without, sticks have it only after a request of their own.

    Raises:
        ReleaseToolError: The change is refused, or there is nothing to sign.
    """
    with store.lock():
        before, drafts = Drafts(store), Drafts(store)
        change(drafts)
        _number(drafts, calendar, media=media)
        if not drafts.touched:
            raise InputError(f"{store.directory}: nothing changes, so there is nothing to sign")
        items = [_item(before, drafts, side, role) for side, role in _ordered(drafts)]
        roots: dict[str, str] = {Side.ONLINE: _first_root(store)}
        if drafts.media is not None:
            roots[Side.MEDIA] = _first_root(store.media)
    made_utc = f"{calendar.clock.now_utc():%Y-%m-%dT%H:%M:%SZ}"
    draft = Request(
        digest="", made_utc=made_utc, tool=TOOL, roots=roots, items=tuple(items), files=drafts.files
    )
    text = "\n".join(summary(draft)) + "\n"
    return write_request(out, made_utc=made_utc, roots=roots, items=items, files=drafts.files, summary=text)


def _number(drafts: Drafts, calendar: Calendar, *, media: bool) -> None:
    """Give every touched role its next version and life; then media's snapshot over the result."""
    for side, role in drafts.touched:
        signed = _signed(drafts.state(side), role)
        signed.version += 1
        signed.expires = calendar.expires(role, side=side)
    wanted = {(Side.MEDIA, "snapshot"), (Side.MEDIA, "timestamp")}
    state = drafts.media
    on_media = any(side is Side.MEDIA for side, _ in drafts.touched)
    if state is None or not (media or on_media):
        return
    moved = not is_current(state, drafts.online) or on_media
    if not moved:
        return
    for side, role in wanted - drafts.touched:
        signed = _signed(state, role)
        signed.version += 1
        signed.expires = calendar.expires(role, side=side)
    drafts.touched |= wanted
    state.snapshot.signed.meta = media_meta(drafts.online)
    state.timestamp.signed.snapshot_meta = MetaFile(state.snapshot.signed.version)


def _ordered(drafts: Drafts) -> list[SideRole]:
    """Roots first, timestamp last, as a reader meets them."""
    order = ["root", "targets", *drafts.online.delegated, "snapshot", "timestamp"]
    return sorted(drafts.touched, key=lambda one: (order.index(one[1]), one[0] is Side.MEDIA))


def _item(before: Drafts, drafts: Drafts, side: Side, role: str) -> Item:
    state = drafts.state(side)
    version = _signed(state, role).version
    name = "timestamp.json" if role == "timestamp" else f"{version - 1}.{role}.json"
    store = before.store if side is Side.ONLINE else before.store.media
    return item_of(state, role, delegators(before, drafts, side, role), present=store.read(name))


def item_of(state: State, role: str, found: Sequence[Root | Targets], *, present: bytes | None) -> Item:
    """The item of a role, with everyone who may sign it."""
    signed = _signed(state, role)
    thresholds = dict.fromkeys(delegator.get_delegated_role(role).threshold for delegator in found)
    return Item(
        side=state.side,
        role=role,
        version=signed.version,
        data=CanonicalJSONSerializer().serialize(signed),
        keys={keyid: name_of(key) for keyid, key in all_keys(found, role).items()},
        thresholds=tuple(thresholds),
        present=present,
    )


def delegators(before: Drafts, drafts: Drafts, side: Side, role: str) -> list[Root | Targets]:
    """Whoever says which keys sign a role: all of them have to be satisfied.

    A root by the one before and by itself; targets.json, the same file on both sides, by both roots.
    """
    if role == "root":
        return [before.state(side).root.signed, drafts.state(side).root.signed]
    if role in drafts.online.delegated:
        return [drafts.online.targets.signed]
    if role == "targets":
        found: list[Root | Targets] = [drafts.online.root.signed]
        if drafts.media is not None:
            found.append(drafts.media.root.signed)
        return found
    return [drafts.state(side).root.signed]


def all_keys(found: Sequence[Root | Targets], role: str) -> Mapping[str, Key]:
    """Every key that may sign a role."""
    return {
        keyid: delegator.get_key(keyid)
        for delegator in found
        for keyid in delegator.get_delegated_role(role).keyids
    }


def _signed(state: State, role: str) -> Signed:
    if role == "root":
        return state.root.signed
    if role == "snapshot":
        return state.snapshot.signed
    if role == "timestamp":
        return state.timestamp.signed
    return state.targets_role(role).signed


def _first_root(store: Store) -> str:
    return hashlib.sha256(store.read("1.root.json")).hexdigest()
