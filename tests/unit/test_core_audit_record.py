"""Lines, kinds and the chain: the published test vector, canonical form, limits."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tidewaiter_core import audit_kinds
from tidewaiter_core.audit_chain import Chain, ChainError, Frontier, origin_of
from tidewaiter_core.audit_kinds import KINDS, LAST_WORDS, Durability, checked_fields, kind_of
from tidewaiter_core.audit_record import (
    GENESIS,
    LINE_LIMIT_BYTES,
    Actor,
    Outcome,
    RecordError,
    Stamp,
    build_line,
    canonical,
    parse_line,
    sha256,
)

BOOT = "0f7c1c9e5b7a4d0c8e7c7f2d1a3b4c5d"
ORIGIN = "vendor.example/device/INJ-000123/agent/1"

# security-and-audit.md section 4: (line, sha256 of the line, tree root after it)
VECTOR = (
    (
        '{"actor":{"id":"agent","kind":"component"},"boot_id":"0f7c1c9e5b7a4d0c8e7c7f2d1a3b4c5d","boottime_ms":61234,'
        '"clock":"synced","component":"agent","fields":{"origin":"vendor.example/device/INJ-000123/agent/1",'
        '"reason":"provisioned"},"kind":"audit.opened","outcome":"ok","prev_sha256":'
        '"0000000000000000000000000000000000000000000000000000000000000000","schema":1,"seq":0,'
        '"utc":"2026-11-23T08:00:00.000Z"}',
        "02d16859f9df75ac2c19010b86e7a31f3267c460931dfeca56a3d7290554dd52",
        "c5a4b0bf62bfa0b2df670e54684192a6abd7c406f24d7f89ecd3de2f3031e7bc",
    ),
    (
        '{"actor":{"id":"uid:985","kind":"local"},"boot_id":"0f7c1c9e5b7a4d0c8e7c7f2d1a3b4c5d","boottime_ms":971235,'
        '"clock":"synced","component":"agent","fields":{"duration_s":3600,"grant":"g-01","incident":"INC-4711",'
        '"scopes":["shell"]},"kind":"consent.given","outcome":"ok","prev_sha256":'
        '"02d16859f9df75ac2c19010b86e7a31f3267c460931dfeca56a3d7290554dd52","schema":1,"seq":1,'
        '"utc":"2026-11-23T08:15:10.001Z"}',
        "b7fb7e12ecdbb249f57d0565f6586123c449209f7133715e3464074a9ddf33da",
        "18818c8add6ee5148d5e40313b300ad29f3886e6e43b5720350f09ef34088e83",
    ),
    (
        '{"actor":{"id":"u-1042@vendor.example","kind":"engineer"},"boot_id":"0f7c1c9e5b7a4d0c8e7c7f2d1a3b4c5d",'
        '"boottime_ms":991357,"clock":"synced","component":"agent","fields":{"grant":"g-01","incident":"INC-4711",'
        '"max_s":3600,"services":["shell"],"session":"s-01","ticket":"t-01"},"kind":"session.started","outcome":"ok",'
        '"prev_sha256":"b7fb7e12ecdbb249f57d0565f6586123c449209f7133715e3464074a9ddf33da","schema":1,"seq":2,'
        '"utc":"2026-11-23T08:15:30.123Z"}',
        "61d4f9bcb6a0b286ed5bc8182f082ac88e5096b36a017987e1f0873b3cabfbb6",
        base64.b64decode("RcneJsJuQVkkDllMIIU1fEoj/0FsR9/k5ZUnzg7sIdU=").hex(),
    ),
)
CALLS: tuple[tuple[str, Actor, dict[str, Any], int, str], ...] = (
    ("audit.opened", Actor("component", "agent"), {"origin": ORIGIN, "reason": "provisioned"}, 61234,
     "2026-11-23T08:00:00.000Z"),
    ("consent.given", Actor("local", "uid:985"),
     {"scopes": ["shell"], "incident": "INC-4711", "grant": "g-01", "duration_s": 3600}, 971235,
     "2026-11-23T08:15:10.001Z"),
    ("session.started", Actor("engineer", "u-1042@vendor.example"),
     {"session": "s-01", "ticket": "t-01", "grant": "g-01", "incident": "INC-4711", "max_s": 3600,
      "services": ["shell"]}, 991357, "2026-11-23T08:15:30.123Z"),
)  # fmt: skip


def line_with(**changes: Any) -> bytes:
    record = json.loads(VECTOR[1][0])
    record.update(changes)
    return canonical(record)


def build(fields: dict[str, Any], *, kind: str = "consent.given", actor: Actor | None = None) -> bytes:
    return build_line(
        seq=1,
        prev_sha256=GENESIS,
        stamp=Stamp(utc="2026-11-23T08:15:10.001Z", boottime_ms=1, boot_id=BOOT, clock="rtc"),
        component="agent",
        kind=kind,
        actor=actor or Actor("local", "uid:985"),
        outcome=Outcome.OK,
        fields=checked_fields(kind_of(kind), fields),
    )


def test_the_published_vector_is_reproduced_byte_for_byte() -> None:
    previous = GENESIS
    for seq, ((text, digest, _), call) in enumerate(zip(VECTOR, CALLS, strict=True)):
        kind, actor, fields, boottime_ms, utc = call
        line = build_line(
            seq=seq,
            prev_sha256=previous,
            stamp=Stamp(utc=utc, boottime_ms=boottime_ms, boot_id=BOOT, clock="synced"),
            component="agent",
            kind=kind,
            actor=actor,
            outcome=Outcome.OK,
            fields=checked_fields(kind_of(kind), fields),
        )
        assert line == text.encode()
        previous = sha256(line)
        assert previous == digest


def test_the_published_roots_are_reproduced() -> None:
    chain = Chain("agent")
    for text, digest, root in VECTOR:
        chain.accept(text.encode())
        assert (chain.prev_sha256, chain.frontier.root().hex()) == (digest, root)


def test_the_first_record_states_the_origin() -> None:
    assert origin_of(parse_line(VECTOR[0][0].encode())) == ORIGIN
    assert origin_of(parse_line(VECTOR[1][0].encode())) == ""


@pytest.mark.parametrize(
    "line",
    [
        VECTOR[1][0].encode() + b" ",
        VECTOR[1][0].replace(":", ": ", 1).encode(),
        json.dumps(json.loads(VECTOR[1][0])).encode(),
        VECTOR[1][0].replace("uid:985", "uid:\\u003985").encode(),
        VECTOR[1][0].replace('"seq":1', '"seq":1.0').encode(),
        VECTOR[1][0].replace('"schema":1', '"schema":1,"schema":1').encode(),
    ],
)
def test_a_second_spelling_of_a_record_is_refused(line: bytes) -> None:
    with pytest.raises(RecordError):
        parse_line(line)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 0},
        {"seq": -1},
        {"seq": True},
        {"seq": 2**53},
        {"utc": "2026-11-23T08:15:10Z"},
        {"utc": "2026-13-23T08:15:10.000Z"},
        {"boot_id": "0F7C" * 8},
        {"clock": "good"},
        {"component": "server"},
        {"kind": "Consent"},
        {"outcome": "fine"},
        {"prev_sha256": "0" * 63},
        {"actor": {"kind": "local"}},
        {"actor": {"kind": "nobody", "id": "x"}},
        {"actor": {"kind": "local", "id": "x" * 129}},
        {"actor": {"kind": "local", "id": "x", "name": "y"}},
        {"fields": []},
        {"fields": {"a": "x" * 257}},
        {"fields": {"a": ["x"] * 17}},
        {"fields": {"a": [1]}},
        {"fields": {"a": None}},
        {"fields": {"a": {"b": 1}}},
        {"fields": {"name": {"salted_sha256": "short"}}},
        {"fields": {f"f{number}": 1 for number in range(17)}},
        {"fields": {"a": ["x" * 256] * 16, "b": "y" * 256}},
    ],
)
def test_a_record_with_a_field_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RecordError):
        parse_line(line_with(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"added": "by a newer release"},
        {"kind": "future.kind"},
        {"fields": {"name": {"salted_sha256": "0" * 64}}},
        {"fields": {"on": True, "texts": ["ü"]}},
        {"actor": {"kind": "local", "id": "uid:1", "via": "hmi"}},
    ],
)
def test_what_a_newer_release_may_add_is_read(changes: dict[str, Any]) -> None:
    assert parse_line(line_with(**changes))["seq"] == 1


def test_every_kind_has_at_most_sixteen_fields_and_a_valid_name() -> None:
    for kind in KINDS.values():
        assert len(kind.fields) <= 16
        line = build({}, kind=kind.name)
        assert parse_line(line)["kind"] == kind.name


def test_all_kinds_of_the_design_are_in_the_list_with_their_class() -> None:
    expected = {
        "process.started": "B", "network.attached": "C", "server.authenticated": "B", "local.login": "B",
        "consent.expired": "A", "session.started": "A", "session.refused": "B", "command.refused": "B",
        "session.stream": "B", "local_service.started": "A", "override.started": "A", "config.changed": "A",
        "identity.wiped": "A", "update.installing": "A", "update.refused": "A", "injector_firmware.applied": "A",
        "interlock.denied": "B", "injector.link": "C", "hardware.changed": "B", "operator.changed": "A",
        "audit.opened": "A", "audit.suppressed": "A", "audit.read": "B", "clock.stepped": "A",
        "diagnostics.collected": "B",
    }  # fmt: skip
    assert {name: KINDS[name].durability.value for name in expected} == expected


def test_every_last_word_is_a_kind() -> None:
    assert set(KINDS) >= LAST_WORDS
    assert KINDS["update.installing"].durability is Durability.ACTION
    assert "update.installing" not in LAST_WORDS


def test_an_unknown_kind_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match=r"'consent\.givn' is not in the closed list"):
        kind_of("consent.givn")


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"grnt": "g"}, "has no field 'grnt'"),
        ({"grant": 7}, "grant: expected text, found a int"),
        ({"duration_s": "7"}, "duration_s: expected int"),
        ({"duration_s": True}, "duration_s: expected int"),
        ({"duration_s": 1.5}, "duration_s: expected int"),
        ({"scopes": "shell"}, "scopes: expected texts"),
        ({"scopes": [1]}, "scopes: expected texts"),
    ],
)
def test_a_wrong_field_is_a_programming_error(fields: dict[str, Any], finding: str) -> None:
    with pytest.raises(ValueError, match=finding):
        checked_fields(kind_of("consent.given"), fields)


def test_an_actor_of_unknown_kind_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="'root'"):
        Actor("root", "0")


def test_none_is_left_out_and_long_values_are_cut_visibly() -> None:
    fields = {"grant": "x" * 300, "incident": None, "scopes": [str(number) for number in range(20)]}
    checked = checked_fields(kind_of("consent.given"), fields)
    assert checked["grant"] == "x" * 255 + "…"
    assert "incident" not in checked
    assert checked["scopes"][-1] == "… 5 more"
    assert len(checked["scopes"]) == 16


def test_a_line_is_never_longer_than_the_limit() -> None:
    fields = dict.fromkeys(
        ("grant", "incident", "digest", "release", "action", "channel", "reason"), "\x00" * 256
    )
    line = build(fields | {"scopes": ["\0" * 256] * 16}, actor=Actor("local", "\0" * 500, via="\0" * 500))
    assert len(line) <= LINE_LIMIT_BYTES
    assert parse_line(line)["fields"]["grant"].endswith("…")


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(["grant", "incident", "detail"]), st.text()),
    st.lists(st.text()),
    st.text(),
)
def test_any_text_gives_a_line_that_reads_back(fields: dict[str, str], scopes: list[str], actor: str) -> None:
    line = build(fields | {"scopes": scopes}, actor=Actor("engineer", actor))
    assert b"\n" not in line
    assert parse_line(line)["kind"] == "consent.given"


def test_half_a_surrogate_pair_does_not_stop_a_record() -> None:
    assert parse_line(build({"grant": "a\ud800b"}))["fields"]["grant"] == "a\\ud800b"


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"seq": 2}, "seq is 2, expected 1"),
        ({"prev_sha256": "1" * 64}, "not the hash of the record before"),
        ({"component": "hal"}, "component is hal, expected agent"),
    ],
)
def test_a_record_that_does_not_follow_is_refused(changes: dict[str, Any], finding: str) -> None:
    chain = Chain("agent")
    chain.accept(VECTOR[0][0].encode())
    with pytest.raises(ChainError, match=finding):
        chain.accept(line_with(**changes))
    chain.accept(VECTOR[1][0].encode())


def reference_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, written down as the definition says."""
    import hashlib

    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\1" + reference_root(leaves[:split]) + reference_root(leaves[split:])).digest()


