"""What service and trust child say to each other.

Pure. Each side checks what it gets, because the child is exposed to hostile metadata and the service decides by its answer.
Source: update-engine.md sections 2 and 5.2.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from tidewaiter_core import strictjson
from tidewaiter_core.clock import format_utc, parse_utc
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES

from tidewaiter_updater.trust_versions import (
    Versions,
    as_object,
    as_text,
    versions_from_json,
    versions_to_json,
)

REQUEST_LIMIT_BYTES: Final = 64 * 1024
REPLY_LIMIT_BYTES: Final = 256 * 1024
LISTING_LIMIT: Final = 512
_MESSAGE_LIMIT: Final = 2000
_CODE: Final = re.compile(r"(trust|source|release|payload)\.[a-z-]{1,32}", re.ASCII)
_TARGET: Final = re.compile(r"releases/[a-z0-9-]{1,32}/[0-9A-Za-z.+-]{1,64}/release\.json", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Repository(StrEnum):
    """The two repositories a device knows: each has its own root in the image, its own cache and its own version floors."""

    ONLINE = "online"
    MEDIA = "media"


class Subject(StrEnum):
    """What a session is to bring back."""

    RELEASE = "release"
    """The release document of the path `what`, signed by the role `os`."""
    PERMIT = "permit"
    """The downgrade permit of the path `what`, signed by the role `targets`; there may be none."""
    LISTING = "listing"
    """The release documents of the product `what` that are in the repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One trust session."""

    subject: Subject
    what: str
    relay_socket: str = ""
    """Where the repository is served; empty if it lies in a directory."""
    directory_fd: int | None = None
    """A descriptor that the child inherits: the directory with `metadata` and `targets`."""
    metadata_dir: str
    root_file: str
    """The root in the read-only image."""
    trusted_now: datetime
    floors: Versions

    def encode(self) -> bytes:
        """The request as the child reads it from stdin."""
        return json.dumps(
            {
                "format": 1,
                "subject": self.subject.value,
                "what": self.what,
                "relay_socket": self.relay_socket,
                "directory_fd": self.directory_fd,
                "metadata_dir": self.metadata_dir,
                "root_file": self.root_file,
                "trusted_now": format_utc(self.trusted_now),
                "floors": versions_to_json(self.floors),
            }
        ).encode("utf-8")

    @classmethod
    def decode(cls, data: bytes) -> Request:
        """Read a request; ValueError if it is none."""
        top = as_object(strictjson.loads(data, limit_bytes=REQUEST_LIMIT_BYTES, depth=4))
        directory_fd = top.get("directory_fd")
        if top.get("format") != 1:
            raise ValueError("request: expected format 1")
        if directory_fd is not None and (type(directory_fd) is not int or directory_fd < 0):
            raise ValueError("request: directory_fd is no descriptor")
        relay_socket = as_text(top, "relay_socket")
        if (directory_fd is None) == (relay_socket == ""):
            raise ValueError("request: expected either a relay socket or a directory")
        return cls(
            subject=Subject(as_text(top, "subject")),
            what=as_text(top, "what"),
            relay_socket=relay_socket,
            directory_fd=directory_fd,
            metadata_dir=as_text(top, "metadata_dir"),
            root_file=as_text(top, "root_file"),
            trusted_now=parse_utc(as_text(top, "trusted_now")),
            floors=versions_from_json(top.get("floors")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A release document that the role `os` signs and that the repository holds."""

    path: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """A session that ended well."""

    document: bytes = b""
    """Release or permit; empty for a listing, and when there is no permit."""
    listing: tuple[Listed, ...] = ()
    versions: Versions
    proven_utc: datetime | None = None
    """A moment that has passed for certain: when the release was built."""

    def encode(self) -> bytes:
        """The reply as the child writes it to stdout."""
        return json.dumps(
            {
                "format": 1,
                "ok": True,
                "document": base64.b64encode(self.document).decode("ascii"),
                "listing": [{"path": one.path, "sha256": one.sha256} for one in self.listing],
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
    top = as_object(strictjson.loads(data, limit_bytes=REPLY_LIMIT_BYTES, depth=4))
    if top.get("format") != 1:
        raise ValueError("reply: expected format 1")
    if top.get("ok") is False:
        code, retryable = as_text(top, "code"), top.get("retryable")
        if not _CODE.fullmatch(code) or not isinstance(retryable, bool):
            raise ValueError("reply: a fault without a known code")
        return Fault(code=code, message=as_text(top, "message")[:_MESSAGE_LIMIT], retryable=retryable)
    if top.get("ok") is not True:
        raise ValueError("reply: neither verified nor a fault")
    try:
        document = base64.b64decode(as_text(top, "document"), validate=True)
    except binascii.Error as err:
        raise ValueError("reply: the document is not base64") from err
    if len(document) > RELEASE_LIMIT_BYTES:
        raise ValueError(f"reply: a document of {len(document)} bytes")
    versions = versions_from_json(top.get("versions"))
    if not {"root", "timestamp", "snapshot", "targets"} <= versions.keys():
        raise ValueError("reply: versions of the top-level roles are missing")
    spelled = as_text(top, "proven_utc")
    proven = parse_utc(spelled) if spelled else None
    if proven is not None and format_utc(proven) != spelled:
        raise ValueError(f"reply: {spelled!r} is a moment that no child writes so")
    return Verified(
        document=document,
        listing=_listing(top.get("listing")),
        versions=versions,
        proven_utc=proven,
    )


def require_answers(reply: Verified, subject: Subject) -> None:
    """ValueError unless the reply has what was asked for, and nothing else."""
    if subject is Subject.RELEASE and not reply.document:
        raise ValueError("reply: the release is missing")
    if reply.document if subject is Subject.LISTING else reply.listing:
        raise ValueError(f"reply: brings something else than the {subject.value} that was asked for")


def _listing(value: object) -> tuple[Listed, ...]:
    if not isinstance(value, list) or len(value) > LISTING_LIMIT:
        raise ValueError("reply: the listing is none")
    listing = []
    for raw in value:
        entry: dict[str, Any] = as_object(raw)
        path, sha256 = as_text(entry, "path"), as_text(entry, "sha256")
        if not _TARGET.fullmatch(path) or not _DIGEST.fullmatch(sha256):
            raise ValueError(f"reply: {path[:80]!r} is no listed release document")
        listing.append(Listed(path=path, sha256=sha256))
    return tuple(listing)
