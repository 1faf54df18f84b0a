"""The small signed documents: permits, the support authority, trust anchors. Strict, because a device acts on them.

Sources: update-engine.md section 5.4 (permits); agent-and-remote-sessions.md section 11 (authorities/support.json);
provisioning.md section 6 (trust/roots.json, trust/revoked.json).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tidewaiter_core import strictjson
from tidewaiter_core.clock import parse_utc
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES

from tidewaiter_release.errors import InputError

_LIMIT_BYTES = 256 * 1024
_DIGEST_DIGITS = 16
_SERIAL_LIMIT = 10_000
_TEXT_LIMIT = 256
_SUPPORT_LIFE = timedelta(days=90)
_SUPPORT_SCHEMES = ("ed25519", "ecdsa-p256-sha256")


def permit_path(product: str, to_digest: str) -> str:
    """Where a device looks for the permit to install a release."""
    return f"permits/{product}/{to_digest[:_DIGEST_DIGITS]}.json"


def build_permit(
    *, from_digest: str, to_digest: str, serials: Sequence[str] | None, not_after_utc: datetime, reason: str
) -> bytes:
    """The canonical bytes of a permit.

    Raises:
        InputError: A field is empty or too long.
    """
    if not reason.strip() or len(reason) > _TEXT_LIMIT:
        raise InputError(f"permit: a reason of 1 to {_TEXT_LIMIT} characters is needed, found {len(reason)}")
    if serials is not None and not 1 <= len(serials) <= _SERIAL_LIMIT:
        raise InputError(f"permit: 1 to {_SERIAL_LIMIT} serial numbers, found {len(serials)}")
    document = {
        "format": 1,
        "from_digest": from_digest,
        "to_digest": to_digest,
        "serials": "*" if serials is None else sorted(set(serials)),
        "not_after_utc": f"{not_after_utc.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "reason": reason,
    }
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
    if len(data) > RELEASE_LIMIT_BYTES:
        raise InputError(
            f"permit: {len(data)} bytes for {len(serials or ())} serial numbers, devices read at most {RELEASE_LIMIT_BYTES}; "
            "name fewer, or all"
        )
    return data


def check_document(target: str, data: bytes, *, now_utc: datetime) -> None:
    """Refuse an authority or trust file that a device would refuse.

    Raises:
        InputError: Says what is wrong.
    """
    try:
        document = strictjson.loads(data, limit_bytes=_LIMIT_BYTES, depth=16)
    except strictjson.StrictJsonError as err:
        raise InputError(f"{target}: {err}; not staged") from err
    if not isinstance(document, dict):
        raise InputError(f"{target}: expected one JSON object; not staged")
    if target == "authorities/support.json":
        try:
            _check_support(document, now_utc=now_utc)
        except (KeyError, TypeError, ValueError, AttributeError) as err:
            raise InputError(f"{target}: {type(err).__name__} {err}; not staged") from err


def _check_support(document: dict[str, Any], *, now_utc: datetime) -> None:
    expires = parse_utc(document["expires"])
    if not now_utc < expires <= now_utc + _SUPPORT_LIFE:
        raise ValueError(f"expires {document['expires']}: expected within {_SUPPORT_LIFE.days} days from now")
    keys = document["keys"]
    keyids = [str(key["keyid"]) for key in keys]
    if not keys or len(set(keyids)) != len(keyids):
        raise ValueError("keys: expected at least one, each with its own keyid")
    for key in keys:
        if key["scheme"] not in _SUPPORT_SCHEMES:
            raise ValueError(
                f"key {key['keyid']}: scheme {key['scheme']!r}, expected one of {_SUPPORT_SCHEMES}"
            )
        parse_utc(key["not_after"])
        if not isinstance(key["public"], str) or not isinstance(key["allow"], dict):
            raise TypeError(f"key {key['keyid']}: public is text and allow an object")
    threshold = document["threshold"]
    if not isinstance(threshold, int) or not 1 <= threshold <= len(keys):
        raise ValueError(f"threshold {threshold!r} of {len(keys)} keys")
    if document["schema"] != 1:
        raise ValueError(f"schema {document['schema']!r}, expected 1")