def test_the_frontier_gives_the_rfc_6962_root_at_every_size() -> None:
    frontier, leaves = Frontier(), []
    for number in range(70):
        leaves.append(b"leaf %d" % number)
        frontier.add(leaves[-1])
        assert frontier.root() == reference_root(leaves)
        assert frontier.size == len(leaves)


def test_an_end_document_restores_the_chain() -> None:
    chain = Chain("agent")
    for text, _, _ in VECTOR:
        chain.accept(text.encode())
    restored = Chain.from_end_document("agent", chain.end_document())
    assert restored.end_document() == chain.end_document()
    assert restored.frontier.root() == chain.frontier.root()


@pytest.mark.parametrize(
    "change",
    [
        {"size": 4},
        {"size": -1},
        {"size": "3"},
        {"frontier": [[1, "00" * 32]]},
        {"frontier": [[0, "00" * 32], [0, "00" * 32], [0, "00" * 32]]},
        {"frontier": [[1, "00" * 31], [0, "00" * 32]]},
        {"frontier": 7},
        {"frontier": [[1]]},
        {"prev_sha256": "zz"},
        {"prev_sha256": None},
    ],
)
def test_a_damaged_end_document_is_refused(change: dict[str, Any]) -> None:
    chain = Chain("agent")
    for text, _, _ in VECTOR:
        chain.accept(text.encode())
    document = json.loads(chain.end_document()) | change
    with pytest.raises(RecordError, match="end file"):
        Chain.from_end_document("agent", canonical(document))
    with pytest.raises(RecordError, match="end file"):
        Chain.from_end_document("agent", b"[]")


def test_no_kind_is_declared_twice() -> None:
    names = [name for row in audit_kinds._TABLE for name in row[0].split()]
    assert len(names) == len(set(names)) == len(KINDS)
