"""Which links of a poll answer may be followed. Pure.

A server (or whoever answers in its place) must not be able to send the device to another host or out of its tenant: that would
carry the device's client certificate and its data there. What is returned is a path with query, never an address.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

from tidewaiter_core.errors import TidewaiterError

LINK_LIMIT = 2048
_PORTS = {"https": 443, "http": 80}
_PLAIN = re.compile(r"[!#$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]+")
_HIDDEN = re.compile(r"%(2f|5c|00|0a|0d|25)", re.IGNORECASE)


class ForeignLinkError(TidewaiterError):
    """A link leads away from the configured origin or out of the tenant; it is not followed."""

    code = "net.foreign-link"


def check_link(href: str, *, origin: str, tenant_prefix: str, path_only: bool = False) -> str:
    """The path and query of `href` if it may be followed.

    Args:
        origin: `https://host[:port]`, as configured; a path behind it is ignored.
        tenant_prefix: Path that every link must equal or lie below.
        path_only: Drop the link's own origin instead of comparing it (a server behind a proxy that reports other host names).

    Raises:
        ForeignLinkError: Says what is foreign about it.
    """
    if not href or len(href) > LINK_LIMIT or not _PLAIN.fullmatch(href):
        raise _foreign(href, "it is empty, too long, or has characters that do not belong into an address")
    parts = _split(href)
    if parts.scheme or parts.netloc:
        if parts.scheme not in _PORTS or not parts.hostname:
            raise _foreign(href, "expected https://host/path or /path")
        if parts.username is not None or parts.password is not None:
            raise _foreign(href, "it carries a user name")
        if not path_only and _origin(href, parts) != _origin(origin, _split(origin)):
            raise _foreign(href, f"the configured server is {origin}")
    path = parts.path
    if not path.startswith("/") or "//" in path:
        raise _foreign(href, "its path is not absolute or has an empty segment")
    if _HIDDEN.search(path) or any(unquote(segment) in (".", "..") for segment in path.split("/")):
        raise _foreign(href, "its path hides a separator or climbs")
    prefix = tenant_prefix.rstrip("/")
    if path != prefix and not path.startswith(f"{prefix}/"):
        raise _foreign(href, f"expected a path below {prefix}/")
    return f"{path}?{parts.query}" if parts.query else path


def _split(href: str) -> SplitResult:
    try:
        parts = urlsplit(href)
        _ = parts.port  # raises for a port that is no number
    except ValueError as err:
        raise _foreign(href, str(err)) from err
    return parts


def _origin(href: str, parts: SplitResult) -> tuple[str, str, int]:
    if parts.hostname is None or parts.scheme not in _PORTS:
        raise _foreign(href, "it has no host")
    return parts.scheme, parts.hostname.lower().rstrip("."), parts.port or _PORTS[parts.scheme]


def _foreign(href: str, finding: str) -> ForeignLinkError:
    shown = href if len(href) <= 120 else href[:119] + "…"
    return ForeignLinkError(f"link {shown!r}: {finding}; it is not followed")
