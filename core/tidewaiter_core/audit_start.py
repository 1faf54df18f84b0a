"""Opening an audit log: find where it ends, put a torn tail aside, or put a damaged log aside and begin a new epoch.

Never truncates before the bytes are safe elsewhere, and never "repairs": what does not continue the chain is kept as found.
Source: security-and-audit.md section 6.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidewaiter_core import durable
from tidewaiter_core.audit_chain import Chain, ChainError, origin_of
from tidewaiter_core.audit_files import (
    FILE_MODE,
    Segment,
    end_files,
    last_corrupt_epoch,
    log_files,
    segment,
    segments,
    torn_files,
)
from tidewaiter_core.audit_record import Outcome, RecordError, sha256
from tidewaiter_core.durable import Disk


@dataclass(frozen=True, slots=True)
class Notice:
    """A record that the log writes about itself as soon as it is open."""

    kind: str
    outcome: Outcome
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Start:
    """Where the log goes on."""

    chain: Chain
    part: Segment
    """The segment to append to; it exists and ends with a whole line."""
    origin: str
    notices: list[Notice]
    first_utc: str = ""
    """Time of the segment's first record, empty if it has none."""


class _DamagedError(Exception):
    """The files are not one intact log; `reason` goes into the new epoch's first record."""

    def __init__(self, reason: str, *, head_sha256: str = "", detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.head_sha256 = head_sha256


@dataclass(slots=True)
class _Tail:
    """The last segment, read to its end."""

    chain: Chain
    good_bytes: int = 0
    torn: bytes = b""
    first_utc: str = ""
    first_origin: str = ""
    recovered: set[str] = field(default_factory=set)
    """Hashes of torn tails that a record of this segment already reports."""


def start(directory: Path, *, component: str, origin: str, disk: Disk) -> Start:
    """Find the end of the log in `directory`, or begin one.

    Args:
        origin: `<vendor domain>/device/<serial>/<component>`, without the epoch.

    Raises:
        OSError, StateWriteError: The medium refuses; nothing was lost.
    """
    found = segments(directory)
    epoch = last_corrupt_epoch(directory) + 1
    if not found:
        reason = "provisioned" if epoch == 1 else "restarted"
        return _begin(
            directory,
            component,
            f"{origin}/{epoch}",
            Notice("audit.opened", Outcome.OK, {"reason": reason}),
            disk,
        )
    stated = _stated_origin(found[0], component)
    base, _, number = stated.rpartition("/")
    if stated and number.isascii() and number.isdigit():
        epoch = max(epoch, int(number))
    try:
        if stated and base != origin:
            raise _DamagedError("origin", detail=f"the log belongs to {base}")  # noqa: TRY301 - one way out
        tail = _read_tail(found[-1], _base(directory, found, component, disk))
        return _continue(directory, found[-1], tail, f"{origin}/{epoch}", disk)
    except _DamagedError as err:
        aside = _put_aside(directory, epoch, disk)
        opened = {
            "reason": err.reason,
            "previous_origin": stated or f"{origin}/{epoch}",
            "head_sha256": err.head_sha256 or None,
            "detail": f"{err}; kept in {aside.name}",
        }
        new = f"{origin}/{int(aside.name.removeprefix('corrupt-')) + 1}"
        return _begin(directory, component, new, Notice("audit.opened", Outcome.MAJOR, opened), disk)


def create_segment(directory: Path, first_seq: int, disk: Disk) -> Segment:
    """A new empty segment whose name survives a power cut."""
    part = segment(directory, first_seq)
    descriptor = os.open(
        part.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE
    )
    try:
        os.fchmod(descriptor, FILE_MODE)  # the umask must not decide who can read the log
        disk.sync(descriptor)
    finally:
        os.close(descriptor)
    disk.sync_directory(directory)
    return part


def _begin(directory: Path, component: str, origin: str, opened: Notice, disk: Disk) -> Start:
    part = create_segment(directory, 0, disk)
    opened.fields["origin"] = origin
    return Start(Chain(component), part, origin, [opened, *_unreported(directory, part, set())])


def _continue(directory: Path, part: Segment, tail: _Tail, origin: str, disk: Disk) -> Start:
    if tail.torn:
        _save_torn(directory, tail.chain.next_seq, tail.torn, disk)
        descriptor = os.open(part.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.ftruncate(descriptor, tail.good_bytes)
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
    notices = _unreported(directory, part, tail.recovered)
    if tail.chain.next_seq == 0:  # the very first record was torn, or power went before it
        notices.insert(0, Notice("audit.opened", Outcome.OK, {"reason": "provisioned", "origin": origin}))
    if part.end_path.exists() and _is_ended(part, tail.chain):
        # Power went between closing this segment and creating the next.
        part = create_segment(directory, tail.chain.next_seq, disk)
        tail.first_utc = ""
    return Start(tail.chain, part, origin, notices, tail.first_utc)


def _base(directory: Path, found: list[Segment], component: str, disk: Disk) -> Chain:
    """The state at the start of the last segment: from the end file before it, or else from reading everything before it."""
    last = found[-1]
    if last.first_seq == 0:
        return Chain(component)
    for part in reversed(end_files(directory)):
        if part.first_seq < last.first_seq:
            chain = _end_state(part, component)
            if chain is not None and chain.next_seq == last.first_seq:
                return chain
    if len(found) == 1:
        raise _DamagedError("corrupt", detail=f"nothing vouches for the records before {last.path.name}")
    previous = found[-2]
    tail = _read_tail(previous, _base(directory, found[:-1], component, disk))
    if tail.torn or tail.chain.next_seq != last.first_seq:
        raise _DamagedError(
            "corrupt",
            head_sha256=tail.chain.prev_sha256,
            detail=f"{previous.path.name} does not reach {last.path.name}",
        )
    durable.write_atomic(previous.end_path, tail.chain.end_document(), mode=FILE_MODE, disk=disk)
    return tail.chain


def _is_ended(part: Segment, chain: Chain) -> bool:
    """Whether the end file of the last segment is right. One that is older than the segment is removed: it is derived data."""
    ended = _end_state(part, chain.component)
    if ended is not None and ended.next_seq > chain.next_seq:
        detail = f"{part.end_path.name} vouches for {ended.next_seq} records, {chain.next_seq} are there"
        raise _DamagedError("rollback", head_sha256=chain.prev_sha256, detail=detail)
    if ended is not None and ended.end_document() == chain.end_document():
        return True
    part.end_path.unlink()
    return False


def _end_state(part: Segment, component: str) -> Chain | None:
    try:
        return Chain.from_end_document(component, part.end_path.read_bytes())
    except RecordError:
        return None


def _read_tail(part: Segment, chain: Chain) -> _Tail:
    """Check every record of `part`; only what follows the last end of line, or an unreadable last line, is a torn tail."""
    data = part.path.read_bytes()
    whole, _, rest = data.rpartition(b"\n")
    lines = whole.split(b"\n") if b"\n" in data else []
    tail = _Tail(chain, torn=rest)
    for number, line in enumerate(lines, start=1):
        try:
            record = chain.accept(line)
        except (RecordError, ChainError) as err:
            if isinstance(err, RecordError) and number == len(lines) and not rest:
                tail.torn = line + b"\n"
                break
            raise _DamagedError(
                "corrupt", head_sha256=chain.prev_sha256, detail=f"{part.path.name}:{number}: {err}"
            ) from err
        tail.good_bytes += len(line) + 1
        tail.first_utc = tail.first_utc or record["utc"]
        if record["kind"] == "audit.recovered":
            tail.recovered.add(str(record["fields"].get("sha256")))
    return tail


def _stated_origin(part: Segment, component: str) -> str:
    """What the log's first record says it is; empty if that record was pruned or cannot be read."""
    with part.path.open("rb") as file:
        line = file.readline(64 * 1024)
    if part.first_seq != 0 or not line.endswith(b"\n"):
        return ""
    try:
        return origin_of(Chain(component).accept(line[:-1]))
    except (RecordError, ChainError):
        return ""


def _save_torn(directory: Path, seq: int, torn: bytes, disk: Disk) -> None:
    """Keep the torn bytes under a name of their own; the same bytes are not kept twice if power goes before the truncation."""
    number = 1
    while True:
        path = directory / (f"torn-{seq}.bin" if number == 1 else f"torn-{seq}-{number}.bin")
        if not path.exists():
            durable.write_atomic(path, torn, mode=FILE_MODE, disk=disk)
            return
        if path.read_bytes() == torn:
            return
        number += 1


def _unreported(directory: Path, part: Segment, reported: set[str]) -> list[Notice]:
    """A notice for each torn file of this segment that no record mentions: power may go between truncation and record."""
    notices = []
    for seq, path in torn_files(directory):
        data = path.read_bytes()
        digest = sha256(data)
        if seq >= part.first_seq and digest not in reported:
            fields = {"bytes": len(data), "sha256": digest, "file": path.name}
            notices.append(Notice("audit.recovered", Outcome.MINOR, fields))
    return notices


def _put_aside(directory: Path, epoch: int, disk: Disk) -> Path:
    """Move the whole log into corrupt-<epoch>/; the next free epoch if that name is taken."""
    while (aside := directory / f"corrupt-{epoch}").exists():
        epoch += 1
    aside.mkdir(mode=0o750)
    for path in log_files(directory):
        path.rename(aside / path.name)
    disk.sync_directory(aside)
    disk.sync_directory(directory)
    return aside
