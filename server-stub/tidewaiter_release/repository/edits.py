"""The changes that can be staged: a release, a permit, an authority file, other keys, a longer life.

Each returns a `Change`: it alters the drafts in memory and notes which roles it touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TextIO

from securesystemslib.signer import Key
from tidewaiter_core.payload import STANDARD, Limits
from tuf.api.metadata import Root, TargetFile, Targets

from tidewaiter_release.check import check_build
from tidewaiter_release.errors import InputError, PublishedError
from tidewaiter_release.repository.documents import build_permit, check_document, permit_path
from tidewaiter_release.repository.keys import load_public, name_of
from tidewaiter_release.repository.publish import add_release, is_published, read_published, role_of
from tidewaiter_release.repository.roles import DELEGATED, ROLES, Side
from tidewaiter_release.repository.stage import Change, Drafts

_DOCUMENT_LIMIT_BYTES = 256 * 1024
_REPLACEABLE = ("authorities/", "trust/")


def release(build: Path, *, limits: Limits = STANDARD, stream: TextIO | None = None) -> Change:
    """Publish a build. It is proven now, so that nobody is asked to sign what no device could install."""
    data, document = check_build(build, limits=limits, stream=stream)

    def change(drafts: Drafts) -> None:
        if is_published(drafts.online, document):
            raise PublishedError(
                f"{document.path}: is published already, with these very bytes; nothing to sign"
            )
        added = add_release(drafts.store, drafts.online, data, document, limits=limits)
        for path in added:
            drafts.touch(Side.ONLINE, role_of(path))
        drafts.files[document.path] = data

    return change


def documents(files: Mapping[str, Path], *, now_utc: datetime) -> Change:
    """Publish authority files or trust anchors (which replace the present ones)."""
    loaded: dict[str, bytes] = {}
    for target, path in files.items():
        try:
            with path.open("rb") as file:
                loaded[target] = file.read(_DOCUMENT_LIMIT_BYTES + 1)
        except OSError as err:
            raise InputError(f"{path}: cannot be read: {err}") from err
        if len(loaded[target]) > _DOCUMENT_LIMIT_BYTES:
            raise InputError(
                f"{path}: larger than {_DOCUMENT_LIMIT_BYTES} bytes; not a document of this kind"
            )
        if not target.startswith(_REPLACEABLE):
            raise InputError(
                f"{target}: only authority and trust files are staged so; releases, firmware and permits have their own"
            )
        check_document(target, loaded[target], now_utc=now_utc)

    def change(drafts: Drafts) -> None:
        for target, data in loaded.items():
            _put(drafts, target, data)

    return change


def permit(
    product: str,
    *,
    from_version: str,
    to_version: str,
    serials: Sequence[str] | None,
    not_after_utc: datetime,
    reason: str,
    limits: Limits = STANDARD,
) -> Change:
    """Allow devices that run one release to go back to an older one (serials None: all devices)."""

    def change(drafts: Drafts) -> None:
        signed = drafts.online.delegated["os"].signed.targets
        found = {}
        for version in (from_version, to_version):
            path = f"releases/{product}/{version}/release.json"
            if path not in signed:
                raise InputError(f"{path}: is not published, so no device runs it and none can go back to it")
            found[version] = read_published(drafts.store, signed[path], limits=limits)
        newer, older = found[from_version], found[to_version]
        if newer.sequence <= older.sequence:
            raise InputError(
                f"permit from {from_version} to {to_version}: sequence {newer.sequence} to {older.sequence} is no way back; "
                "it needs no permit"
            )
        if newer.security_epoch > older.security_epoch:
            raise InputError(
                f"permit from {from_version} to {to_version}: security epoch {newer.security_epoch} to "
                f"{older.security_epoch}; no device goes below its epoch, permit or not"
            )
        data = build_permit(
            from_digest=newer.digest,
            to_digest=older.digest,
            serials=serials,
            not_after_utc=not_after_utc,
            reason=reason,
        )
        _put(drafts, permit_path(product, older.digest), data)

    return change


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """One key of a role gives way to another."""

    role: str
    """Its name at the desk: `os`, `media-root`."""
    old: str
    """Key id or the beginning of one, or the name its owner knows it by."""
    new: Path
    """The public half of the new key, PEM."""


def keys(replacements: Sequence[Replacement]) -> Change:
    """Replace keys: of top-level roles under the next root, of delegated ones in targets.json."""
    loaded = [(one, load_public(one.new)) for one in replacements]

    def change(drafts: Drafts) -> None:
        for one, key in loaded:
            _refuse_second_use(drafts, key)
            if one.role in {spec.name for spec in DELEGATED}:
                _replace_key(drafts.online.targets.signed, one.role, one.old, key)
                drafts.touch(Side.ONLINE, "targets")
                drafts.touch(Side.ONLINE, one.role)  # signatures of the old key stop to count
                continue
            for side in Side:
                role = _role_on(side, one.role)
                if role is None or (side is Side.MEDIA and drafts.media is None):
                    continue
                _replace_key(drafts.state(side).root.signed, role, one.old, key)
                drafts.touch(side, "root")
            if one.role == "targets":
                drafts.touch(Side.ONLINE, "targets")

    return change


def renew(roles: Collection[str]) -> Change:
    """Give roles a new version and a new life, with the same content."""

    def change(drafts: Drafts) -> None:
        for name in roles:
            if name in ("snapshot", "timestamp"):
                raise InputError(f"{name}: is renewed by `refresh` with its own key, without any request")
            if name not in ROLES:
                raise InputError(f"{name}: no role; the roles are {', '.join(ROLES)}")
            side = Side.MEDIA if name.startswith("media-") else Side.ONLINE
            drafts.state(side)
            drafts.touch(side, name.removeprefix("media-"))

    return change


def _put(drafts: Drafts, target: str, data: bytes) -> None:
    role = role_of(target)
    digest = hashlib.sha256(data).hexdigest()
    signed = drafts.online.targets_role(role).signed
    known = signed.targets.get(target)
    if known is not None and known.hashes.get("sha256") == digest:
        raise PublishedError(f"{target}: is published already, with these very bytes; nothing to sign")
    signed.targets[target] = TargetFile(len(data), {"sha256": digest}, target)
    drafts.files[target] = data
    drafts.touch(Side.ONLINE, role)


def _role_on(side: Side, name: str) -> str | None:
    """The role that a desk name means in the root of a side; None if it is none of it. `targets` is in both."""
    if name not in ROLES or name in {spec.name for spec in DELEGATED}:
        raise InputError(f"{name}: no role whose keys can be replaced; the roles are {', '.join(ROLES)}")
    if name == "targets":
        return name
    if name.startswith("media-"):
        return name.removeprefix("media-") if side is Side.MEDIA else None
    return name if side is Side.ONLINE else None


def _refuse_second_use(drafts: Drafts, key: Key) -> None:
    """No key in two roles: one stolen key must never count twice."""
    documents: list[Root | Targets] = [drafts.online.root.signed, drafts.online.targets.signed]
    if drafts.media is not None:
        documents.append(drafts.media.root.signed)
    for document in documents:
        listed = document.keys if isinstance(document, Root) else _delegated_keys(document)
        for known in listed.values():
            if known.keyval == key.keyval:
                raise InputError(f"{name_of(key)}: is in use already, as {name_of(known)}; make a new key")


def _delegated_keys(targets: Targets) -> Mapping[str, Key]:
    return targets.delegations.keys if targets.delegations is not None else {}


def _replace_key(document: Root | Targets, role: str, old: str, new: Key) -> None:
    keyids = document.get_delegated_role(role).keyids
    found = [
        keyid
        for keyid in keyids
        if (len(old) >= 8 and keyid.startswith(old)) or name_of(document.get_key(keyid)).split(" (")[0] == old
    ]
    if len(found) != 1:
        names = ", ".join(name_of(document.get_key(keyid)) for keyid in keyids)
        raise InputError(f"{role}: {len(found)} of its keys are called {old!r}; they are {names}")
    document.revoke_key(found[0], role)
    document.add_key(new, role)
