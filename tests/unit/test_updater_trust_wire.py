"""The two messages between service and trust child: what is not exactly one sound message is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tidewaiter_updater.trust_versions import RoleFloor
from tidewaiter_updater.trust_wire import (
    Fault,
    Listed,
    Request,
    Subject,
    Verified,
    decode_reply,
    require_answers,
)

VERSIONS = {
    role: RoleFloor(version=3, keys="c" * 64) for role in ("root", "timestamp", "snapshot", "targets", "os")
}
REPLY = Verified(document=b"{}\n", versions=VERSIONS, proven_utc=datetime(2026, 1, 1, tzinfo=UTC))


def test_request_and_reply_come_back_as_they_went() -> None:
    request = Request(
        relay_socket="/run/relay",
        metadata_dir="/var/tuf",
        root_file="/usr/root.json",
        subject=Subject.RELEASE,
        what="releases/p/1/release.json",
        trusted_now=datetime(2026, 11, 24, tzinfo=UTC),
        floors=VERSIONS,
    )
    assert Request.decode(request.encode()) == request
    assert decode_reply(REPLY.encode()) == REPLY
    fault = Fault(code="trust.expired", message="old", retryable=True)
    assert decode_reply(fault.encode()) == fault


def test_a_reply_cut_anywhere_is_none() -> None:
    data = REPLY.encode()
    for end in range(len(data)):
        with pytest.raises(ValueError):
            decode_reply(data[:end])


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"ok": 1},
        {"listing": [{"path": "releases/p/1/pack.twpk", "sha256": "a" * 64}]},
        {"listing": [{"path": "releases/p/1/release.json", "sha256": "A" * 64}]},
        {"listing": {}},
        {"document": "e30=x"},
        {"document": 5},
        {"document": "QUFB" * 30_000},
        {"versions": {}},
        {"versions": []},
        {"proven_utc": "soon"},
        {"proven_utc": "2026-01-01T00:00:00.0001Z"},
        {"versions": {"root": {"version": True, "keys": "c" * 64}}},
        {"versions": {f"r{n}": {"version": 1, "keys": "c" * 64} for n in range(41)}},
        {"ok": False, "code": "os.system", "message": "", "retryable": True},
        {"ok": False, "code": "trust.expired", "message": 1, "retryable": True},
        {"ok": False, "code": "trust.expired", "message": "", "retryable": "yes"},
    ],
)
def test_an_unsound_reply_is_none(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        decode_reply(json.dumps({**json.loads(REPLY.encode()), **change}).encode())


LISTED = Listed(path="releases/p/1/release.json", sha256="a" * 64)


def test_a_listing_comes_back_as_it_went() -> None:
    listing = Verified(listing=(LISTED,), versions=VERSIONS)
    assert decode_reply(listing.encode()) == listing
    require_answers(listing, Subject.LISTING)
    require_answers(Verified(versions=VERSIONS), Subject.PERMIT)


@pytest.mark.parametrize(
    ("subject", "document", "listing"),
    [
        (Subject.RELEASE, b"", ()),
        (Subject.RELEASE, b"{}", (LISTED,)),
        (Subject.PERMIT, b"", (LISTED,)),
        (Subject.LISTING, b"{}", ()),
    ],
)
def test_an_answer_to_another_question_is_none(
    subject: Subject, document: bytes, listing: tuple[Listed, ...]
) -> None:
    with pytest.raises(ValueError):
        require_answers(Verified(document=document, listing=listing, versions=VERSIONS), subject)


@pytest.mark.parametrize("change", [{"relay_socket": ""}, {"directory_fd": 3}, {"directory_fd": -1}])
def test_a_request_names_exactly_one_source(change: dict[str, Any]) -> None:
    request = Request(
        subject=Subject.RELEASE,
        what="releases/p/1/release.json",
        relay_socket="/run/relay",
        metadata_dir="/var/tuf",
        root_file="/usr/root.json",
        trusted_now=datetime(2026, 11, 24, tzinfo=UTC),
        floors=VERSIONS,
    )
    with pytest.raises(ValueError):
        Request.decode(json.dumps({**json.loads(request.encode()), **change}).encode())
