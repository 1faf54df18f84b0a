"""Offline check of one audit log directory: changed, dropped, reordered, inserted, duplicated or torn
records, and holes.

What the files alone cannot show is a log cut at a record boundary, or a changed last record: give `head`,
which is what the log said about itself at another place (later: the signed and witnessed checkpoint).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tidewaiter_core.audit_chain import Chain, ChainError
from tidewaiter_core.audit_files import Segment, end_files, segments
from tidewaiter_core.audit_record import RecordError, parse_line, sha256


class Flaw(StrEnum):
    """What is wrong with a log."""

    NOT_A_RECORD = "not-a-record"
    BROKEN_CHAIN = "broken-chain"
    HOLE = "hole"
    TORN_TAIL = "torn-tail"
    END_FILE = "end-file"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class Finding:
    """One flaw with its place."""

    flaw: Flaw
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The size of a log and the hash of its last record, as known from elsewhere."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What verify() found."""

    records: int
    first_seq: int
    next_seq: int
    head_sha256: str
    root: str
    """Base64 tree root over all records since seq 0; empty if the chain is broken."""
    findings: Sequence[Finding]

    @property
    def intact(self) -> bool:
        return not self.findings


@dataclass(slots=True)
class _Progress:
    chain: Chain
    head: Head | None
    findings: list[Finding] = field(default_factory=list)
    records: int = 0
    head_seen: bool = False

    def note(self, flaw: Flaw, where: str, text: str) -> None:
        self.findings.append(Finding(flaw, where, text))


def verify(directory: Path, *, head: Head | None = None) -> VerifyReport:
    """Check every record in `directory`; findings are results, never exceptions. OSError if it cannot be
    read at all.
    """
    found = segments(directory)
    progress = _Progress(chain=_start(directory, found), head=head)
    first_seq = found[0].first_seq if found else 0
    if found and progress.chain.next_seq != first_seq:
        progress.note(
            Flaw.HOLE,
            found[0].path.name,
            f"starts at seq {first_seq}; nothing vouches for the records before",
        )
        _resume(progress, first_seq, None)
    for number, part in enumerate(found):
        _check_segment(progress, part, is_last=number == len(found) - 1)
    if head is not None and not progress.head_seen and head.size > 0:
        progress.note(
            Flaw.HEAD,
            directory.name,
            f"ends at {progress.chain.next_seq} records; {head.size} were known, ending in {head.sha256[:16]}",
        )
    return VerifyReport(
        records=progress.records,
        first_seq=first_seq,
        next_seq=progress.chain.next_seq,
        head_sha256=progress.chain.prev_sha256,
        root="" if progress.findings else base64.b64encode(progress.chain.frontier.root()).decode(),
        findings=tuple(progress.findings),
    )


def _start(directory: Path, found: list[Segment]) -> Chain:
    """Genesis, or what the end file before the oldest segment says if older ones were pruned."""
    if not found:
        return Chain("")
    component = _component(found)
    if found[0].first_seq == 0:
        return Chain(component)
    for part in end_files(directory):
        try:
            chain = Chain.from_end_document(component, part.end_path.read_bytes())
        except RecordError:
            continue
        if part.first_seq < found[0].first_seq == chain.next_seq:
            return chain
    return Chain(component)


def _component(found: list[Segment]) -> str:
    """What the first readable record says; all others must agree."""
    for part in found:
        with part.path.open("rb") as file:
            for line in file:
                try:
                    return str(parse_line(line.rstrip(b"\n"))["component"])
                except RecordError:
                    continue
    return ""


def _check_segment(progress: _Progress, part: Segment, *, is_last: bool) -> None:
    if part.first_seq != progress.chain.next_seq:
        progress.note(
            Flaw.HOLE,
            part.path.name,
            f"starts at seq {part.first_seq}, expected {progress.chain.next_seq}; records between are missing or added",
        )
        _resume(progress, part.first_seq, None)
    with part.path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{part.path.name}:{number}"
            if line.endswith(b"\n"):
                _check_line(progress, where, line[:-1])
            else:
                progress.note(Flaw.TORN_TAIL, where, f"{len(line)} bytes without an end of line")
    if part.end_path.exists():
        if part.end_path.read_bytes() != progress.chain.end_document():
            progress.note(Flaw.END_FILE, part.end_path.name, "does not fit the records of its segment")
    elif not is_last:
        progress.note(Flaw.END_FILE, part.end_path.name, "missing although a later segment exists")


def _check_line(progress: _Progress, where: str, line: bytes) -> None:
    chain = progress.chain
    try:
        chain.accept(line)
        progress.records += 1
    except RecordError as err:
        progress.note(Flaw.NOT_A_RECORD, where, str(err))
        _resume(progress, chain.next_seq + 1, line)
    except ChainError as err:
        progress.note(Flaw.BROKEN_CHAIN, where, str(err))
        progress.records += 1
        _resume(progress, int(parse_line(line)["seq"]) + 1, line)
    chain = progress.chain
    if progress.head is not None and chain.next_seq == progress.head.size:
        progress.head_seen = True
        if chain.prev_sha256 != progress.head.sha256:
            progress.note(
                Flaw.HEAD,
                where,
                f"is not the record that was known as the head ({progress.head.sha256[:16]})",
            )


def _resume(progress: _Progress, next_seq: int, line: bytes | None) -> None:
    """Go on behind a flaw from what stands there, so that one flaw gives one finding (or two) and not
    thousands.
    """
    old = progress.chain
    progress.chain = Chain(
        old.component,
        next_seq=next_seq,
        prev_sha256=old.prev_sha256 if line is None else sha256(line),
        frontier=old.frontier,
        utc_last=old.utc_last,
    )
