"""The two messages between service and trust child: what is not exactly one sound message is none."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tidewaiter_updater.trust_wire import Fault, Request, RoleFloor, Verified, decode_reply

VERSIONS = {
    role: RoleFloor(version=3, keys="c" * 64) for role in ("root", "timestamp", "snapshot", "targets", "os")
}
REPLY = Verified(release=b"{}\n", versions=VERSIONS, proven_utc=datetime(2026, 1, 1, tzinfo=UTC))


def test_request_and_reply_come_back_as_they_went() -> None:
    request = Request(
        relay_socket="/run/relay",
        metadata_dir="/var/tuf",
        root_file="/usr/root.json",
        release_path="releases/p/1/release.json",
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
        {"release": ""},
        {"release": "e30=x"},
        {"release": 5},
        {"release": "QUFB" * 30_000},
        {"versions": {}},
        {"versions": []},
        {"proven_utc": "soon"},
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
