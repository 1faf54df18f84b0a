"""What the verified metadata says, read from the files python-tuf has just verified and kept. Child only.

python-tuf does not tell which role signed a target, nor the versions and keys it verified; its private attributes are not
touched. The walk over delegations is its own, over the same files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from tidewaiter_core.clock import format_utc
from tuf.api.metadata import DelegatedRole, Metadata, Root, Signed, Snapshot, Targets, Timestamp

from tidewaiter_updater.errors import TrustError
from tidewaiter_updater.trust_versions import RoleFloor, Versions

Chain = tuple[str, ...]
"""The roles from the top-level `targets` to the one that signs."""

WALK_LIMIT: Final = 32
"""Delegated roles visited for one target, as in python-tuf."""
_S = TypeVar("_S", bound=Signed)


class VerifiedFiles:
    """The metadata directory, after a refresh that went well."""

    def __init__(self, metadata_dir: Path) -> None:
        self._dir = metadata_dir

    def root(self) -> Root:
        return self._signed("root", Root)

    def targets(self, role: str) -> Targets:
        """The metadata of a targets role; only of one that this session has walked over."""
        return self._signed(role, Targets)

    def signer(self, path: str) -> Chain:
        """The roles that lead to the one python-tuf took `path` from; empty if none signs it."""
        for chain, signed in self.walk(path):
            if path in signed.targets:
                return chain
        return ()

    def walk(self, path: str) -> Iterator[tuple[Chain, Targets]]:
        """The roles that were asked for `path`, in their order, up to the one that signs it: preorder, depth first."""
        visits: list[Chain] = [("targets",)]
        visited: set[str] = set()
        while visits and len(visited) <= WALK_LIMIT:
            chain = visits.pop()
            if chain[-1] in visited:
                continue
            visited.add(chain[-1])
            signed = self.targets(chain[-1])
            yield chain, signed
            if path in signed.targets:
                return
            if signed.delegations is None:
                continue
            children: list[Chain] = []
            for role, terminating in signed.delegations.get_roles_for_target(path):
                children.append((*chain, role))
                if terminating:
                    visits.clear()
                    break
            visits.extend(reversed(children))

    def versions(self) -> Versions:
        """Version and key set of every role that root, snapshot and targets name."""
        root, targets, snapshot = self.root(), self.targets("targets"), self._signed("snapshot", Snapshot)
        versions = {"root": root.version, "timestamp": self._signed("timestamp", Timestamp).version}
        versions |= {"snapshot": snapshot.version, "targets": targets.version}
        keys = {role: _key_set(root, root.roles[role].keyids) for role in versions}
        for name, role in _delegations(targets).items():
            meta = snapshot.meta.get(f"{name}.json")
            if meta is not None:
                versions[name] = meta.version
                keys[name] = _key_set(targets.delegations, role.keyids)
        return {role: RoleFloor(version=version, keys=keys[role]) for role, version in versions.items()}

    def delegated(self) -> frozenset[str]:
        """The roles that the top-level `targets` delegates to."""
        return frozenset(_delegations(self.targets("targets")))

    def expiries(self, used: set[str]) -> Iterator[tuple[str, Signed, str]]:
        """The top-level roles and the `used` ones, each with its file name and its expiry in words."""
        signed: dict[str, Signed] = {
            "root": self.root(),
            "timestamp": self._signed("timestamp", Timestamp),
            "snapshot": self._signed("snapshot", Snapshot),
        }
        signed |= {role: self.targets(role) for role in sorted(used)}
        for role, one in signed.items():
            yield f"{role}.json", one, format_utc(one.expires)

    def _signed(self, role: str, kind: type[_S]) -> _S:
        name = f"{quote(role, '')}.json"
        metadata = Metadata[Any].from_bytes((self._dir / name).read_bytes())
        if not isinstance(metadata.signed, kind):
            raise TrustError(f"{self._dir}/{name}: expected {kind.__name__} metadata; nothing of it is used")
        return metadata.signed


def _delegations(targets: Targets) -> Mapping[str, DelegatedRole]:
    roles = targets.delegations.roles if targets.delegations is not None else None
    return roles or {}


def _key_set(delegator: Any, keyids: list[str]) -> str:
    """A digest of keys, not of their names: a key id is only what the metadata calls it."""
    keys = sorted(
        json.dumps([key.keytype, key.scheme, key.keyval], sort_keys=True)
        for keyid in keyids
        if (key := delegator.keys.get(keyid)) is not None
    )
    return hashlib.sha256("\n".join(keys).encode("utf-8")).hexdigest()
