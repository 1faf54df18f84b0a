"""What service and trust child say to each other, and the one rule both apply: no signed version ever goes back.

Pure. Each side checks what it gets, because the child is exposed to hostile metadata and the service decides by its answer.
Source: update-engine.md sections 5.2 and 5.4.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tidewaiter_core import strictjson
from tidewaiter_core.clock import format_utc, parse_utc
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES

from tidewaiter_updater.errors import TrustError

REQUEST_LIMIT_BYTES: Final = 64 * 1024
REPLY_LIMIT_BYTES: Final = 256 * 1024
_ROLES_LIMIT: Final = 40
_MESSAGE_LIMIT: Final = 2000
_ROLE: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_CODE: Final = re.compile(r"(trust|source|release|payload)\.[a-z-]{1,32}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFloor:
    """The newest version of a role that was ever verified, and by which set of keys."""

    version: int
    keys: str
    """SHA-256 over the role's keys; another set of keys is another history."""


Versions = Mapping[str, RoleFloor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One trust session."""

    relay_socket: str
    metadata_dir: str
    root_file: str
    """The root in the read-only image."""
    release_path: str
    trusted_now: datetime
    floors: Versions

    def encode(self) -> bytes:
        """The request as the child reads it from stdin."""
        return json.dumps(
            {
                "format": 1,
                "relay_socket": self.relay_socket,
                "metadata_dir": self.metadata_dir,
                "root_file": self.root_file,
                "release_path": self.release_path,
                "trusted_now": format_utc(self.trusted_now),
                "floors": versions_to_json(self.floors),
            }
        ).encode("utf-8")

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Read a request; ValueError if it is none."""
        top = _object(strictjson.loads(data, limit_bytes=REQUEST_LIMIT_BYTES, depth=4))
        if top.get("format") != 1:
            raise ValueError("request: expected format 1")
        return cls(
            relay_socket=_text(top, "relay_socket"),
            metadata_dir=_text(top, "metadata_dir"),
            root_file=_text(top, "root_file"),
            release_path=_text(top, "release_path"),
            trusted_now=parse_utc(_text(top, "trusted_now")),
            floors=versions_from_json(top.get("floors")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A session that ended well."""

    release: bytes
    versions: Versions
    proven_utc: datetime | None
    """A moment that has passed for certain: when the release was built."""

    def encode(self) -> bytes:
        """The reply as the child writes it to stdout."""
        return json.dumps(
            {
                "format": 1,
                "ok": True,
                "release": base64.b64encode(self.release).decode("ascii"),
                "versions": versions_to_json(self.versions),
                "proven_utc": format_utc(self.proven_utc) if self.proven_utc else "",
            }
        ).encode("ascii")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A session that did not."""

    code: str
    message: str
    retryable: bool

    def encode(self) -> bytes:
        """The reply as the child writes it to stdout."""
        return json.dumps(
            {
                "format": 1,
                "ok": False,
                "code": self.code,
                "message": self.message[:_MESSAGE_LIMIT],
                "retryable": self.retryable,
            }
        ).encode("ascii")


def decode_reply(data: bytes) -> Verified | Fault:
    """Read a reply; ValueError if it is not exactly one whole, sound reply."""
    top = _object(strictjson.loads(data, limit_bytes=REPLY_LIMIT_BYTES, depth=4))
    if top.get("format") != 1:
        raise ValueError("reply: expected format 1")
    if top.get("ok") is False:
        code, retryable = _text(top, "code"), top.get("retryable")
        if not _CODE.fullmatch(code) or not isinstance(retryable, bool):
            raise ValueError("reply: a fault without a known code")
        return Fault(code=code, message=_text(top, "message")[:_MESSAGE_LIMIT], retryable=retryable)
    if top.get("ok") is not True:
        raise ValueError("reply: neither verified nor a fault")
    try:
        release = base64.b64decode(_text(top, "release"), validate=True)
    except binascii.Error as err:
        raise ValueError("reply: the release is not base64") from err
    if not 0 < len(release) <= RELEASE_LIMIT_BYTES:
        raise ValueError(f"reply: a release of {len(release)} bytes")
    versions = versions_from_json(top.get("versions"))
    if not {"root", "timestamp", "snapshot", "targets"} <= versions.keys():
        raise ValueError("reply: versions of the top-level roles are missing")
    proven = _text(top, "proven_utc")
    return Verified(release=release, versions=versions, proven_utc=parse_utc(proven) if proven else None)


def versions_to_json(versions: Versions) -> dict[str, Any]:
    """The JSON form, which floor.json shares."""
    return {role: {"version": floor.version, "keys": floor.keys} for role, floor in versions.items()}


def versions_from_json(value: object) -> dict[str, RoleFloor]:
    """Read the JSON form; ValueError if any part of it is not as written."""
    entries = _object(value)
    if len(entries) > _ROLES_LIMIT:
        raise ValueError(f"versions: {len(entries)} roles, at most {_ROLES_LIMIT} are known")
    versions = {}
    for role, raw in entries.items():
        entry = _object(raw)
        version, keys = entry.get("version"), _text(entry, "keys")
        if (
            not _ROLE.fullmatch(role)
            or type(version) is not int
            or version < 1
            or not _DIGEST.fullmatch(keys)
        ):
            raise ValueError(f"versions: {role[:64]!r} is no role with a version and the digest of its keys")
        versions[role] = RoleFloor(version=version, keys=keys)
    return versions


def require_not_below(floors: Versions, found: Versions) -> None:
    """Refuse verified metadata that is older than what was verified before.

    TUF 5.3.11: when a root change replaces the keys of timestamp or snapshot, both histories restart, else a stolen online key
    that counted to 2**31 once would block updates for ever. Any other role restarts when its own keys change. Root never does.

    Raises:
        TrustError: trust.rollback.
    """
    changed = _restarted(floors, found)
    for role, floor in floors.items():
        if role in found and role not in changed and found[role].version < floor.version:
            raise TrustError(
                f"repository: {role} has version {found[role].version}, version {floor.version} was verified before; "
                "an older state is being replayed, nothing of it is used",
                code="trust.rollback",
            )


def newest_of(own: Versions, image: Versions) -> Versions:
    """The floors of two records: the higher version, or, where keys were replaced, the record under the newer root."""
    restarted = _restarted(own, image)
    image_is_newer = "root" in image and ("root" not in own or image["root"].version > own["root"].version)
    newest = {**image, **own}
    for role in own.keys() & image.keys():
        higher = image[role].version > own[role].version
        if image_is_newer if role in restarted else higher:
            newest[role] = image[role]
    return newest


def _restarted(floors: Versions, found: Versions) -> set[str]:
    """The roles whose history starts anew between two records, because keys were replaced."""
    changed = {role for role, floor in floors.items() if role in found and found[role].keys != floor.keys}
    if changed & {"timestamp", "snapshot"}:
        changed |= {"timestamp", "snapshot"}
    return changed - {"root"}


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")  # noqa: TRY004 - one error for all bad input
    return value


def _text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {type(value).__name__}")  # noqa: TRY004
    return value
