"""One audit record as bytes: the canonical line, and its strict reader. Pure.

A line is canonical JSON: keys sorted, no spaces, UTF-8, integers only. The reader writes what it read again
and demands identical bytes, so a record has exactly one spelling and its hash means its content. Source:
security-and-audit.md section 3.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from tidewaiter_core import strictjson
from tidewaiter_core.audit_kinds import FIELDS_LIMIT, INT_LIMIT, TEXT_LIMIT, TEXTS_LIMIT, fit_text, fit_texts

LINE_LIMIT_BYTES = 4096
"""Without the line feed."""
GENESIS = "0" * 64
"""prev_sha256 of the first record of a log."""
ID_LIMIT = 128
ACTOR_KINDS = frozenset({"component", "local", "engineer", "server", "site-key", "injector", "system"})

_HEX64 = re.compile(r"[0-9a-f]{64}")
_HEX32 = re.compile(r"[0-9a-f]{32}")
_UTC = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z")
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_CLOCKS = frozenset({"unset", "rtc", "synced", "suspect"})
_COMPONENTS = frozenset({"agent", "hal", "updater"})


class Outcome(StrEnum):
    """DICOM 0, 4, 8, 12."""

    OK = "ok"
    MINOR = "minor"
    SERIOUS = "serious"
    MAJOR = "major"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it, from peer credentials (`uid:985`), a verified ticket or certificate; never from a caller's
    text.
    """

    kind: str
    id: str
    via: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ACTOR_KINDS:
            raise ValueError(f"audit actor kind {self.kind!r} is not one of {', '.join(sorted(ACTOR_KINDS))}")

    def as_json(self) -> dict[str, str]:
        """The `actor` object of a record."""
        result = {"kind": self.kind, "id": fit_text(self.id, ID_LIMIT)}
        if self.via is not None:
            result["via"] = fit_text(self.via, ID_LIMIT)
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """The time of a record; it only annotates, `seq` is the order of truth."""

    utc: str
    boottime_ms: int
    boot_id: str
    clock: str


class RecordError(ValueError):
    """A line is not a record; the text says why."""


def canonical(value: Any) -> bytes:
    """The only spelling of `value`."""
    return json.dumps(
        value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False
    ).encode()


def sha256(line: bytes) -> str:
    """What the next record's prev_sha256 says about `line` (without its line feed)."""
    return hashlib.sha256(line).hexdigest()


def build_line(
    *,
    seq: int,
    prev_sha256: str,
    stamp: Stamp,
    component: str,
    kind: str,
    actor: Actor,
    outcome: Outcome,
    fields: Mapping[str, Any],
) -> bytes:
    """The line of a record without its line feed. If it would be too long, its texts are cut further,
    visibly.
    """
    record: dict[str, Any] = {
        "schema": 1,
        "seq": seq,
        "utc": stamp.utc,
        "boottime_ms": stamp.boottime_ms,
        "boot_id": stamp.boot_id,
        "clock": stamp.clock,
        "component": component,
        "kind": kind,
        "actor": actor.as_json(),
        "outcome": outcome.value,
        "fields": dict(fields),
        "prev_sha256": prev_sha256,
    }
    line = canonical(record)
    limit = TEXT_LIMIT
    while len(line) > LINE_LIMIT_BYTES:
        limit //= 2
        record["fields"] = {name: _shortened(value, limit) for name, value in fields.items()}
        line = canonical(record)
    return line


def parse_line(line: bytes) -> dict[str, Any]:
    """The record of `line` (without line feed), every field checked; kinds and fields of a newer release are
    accepted.

    Raises:
        RecordError: Not canonical, a field missing or out of its range.
    """
    try:
        record = strictjson.loads(line, limit_bytes=LINE_LIMIT_BYTES, depth=4)
    except strictjson.StrictJsonError as err:
        raise RecordError(f"not a record: {err}") from err
    if not isinstance(record, dict):
        raise RecordError("not a record: not a JSON object")
    _expect("schema", record.get("schema"), _is_int(record.get("schema")) and record["schema"] >= 1)
    for name in ("seq", "boottime_ms"):
        _expect(name, record.get(name), _is_int(record.get(name)) and record[name] >= 0)
    for name, pattern in (("utc", _UTC), ("boot_id", _HEX32), ("prev_sha256", _HEX64), ("kind", _NAME)):
        value = record.get(name)
        _expect(name, value, isinstance(value, str) and pattern.fullmatch(value) is not None)
    _expect("utc", record["utc"], _is_date(record["utc"]))
    for name, allowed in (("clock", _CLOCKS), ("component", _COMPONENTS), ("outcome", set(Outcome))):
        value = record.get(name)
        _expect(name, value, isinstance(value, str) and value in allowed)
    _expect("actor", record.get("actor"), _is_actor(record.get("actor")))
    _expect("fields", record.get("fields"), _are_fields(record.get("fields")))
    if canonical(record) != line:
        raise RecordError("not in canonical form: the same record has another spelling")
    return record


def _expect(name: str, value: Any, is_good: bool) -> None:
    if not is_good:
        raise RecordError(f"field {name} is {str(value)[:64]!r}, which it cannot be")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < INT_LIMIT


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_actor(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("kind"), str)
        and value["kind"] in ACTOR_KINDS
        and isinstance(value.get("id"), str)
        and set(value) <= {"kind", "id", "via"}
        and all(isinstance(text, str) and len(text) <= ID_LIMIT for text in value.values())
    )


def _are_fields(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= FIELDS_LIMIT
        and all(_NAME.fullmatch(name) and _is_field(entry) for name, entry in value.items())
    )


def _is_field(value: Any) -> bool:
    match value:
        case bool():
            return True
        case int():
            return abs(value) < INT_LIMIT
        case str():
            return len(value) <= TEXT_LIMIT
        case list():
            return len(value) <= TEXTS_LIMIT and all(
                isinstance(text, str) and len(text) <= TEXT_LIMIT for text in value
            )
        case {"salted_sha256": str() as digest, **others}:  # personal data: section 3
            return not others and _HEX64.fullmatch(digest) is not None
    return False


def _shortened(value: Any, limit: int) -> Any:
    if isinstance(value, str):
        return fit_text(value, limit)
    if isinstance(value, list):
        return fit_texts(value, count=max(2, limit // 16), limit=limit)
    return value
