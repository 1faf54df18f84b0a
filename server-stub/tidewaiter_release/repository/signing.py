"""Signs changed roles and puts them in place: everything is signed in memory before the first byte is written.

Order: delegated roles, targets, a new root, snapshot, and timestamp.json last; `Store.put` shows all of it at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, Targets
from tuf.api.serialization import DeserializationError

from tidewaiter_release.errors import ThresholdError
from tidewaiter_release.repository import keys
from tidewaiter_release.repository.roles import ROLES, Side
from tidewaiter_release.repository.store import State, Store


class WallClock(Protocol):
    """Now, for expiry times. A test's clock decides how old a repository is."""

    def now_utc(self) -> datetime: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Calendar:
    """When something is signed, and for how long."""

    clock: WallClock
    lifetimes: Mapping[str, timedelta] = field(default_factory=dict)
    """Overrides of the table, by role name."""

    def lifetime(self, role: str, *, side: Side = Side.ONLINE) -> timedelta:
        """How long metadata of this role lives."""
        name = side.desk_name(role)
        return self.lifetimes.get(name, ROLES[name].lifetime)

    def expires(self, role: str, *, side: Side = Side.ONLINE) -> datetime:
        """When metadata of this role expires if it is signed now."""
        return self.clock.now_utc().replace(microsecond=0) + self.lifetime(role, side=side)


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk(Calendar):
    """A calendar with keys at hand."""

    keys: Path

    def has_keys(self, role: str, delegator: Root | Targets, *, side: Side = Side.ONLINE) -> bool:
        """Whether enough keys of the role are at hand.

        Raises:
            KeyFileError: A key file cannot be used.
        """
        wanted = delegator.get_delegated_role(role)
        found = keys.signers(self.keys, side.desk_name(role), keyids=wanted.keyids, threshold=0)
        return len(found) >= wanted.threshold

    def sign(
        self, role: str, metadata: Metadata[Any], delegator: Root | Targets, *, side: Side = Side.ONLINE
    ) -> bytes:
        """The bytes of `metadata` with the signatures of every key of its role that is at hand.

        Raises:
            ThresholdError: Too few keys.
            KeyFileError: A key file cannot be used.
        """
        metadata.signatures.clear()
        self.add_signatures(role, metadata, delegator, side=side)
        return metadata.to_bytes()

    def add_signatures(
        self, role: str, metadata: Metadata[Any], delegator: Root | Targets, *, side: Side = Side.ONLINE
    ) -> None:
        """Add the signatures that `delegator` asks for and check that they are enough."""
        wanted, name = delegator.get_delegated_role(role), side.desk_name(role)
        for signer in keys.signers(self.keys, name, keyids=wanted.keyids, threshold=wanted.threshold):
            metadata.sign(signer, append=True)
        try:
            delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except UnsignedMetadataError as err:
            raise ThresholdError(f"role {name}: {err}; nothing was published") from err


def commit(store: Store, state: State, desk: Desk, *, changed: Collection[str]) -> None:
    """Give every role in `changed` a new version and expiry, then a new snapshot and timestamp.

    Args:
        changed: Targets roles whose `signed` part the caller has changed; empty for a mere refresh.

    Raises:
        ReleaseToolError: Nothing was written.
    """
    files = prepare(state, desk, changed=changed)
    write_files(store, files, drop=expired_snapshots(store, state, desk.clock))


def prepare(state: State, desk: Desk, *, changed: Collection[str]) -> dict[str, bytes]:
    """The new metadata files by name, in the order in which they must be written."""
    files: dict[str, bytes] = {}
    for role in sorted(changed, key=lambda name: name == "targets"):
        metadata = state.targets_role(role)
        metadata.signed.version += 1
        metadata.signed.expires = desk.expires(role)
        delegator = state.root.signed if role == "targets" else state.targets.signed
        data = desk.sign(role, metadata, delegator)
        files[f"{metadata.signed.version}.{role}.json"] = data
        state.snapshot.signed.meta[f"{role}.json"] = describe(metadata.signed.version, data)
    files.update(prepare_online(state, desk, renew_snapshot=bool(changed) or _half_spent(state, desk)))
    return files


def prepare_online(state: State, desk: Desk, *, renew_snapshot: bool) -> dict[str, bytes]:
    """New timestamp and, if asked for, new snapshot, of whichever side `state` is."""
    files: dict[str, bytes] = {}
    side, root = state.side, state.root.signed
    if renew_snapshot:
        snapshot = state.snapshot.signed
        snapshot.version += 1
        snapshot.expires = desk.expires("snapshot", side=side)
        data = desk.sign("snapshot", state.snapshot, root, side=side)
        files[f"{snapshot.version}.snapshot.json"] = data
        state.timestamp.signed.snapshot_meta = describe_on(side, snapshot.version, data)
    state.timestamp.signed.version += 1
    state.timestamp.signed.expires = desk.expires("timestamp", side=side)
    files["timestamp.json"] = desk.sign("timestamp", state.timestamp, root, side=side)
    return files


def write_files(store: Store, files: Mapping[str, bytes], *, drop: Collection[str] = ()) -> None:
    """Put the files in place, all of them or none.

    Args:
        drop: Names of metadata files that go with the same step.
    """
    store.put(files, drop=drop)


def expired_snapshots(store: Store, state: State, clock: WallClock) -> list[str]:
    """Superseded snapshots that have expired: nobody can accept one any more, while a client in the middle of a session, or
    behind a slow mirror, may still ask for a younger one. Every root is kept for ever, and so is every targets file."""
    found = []
    present = f"{state.snapshot.signed.version}.snapshot.json"
    for path in store.metadata.glob("*.snapshot.json"):
        if path.name == present:
            continue
        try:
            old = Metadata[Snapshot].from_bytes(path.read_bytes())
        except (OSError, DeserializationError):
            continue  # `lint` reports what is no metadata; removing it would hide it
        if old.signed.expires < clock.now_utc():
            found.append(path.name)
    return sorted(found)


def describe(version: int, data: bytes) -> MetaFile:
    """How one metadata file names another: version, length, sha256."""
    return MetaFile.from_data(version, data, ["sha256"])


def describe_on(side: Side, version: int, data: bytes) -> MetaFile:
    """The same on the side that is asked for.

    On the media side the version alone (TUF lets length and hash be absent): the offline keys of a release, its media
    snapshot and its media timestamp then sign in one sitting, none of them waiting for the signatures of another.
    """
    return describe(version, data) if side is Side.ONLINE else MetaFile(version)


def _half_spent(state: State, desk: Desk) -> bool:
    """Whether less than half of a snapshot's life is left: each refresh would otherwise leave one more file for ever."""
    return state.snapshot.signed.expires - desk.clock.now_utc() < desk.lifetime("snapshot") / 2
