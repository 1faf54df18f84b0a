"""Whose fault is it? What python-tuf raises, in our codes. Child only.

A page of a proxy is the network's, a failed read of our cache is the disk's, anything else is the repository's.
Source: update-engine.md sections 5.3 and 16.
"""

from __future__ import annotations

import contextlib
import json
from datetime import datetime
from typing import Final

from tidewaiter_core.clock import format_utc
from tidewaiter_core.errors import TidewaiterError
from tuf.api import exceptions
from tuf.api.serialization import DeserializationError

from tidewaiter_updater.errors import SourceError, TrustError
from tidewaiter_updater.trust_fetch import SourceFetcher

_PAGE_SHOWS_AS: Final = (
    DeserializationError,
    exceptions.LengthOrHashMismatchError,
    exceptions.DownloadLengthMismatchError,
)


def translated(err: Exception, *, fetcher: SourceFetcher, now: datetime) -> TidewaiterError:
    """The error a session ends with, for one that python-tuf raised."""
    if fetcher.failure is not None and isinstance(err, exceptions.DownloadError):
        return fetcher.failure
    if isinstance(err, exceptions.DownloadHTTPError):
        return SourceError(f"repository: metadata is refused: {err}")
    if is_page(fetcher.last) and isinstance(err, _PAGE_SHOWS_AS):
        return page_error("metadata")
    if isinstance(err, exceptions.UnsignedMetadataError):
        return TrustError(
            f"repository: not signed by enough of its keys: {err}; refused", code="trust.threshold"
        )
    if isinstance(err, exceptions.ExpiredMetadataError):
        return expired(str(err).removesuffix(" is expired"), _stated_expiry(fetcher.last), now=now)
    if isinstance(err, exceptions.BadVersionNumberError):
        return TrustError(f"repository: {err}; an older state is refused", code="trust.rollback")
    return TrustError(f"repository: {type(err).__name__}: {err}; nothing of it is used")


def expired(what: str, expires: str, *, now: datetime) -> TrustError:
    """With both times: one of them is wrong, and a person has to see which."""
    return TrustError(
        f"repository: {what} expired {expires}, it is {format_utc(now)}; nothing of it is used",
        code="trust.expired",
    )


def is_page(data: bytes) -> bool:
    """Whether the bytes begin as a web page does, which no metadata does."""
    return data.lstrip()[:1] == b"<"


def page_error(what: str) -> SourceError:
    """A block page in the place of `what`."""
    return SourceError(
        f"repository: expected {what}, found a web page (a proxy's block page?); the network has to let it through",
        code="source.not-metadata",
    )


def _stated_expiry(data: bytes) -> str:
    """What the file that was refused says about itself: for the message only."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        return str(json.loads(data)["signed"]["expires"])[:40]
    return "before that"
