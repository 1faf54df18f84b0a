"""The one rule that service and trust child both apply: no signed version ever goes back, unless its keys were replaced.

Pure. Source: update-engine.md section 5.4; TUF specification 5.3.11.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tidewaiter_updater.errors import TrustError

ROLES_LIMIT: Final = 40
_ROLE: Final = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFloor:
    """The newest version of a role that was ever verified, and by which set of keys."""

    version: int
    keys: str
    """SHA-256 over the role's keys; another set of keys is another history."""


Versions = Mapping[str, RoleFloor]


def versions_to_json(versions: Versions) -> dict[str, Any]:
    """The JSON form, which floor.json shares."""
    return {role: {"version": floor.version, "keys": floor.keys} for role, floor in versions.items()}


def versions_from_json(value: object) -> dict[str, RoleFloor]:
    """Read the JSON form; ValueError if any part of it is not as written."""
    entries = as_object(value)
    if len(entries) > ROLES_LIMIT:
        raise ValueError(f"versions: {len(entries)} roles, at most {ROLES_LIMIT} are known")
    versions = {}
    for role, raw in entries.items():
        entry = as_object(raw)
        version, keys = entry.get("version"), as_text(entry, "keys")
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

    TUF 5.3.11: when a root change replaces the keys of timestamp or snapshot, what they vouched for restarts, else a stolen
    online key that counted to 2**31 once would block updates for ever. That is every role but root: the version of a targets
    role is known from the snapshot, whether or not its own file was ever fetched. A targets role restarts when its own keys
    change, too.

    Raises:
        TrustError: trust.rollback.
    """
    changed = restarted(floors, found)
    for role, floor in floors.items():
        if role in found and role not in changed and found[role].version < floor.version:
            raise TrustError(
                f"repository: {role} has version {found[role].version}, version {floor.version} was verified before; "
                "an older state is being replayed, nothing of it is used",
                code="trust.rollback",
            )


def raised(floors: Versions, found: Versions) -> dict[str, RoleFloor]:
    """The floors after a session that found what is not below them; a role it did not name keeps a floor that still means it."""
    kept = {role: floor for role, floor in floors.items() if role not in restarted(floors, found)}
    return {**kept, **found}


def newest_of(own: Versions, image: Versions) -> Versions:
    """The floors of two records: the higher version, or, where keys were replaced, the record under the newer root."""
    anew = restarted(own, image)
    image_is_newer = "root" in image and ("root" not in own or image["root"].version > own["root"].version)
    newest = {**image, **own}
    for role in own.keys() & image.keys():
        higher = image[role].version > own[role].version
        if image_is_newer if role in anew else higher:
            newest[role] = image[role]
    return newest


def restarted(floors: Versions, found: Versions) -> set[str]:
    """The roles whose history starts anew between two records, because keys were replaced."""
    changed = {role for role, floor in floors.items() if role in found and found[role].keys != floor.keys}
    if changed & {"timestamp", "snapshot"}:
        changed = set(floors)
    return changed - {"root"}


def as_object(value: object) -> dict[str, Any]:
    """`value` if it is a JSON object, else ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {type(value).__name__}")  # noqa: TRY004 - one error for all bad input
    return value


def as_text(source: Mapping[str, Any], name: str) -> str:
    """The member `name` if it is text, else ValueError."""
    value = source.get(name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {type(value).__name__}")  # noqa: TRY004
    return value
