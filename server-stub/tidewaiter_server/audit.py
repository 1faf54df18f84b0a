"""The server's own audit chain: every write and every denial is exactly one record, durable before the answer.

A record is the canonical JSON of its row; its SHA-256 goes into the next one. `append` runs inside the transaction of
the change it reports, so there is no change without a record and no record without its change. `audit-head.json`
(written at start and at a clean stop) makes a cut tail visible; signed checkpoints take that over later.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, insert, select
from tidewaiter_core.audit_record import canonical, sha256
from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.durable import load_document, save_document

from tidewaiter_server.errors import Denial
from tidewaiter_server.schema import server_audit

ZEROS: Final = "0" * 64
_HEAD_FILE: Final = "audit-head.json"
_TEXT_LIMIT: Final = 256

Fields = Mapping[str, str | int | bool | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """Where the chain is not what it was when it was written."""

    seq: int
    altered: bool
    """False: something is missing."""
    text: str


def append(
    connection: Connection,
    clock: Clock,
    kind: str,
    *,
    actor: str,
    object: str,
    outcome: str = "ok",
    fields: Fields | None = None,
) -> int:
    """Add one record in the running transaction; returns its seq."""
    last = connection.execute(
        select(server_audit.c.seq, server_audit.c.sha256).order_by(server_audit.c.seq.desc()).limit(1)
    ).first()
    record = {
        "seq": last.seq + 1 if last else 0,
        "utc": format_utc(clock.now_utc()),
        "kind": kind,
        "actor": actor[:_TEXT_LIMIT],
        "object": object[:_TEXT_LIMIT],
        "outcome": outcome,
        "fields": canonical({name: _bounded(value) for name, value in (fields or {}).items()}).decode(),
        "prev_sha256": last.sha256 if last else ZEROS,
    }
    connection.execute(insert(server_audit).values(**record, sha256=_digest(record)))
    return int(record["seq"])


def append_denial(connection: Connection, clock: Clock, code: str, denial: Denial) -> None:
    """The record of a refused request."""
    append(
        connection,
        clock,
        denial.kind,
        actor=denial.actor,
        object=denial.object,
        outcome="minor",
        fields={"code": code, **denial.fields},
    )


def verify(connection: Connection, *, next_seq: int = 0) -> list[Finding]:
    """Recompute the whole chain; `next_seq` is where it was known to stand. No finding: intact."""
    findings: list[Finding] = []
    expected, head = 0, ZEROS
    for row in connection.execute(select(server_audit).order_by(server_audit.c.seq)).mappings():
        record = dict(row)
        stored = record.pop("sha256")
        seq = record["seq"]
        if seq != expected:
            findings.append(Finding(expected, False, f"records {expected}..{seq - 1} are missing"))
            # The link across the hole cannot be checked; what follows is checked on its own.
            head = record["prev_sha256"]
        if _digest(record) != stored:
            findings.append(Finding(seq, True, f"record {seq} does not have the hash it was written with"))
        elif record["prev_sha256"] != head:
            findings.append(Finding(seq, True, f"record {seq} does not follow the record before it"))
        expected, head = seq + 1, stored
    if expected < next_seq:
        findings.append(
            Finding(expected, False, f"records {expected}..{next_seq - 1} are missing at the end")
        )
    return findings


def save_head(connection: Connection, data_dir: Path) -> None:
    """Note where the chain stands, outside the database."""
    last = connection.execute(
        select(server_audit.c.seq, server_audit.c.sha256).order_by(server_audit.c.seq.desc()).limit(1)
    ).first()
    document = {"next_seq": last.seq + 1 if last else 0, "head_sha256": last.sha256 if last else ZEROS}
    save_document(data_dir / _HEAD_FILE, document, schema=1)


def known_next_seq(data_dir: Path) -> int:
    """What `save_head` noted last; 0 if it never did."""
    document = load_document(data_dir / _HEAD_FILE, schema=1)
    return int(document["next_seq"]) if document else 0


def _digest(record: Mapping[str, Any]) -> str:
    return sha256(canonical(record))


def _bounded(value: str | int | bool | None) -> str | int | bool | None:
    return value[:_TEXT_LIMIT] if isinstance(value, str) else value
