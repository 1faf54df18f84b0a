"""Names and places of an audit log's files, and reading them. Nothing is written here.

Source: security-and-audit.md section 4, table of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_MODE = 0o640
RESERVE_NAME = "reserve.bin"
RESERVE_BYTES = 256 * 1024

_SEGMENT = re.compile(r"log-([0-9]{12,18})\.jsonl")
_END = re.compile(r"log-([0-9]{12,18})\.end")
_CORRUPT = re.compile(r"corrupt-([0-9]{1,9})")
_TORN = re.compile(r"torn-([0-9]{1,18})(-[0-9]{1,6})?\.bin")
_LOG_FILE = re.compile(r"(log-.*\.(jsonl|end|note))|(head|witnessed)\.note|personal-.*\.jsonl")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of consecutive records."""

    first_seq: int
    path: Path

    @property
    def end_path(self) -> Path:
        return self.path.with_suffix(".end")


def segment(directory: Path, first_seq: int) -> Segment:
    """The segment that starts with `first_seq`, whether or not it exists."""
    return Segment(first_seq, directory / f"log-{first_seq:012d}.jsonl")


def segments(directory: Path) -> list[Segment]:
    """All segments, oldest first."""
    return sorted(
        Segment(int(match[1]), path)
        for path in directory.iterdir()
        if (match := _SEGMENT.fullmatch(path.name))
    )


def end_files(directory: Path) -> list[Segment]:
    """Segments that have an end file, oldest first, also those whose records were pruned."""
    found = (int(match[1]) for path in directory.iterdir() if (match := _END.fullmatch(path.name)))
    return [segment(directory, first_seq) for first_seq in sorted(found)]


def torn_files(directory: Path) -> list[tuple[int, Path]]:
    """Quarantined tails with the seq that they would have had."""
    return sorted(
        (int(match[1]), path) for path in directory.iterdir() if (match := _TORN.fullmatch(path.name))
    )


def last_corrupt_epoch(directory: Path) -> int:
    """The highest epoch that was put aside, 0 if none was."""
    found = (_CORRUPT.fullmatch(path.name) for path in directory.iterdir())
    return max((int(match[1]) for match in found if match), default=0)


def log_files(directory: Path) -> list[Path]:
    """Everything that belongs to the current epoch and is put aside with it, oldest first."""
    return sorted(path for path in directory.iterdir() if _LOG_FILE.fullmatch(path.name))


def usage_bytes(directory: Path) -> int:
    """Bytes of all files that count against the budget: all but the reserve, quarantine included."""
    return sum(
        path.stat().st_size for path in directory.rglob("*") if path.is_file() and path.name != RESERVE_NAME
    )


def read_records(directory: Path, *, from_seq: int = 0, limit: int | None = None) -> Iterator[bytes]:
    """Raw lines (without line feed) from `from_seq` on, at most `limit`; safe beside a writer: a line not
    yet ended is not shown.

    Lines are counted, not parsed: checking them is `verify`'s work. Pruned records are skipped, so the first
    line may be later.
    """
    left = limit
    found = segments(directory)
    for number, part in enumerate(found):
        if number + 1 < len(found) and found[number + 1].first_seq <= from_seq:
            continue
        with part.path.open("rb") as file:
            for offset, line in enumerate(file):
                if part.first_seq + offset < from_seq:
                    continue
                if not line.endswith(b"\n") or (left is not None and left <= 0):
                    return
                left = None if left is None else left - 1
                yield line[:-1]
