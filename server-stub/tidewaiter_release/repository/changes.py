"""What a signing request would change, in lines for a person: derived from the canonical bytes that are signed, never from
what the request says of itself.

A line that begins with `!` is one to stop at: something that a plain release never does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

from tidewaiter_core.clock import parse_utc
from tidewaiter_core.log import escape
from tidewaiter_core.payload import PayloadError, Release
from tuf.api.metadata import Key, Metadata, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from tidewaiter_release.describe import release_lines
from tidewaiter_release.errors import InputError
from tidewaiter_release.repository.keys import name_of
from tidewaiter_release.repository.request import Item, Request, Signed
from tidewaiter_release.repository.roles import ROLES, path_matches

_CLOCK_SPARE = timedelta(hours=1)
_SMALL_BYTES = 2000


def summary(request: Request) -> list[str]:
    """All lines of a request, but its own digest: the file summary.txt is named by it."""
    lines = [f"signing request made {escape(request.made_utc)} by {escape(request.tool)}"]
    lines += [
        f"repository, {side} side: first root sha256 {digest}" for side, digest in request.roots.items()
    ]
    for item in request.items:
        lines += ["", *_item(item, request)]
    for path, data in request.files.items():
        lines += ["", *_file(path, data, request)]
    return lines


def _item(item: Item, request: Request) -> Iterator[str]:
    signed, present = item.signed(), _present(item)
    was = "none yet" if present is None else f"now {present.version}"
    yield f"{item.desk_name} version {item.version} ({was}), expires {signed.expires:%Y-%m-%dT%H:%M:%SZ}"
    needed = " and ".join(f"{number} of" for number in item.thresholds)
    yield f"  sha256 of the bytes to sign  {hashlib.sha256(item.data).hexdigest()}"
    yield f"  needs {needed}: {', '.join(escape(name) for name in item.keys.values())}"
    if signed.version != (present.version if present is not None else 0) + 1:
        yield "! its version is not the next one"
    life = ROLES[item.desk_name].lifetime
    if signed.expires > parse_utc(request.made_utc) + life + _CLOCK_SPARE:
        yield f"! valid for more than the {life.days} days of its role"
    yield from _differences(item, signed, present)


def _differences(item: Item, signed: Signed, present: Signed | None) -> Iterator[str]:
    if isinstance(signed, Root):
        yield from _root(signed, present if isinstance(present, Root) else None)
    elif isinstance(signed, Targets):
        before = present if isinstance(present, Targets) else None
        yield from _targets(item.role, signed.targets, before.targets if before is not None else {})
        yield from _delegations(signed, before)
    elif isinstance(signed, Snapshot):
        old = present.meta if isinstance(present, Snapshot) else {}
        for name, meta in sorted(signed.meta.items()):
            if name not in old or old[name].version != meta.version:
                was = f"was {old[name].version}" if name in old else "new"
                yield f"  {escape(name)} version {meta.version} ({was})"
                if name in old and meta.version < old[name].version:
                    yield f"! {escape(name)} goes back"
        yield from (f"! no longer names {escape(name)}" for name in sorted(set(old) - set(signed.meta)))
    elif isinstance(signed, Timestamp):
        yield f"  snapshot version {signed.snapshot_meta.version}"


def _root(root: Root, before: Root | None) -> Iterator[str]:
    if not root.consistent_snapshot:
        yield "! consistent_snapshot is off"
    for role, now in sorted(root.roles.items()):
        old = before.roles.get(role) if before is not None else None
        keys, was = _keys(root, role), _keys(before, role) if before is not None and old is not None else {}
        yield from _key_changes(role, keys, was, threshold=now.threshold, old=old.threshold if old else None)


def _delegations(targets: Targets, before: Targets | None) -> Iterator[str]:
    now = (targets.delegations.roles or {}) if targets.delegations is not None else {}
    past = before.delegations.roles or {} if before is not None and before.delegations is not None else {}
    for name, role in sorted(now.items()):
        old = past.get(name)
        keys = _keys(targets, name)
        was = _keys(before, name) if before is not None and old is not None else {}
        yield from _key_changes(name, keys, was, threshold=role.threshold, old=old.threshold if old else None)
        if old is not None and (old.paths != role.paths or old.terminating != role.terminating):
            yield f"! {escape(name)} may now sign {', '.join(map(escape, role.paths or []))}"
        if name not in ROLES:
            yield f"! a delegation that nobody planned: {escape(name)}"
    yield from (f"! no longer delegates to {escape(name)}" for name in sorted(set(past) - set(now)))


def _key_changes(
    role: str, keys: Mapping[str, Key], was: Mapping[str, Key], *, threshold: int, old: int | None
) -> Iterator[str]:
    if keys.keys() != was.keys() or threshold != old:
        yield f"  role {escape(role)}: {threshold} of {len(keys)} keys"
    yield from (
        f"!   + key {escape(name_of(key))} {keyid}" for keyid, key in sorted(keys.items()) if keyid not in was
    )
    yield from (
        f"!   - key {escape(name_of(key))} {keyid}" for keyid, key in sorted(was.items()) if keyid not in keys
    )
    if old is not None and threshold < old:
        yield f"! the threshold of {escape(role)} falls from {old} to {threshold}"


def _keys(document: Root | Targets | None, role: str) -> dict[str, Key]:
    if document is None:
        return {}
    return {keyid: document.get_key(keyid) for keyid in document.get_delegated_role(role).keyids}


def _targets(role: str, now: Mapping[str, TargetFile], was: Mapping[str, TargetFile]) -> Iterator[str]:
    patterns = ROLES[role].paths if role in ROLES else ()
    for path, target in sorted(now.items()):
        if path in was and was[path] == target:
            continue
        mark, verb = ("  +", "") if path not in was else ("! ~", " replaces the present one:")
        hashes = " ".join(f"{name} {value}" for name, value in sorted(target.hashes.items()))
        yield f"{mark} {escape(path)}{verb} {target.length} bytes, {escape(hashes)}"
        if not any(path_matches(path, pattern) for pattern in patterns):
            yield f"! {escape(path)} is outside the paths of {role}"
    yield from (f"! - {escape(path)} is removed" for path in sorted(set(was) - set(now)))


def _file(path: str, data: bytes, request: Request) -> Iterator[str]:
    """A document that comes with the request, if what is to be signed names exactly these bytes."""
    digest = hashlib.sha256(data).hexdigest()
    named = [
        signed.targets[path]
        for signed in (item.signed() for item in request.items)
        if isinstance(signed, Targets) and path in signed.targets
    ]
    if not any(target.hashes.get("sha256") == digest for target in named):
        yield f"! {escape(path)} lies in the request, but nothing that is to be signed names these bytes"
        return
    yield f"{escape(path)}, sha256 {digest}"
    if path.endswith("/release.json"):
        try:
            release = Release.parse(data)
        except PayloadError as err:
            yield f"! no release document that a device accepts: {escape(str(err))}"
            return
        if release.path != path:
            yield f"! it calls itself {release.path}"
        yield from (f"  {line}" for line in release_lines(release))
    elif len(data) <= _SMALL_BYTES:
        yield from (f"  {escape(line)}" for line in data.decode("utf-8", "replace").splitlines())


def _present(item: Item) -> Signed | None:
    if item.present is None:
        return None
    try:
        signed: Signed = Metadata[Any].from_bytes(item.present).signed
    except DeserializationError as err:
        raise InputError(f"{item.name}: what it replaces is no metadata: {err}") from err
    return signed
