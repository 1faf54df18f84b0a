"""Takes the devices' audit chains: recomputes each link, stores what continues the chain, freezes what contradicts it.

Rules (server design, section 12): an exact repeat is accepted and stored once; a hole is answered with the seq we want;
another record under a stored seq, or a record that does not follow our head, is a fork: the stream is frozen, both
versions are kept, and a person decides.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, insert, select, update
from tidewaiter_core.audit_record import canonical, sha256
from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.strictjson import StrictJsonError, loads

from tidewaiter_server import audit
from tidewaiter_server.errors import malformed
from tidewaiter_server.schema import audit_records, audit_streams

COMPONENTS: Final = ("agent", "hal", "updater")
RECORD_LIMIT_BYTES: Final = 8192
RECORDS_LIMIT: Final = 2000
_OUTCOMES: Final = ("ok", "minor", "serious", "major")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of a device's chain, checked on its own."""

    seq: int
    prev_sha256: str
    utc: str
    kind: str
    actor: str
    outcome: str
    line: bytes
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the device is told. `fork_seq` or `gap` set: 409."""

    next_seq: int
    stored: int = 0
    fork_seq: int | None = None
    gap: bool = False


def parse(body: bytes, component: str) -> list[Record]:
    """The records of an NDJSON body, each canonical and of `component`; 400 names the first line that is not."""
    lines = body.removesuffix(b"\n").split(b"\n") if body else []
    if not 1 <= len(lines) <= RECORDS_LIMIT:
        raise malformed("audit body", f"1..{RECORDS_LIMIT} lines", f"{len(lines)} lines")
    return [_parse_line(number, line, component) for number, line in enumerate(lines, start=1)]


def _parse_line(number: int, line: bytes, component: str) -> Record:
    where = f"audit line {number}"
    try:
        document: Any = loads(line, limit_bytes=RECORD_LIMIT_BYTES, depth=4)
    except StrictJsonError as error:
        raise malformed(where, "one canonical JSON record", str(error)) from error
    if not isinstance(document, dict) or canonical(document) != line:
        # A line with two spellings would have two hashes; the device writes exactly one.
        raise malformed(where, "one canonical JSON object", "another spelling")
    seq, actor = document.get("seq"), document.get("actor")
    if type(seq) is not int or not 0 <= seq < 2**53:
        raise malformed(where, "seq as a number from 0", repr(seq))
    if document.get("component") != component:
        raise malformed(where, f"component {component}", repr(document.get("component")))
    if not isinstance(actor, dict) or document.get("outcome") not in _OUTCOMES:
        raise malformed(where, "an actor object and a known outcome", repr(document.get("outcome")))
    texts = {name: document.get(name) for name in ("prev_sha256", "utc", "kind")}
    if not all(isinstance(value, str) and len(value) <= 128 for value in texts.values()):
        raise malformed(where, "prev_sha256, utc and kind as short texts", "something else")
    return Record(
        seq=seq,
        prev_sha256=document["prev_sha256"],
        utc=document["utc"],
        kind=document["kind"],
        actor=json.dumps(actor, sort_keys=True)[:256],
        outcome=document["outcome"],
        line=line,
        sha256=sha256(line),
    )


def store(
    connection: Connection, clock: Clock, device_id: str, component: str, records: Sequence[Record]
) -> Answer:
    """Continue the stream with `records`, in the running transaction; one server audit record says what came of it."""
    stream = connection.execute(
        select(audit_streams).where(
            audit_streams.c.device_id == device_id, audit_streams.c.component == component
        )
    ).first()
    if stream is None:
        connection.execute(
            insert(audit_streams).values(
                device_id=device_id, component=component, next_seq=0, head_sha256=audit.ZEROS, state="ok"
            )
        )
    next_seq, head = (stream.next_seq, stream.head_sha256) if stream else (0, audit.ZEROS)
    if stream is not None and stream.state == "fork":
        return Answer(next_seq=next_seq, fork_seq=next_seq)
    answer, head = _continue(connection, clock, device_id, component, next_seq, head, records)
    connection.execute(
        update(audit_streams)
        .where(audit_streams.c.device_id == device_id, audit_streams.c.component == component)
        .values(next_seq=answer.next_seq, head_sha256=head, state="ok" if answer.fork_seq is None else "fork")
    )
    return answer


def _continue(
    connection: Connection,
    clock: Clock,
    device_id: str,
    component: str,
    next_seq: int,
    head: str,
    records: Sequence[Record],
) -> tuple[Answer, str]:
    stored = 0
    for record in records:
        if record.seq > next_seq:
            return Answer(next_seq=next_seq, stored=stored, gap=True), head
        known = _hash_of(connection, device_id, component, record.seq) if record.seq < next_seq else None
        if known == record.sha256:
            continue
        _insert(connection, clock, device_id, component, record)
        if known is not None or record.prev_sha256 != head:
            return Answer(next_seq=next_seq, stored=stored, fork_seq=record.seq), head
        next_seq, head, stored = record.seq + 1, record.sha256, stored + 1
    return Answer(next_seq=next_seq, stored=stored), head


def _hash_of(connection: Connection, device_id: str, component: str, seq: int) -> str | None:
    found = connection.execute(
        select(audit_records.c.sha256).where(
            audit_records.c.device_id == device_id,
            audit_records.c.component == component,
            audit_records.c.seq == seq,
        )
    ).scalar_one_or_none()
    return None if found is None else str(found)


def _insert(connection: Connection, clock: Clock, device_id: str, component: str, record: Record) -> None:
    connection.execute(
        insert(audit_records).values(
            device_id=device_id,
            component=component,
            seq=record.seq,
            sha256=record.sha256,
            utc=record.utc,
            received_utc=format_utc(clock.now_utc()),
            kind=record.kind,
            actor=record.actor,
            outcome=record.outcome,
            record=record.line,
        )
    )
