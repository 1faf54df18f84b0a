"""The TUF repository: ceremony, publishing, refreshing, checking. The only place of the release tool that knows TUF.

Source: update-engine.md sections 5.1 and 15; https://theupdateframework.github.io/specification/latest/
"""

from tidewaiter_release.repository.ceremony import init_repository, rotate_keys
from tidewaiter_release.repository.describe import describe_metadata
from tidewaiter_release.repository.expiry import expiry_notes
from tidewaiter_release.repository.export import Exported, export
from tidewaiter_release.repository.finding import Finding, Severity
from tidewaiter_release.repository.lint import lint
from tidewaiter_release.repository.media import has_media, renew_media
from tidewaiter_release.repository.publish import Published, publish, refresh
from tidewaiter_release.repository.roles import ROLES, RoleSpec, Side
from tidewaiter_release.repository.signing import Desk, WallClock
from tidewaiter_release.repository.store import Store

__all__ = [
    "ROLES",
    "Desk",
    "Exported",
    "Finding",
    "Published",
    "RoleSpec",
    "Severity",
    "Side",
    "Store",
    "WallClock",
    "describe_metadata",
    "expiry_notes",
    "export",
    "has_media",
    "init_repository",
    "lint",
    "publish",
    "refresh",
    "renew_media",
    "rotate_keys",
]
