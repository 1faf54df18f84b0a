"""The roles of the repository as one table: `init` makes them, `lint` checks every number.

Source: update-engine.md section 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

SNAPSHOT_LIMIT_BYTES = 2_000_000
TARGETS_LIMIT_BYTES = 5_000_000
ROOT_LIMIT_BYTES = 512_000
TIMESTAMP_LIMIT_BYTES = 16_384
MAX_ROOT_ROTATIONS = 256
"""The limits of python-tuf's client (section 5.3): a repository that exceeds one is unreadable for every device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSpec:
    """What one role needs and may do."""

    name: str
    keys: int
    threshold: int
    lifetime: timedelta
    paths: tuple[str, ...] = ()
    """Target paths it signs; patterns match segment by segment."""
    limit_bytes: int = TARGETS_LIMIT_BYTES


ROOT = RoleSpec(name="root", keys=5, threshold=3, lifetime=timedelta(days=365), limit_bytes=ROOT_LIMIT_BYTES)
TARGETS = RoleSpec(name="targets", keys=3, threshold=2, lifetime=timedelta(days=365), paths=("permits/*/*",))
SNAPSHOT = RoleSpec(
    name="snapshot", keys=1, threshold=1, lifetime=timedelta(days=7), limit_bytes=SNAPSHOT_LIMIT_BYTES
)
TIMESTAMP = RoleSpec(
    name="timestamp", keys=1, threshold=1, lifetime=timedelta(days=1), limit_bytes=TIMESTAMP_LIMIT_BYTES
)
OS = RoleSpec(name="os", keys=3, threshold=2, lifetime=timedelta(days=180), paths=("releases/*/*/*",))
INJECTOR_FIRMWARE = RoleSpec(
    name="injector-firmware", keys=3, threshold=2, lifetime=timedelta(days=365), paths=("firmware/*/*/*",)
)
SUPPORT_AUTHORITY = RoleSpec(
    name="support-authority",
    keys=3,
    threshold=2,
    lifetime=timedelta(days=90),
    paths=("authorities/support.json",),
)
TRUST_ANCHORS = RoleSpec(
    name="trust-anchors",
    keys=3,
    threshold=2,
    lifetime=timedelta(days=365),
    paths=("trust/roots.json", "trust/revoked.json"),
)

# The media repository (sticks): root keys of its own, because a root signed by the keys of both would let an intruder lead
# a device from one chain into the other; snapshot and timestamp offline, because a stick is carried for weeks.
MEDIA_ROOT = RoleSpec(
    name="media-root", keys=5, threshold=3, lifetime=timedelta(days=365), limit_bytes=ROOT_LIMIT_BYTES
)
MEDIA_SNAPSHOT = RoleSpec(
    name="media-snapshot",
    keys=3,
    threshold=2,
    lifetime=timedelta(days=90),
    limit_bytes=SNAPSHOT_LIMIT_BYTES,
)
MEDIA_TIMESTAMP = RoleSpec(
    name="media-timestamp",
    keys=3,
    threshold=2,
    lifetime=timedelta(days=90),
    limit_bytes=TIMESTAMP_LIMIT_BYTES,
)

TOP_LEVEL = (ROOT, TARGETS, SNAPSHOT, TIMESTAMP)
MEDIA = (MEDIA_ROOT, MEDIA_SNAPSHOT, MEDIA_TIMESTAMP)
DELEGATED = (OS, INJECTOR_FIRMWARE, SUPPORT_AUTHORITY, TRUST_ANCHORS)
ROLES: Mapping[str, RoleSpec] = {role.name: role for role in TOP_LEVEL + DELEGATED + MEDIA}


class Side(StrEnum):
    """Which of the two repositories: both have the same targets and delegated metadata, each has its own root."""

    ONLINE = "online"
    MEDIA = "media"

    def spec(self, role: str) -> RoleSpec:
        """The table's row for a role of this side; raises KeyError for a role that nobody planned."""
        return ROLES[self.desk_name(role)]

    def desk_name(self, role: str) -> str:
        """The name of a role at the desk: of its keys, its lifetime, its row in the table."""
        own = self is Side.MEDIA and role in ("root", "snapshot", "timestamp")
        return f"media-{role}" if own else role


def path_matches(path: str, pattern: str) -> bool:
    """Whether a target path matches a pattern of a delegation: segment by segment, as clients do."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(
        want in ("*", part) for part, want in zip(parts, wanted, strict=True)
    )
