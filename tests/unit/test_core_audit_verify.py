"""verify() on a log of 60 records in several segments: every mutation of every record is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tidewaiter_core.audit import Flaw, Head, read_records, verify
from tidewaiter_core.audit_files import segments
from tidewaiter_core.audit_record import sha256

from tests.sim.auditlog import fill, open_log

RECORDS = 60


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 records: the opening one and 59 others, in at least three segments."""
    directory = tmp_path_factory.mktemp("audit") / "updater"
    with open_log(directory) as log:
        fill(log, RECORDS - 1)
    assert len(segments(directory)) >= 3
    return directory


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "updater"))


def head_of(directory: Path) -> Head:
    lines = list(read_records(directory))
    return Head(size=len(lines), sha256=sha256(lines[-1]))


def rewrite(directory: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    """Put changed lines back, each segment keeping the number of lines it had; the last takes the rest."""
    files = segments(directory)
    counts = [len(part.path.read_bytes().splitlines()) for part in files]
    lines = change([line for part in files for line in part.path.read_bytes().splitlines(keepends=True)])
    for part, count in zip(files[:-1], counts[:-1], strict=True):
        part.path.write_bytes(b"".join(lines[:count]))
        lines = lines[count:]
    files[-1].path.write_bytes(b"".join(lines))


def test_an_untouched_log_is_intact(original: Path) -> None:
    report = verify(original, head=head_of(original))
    assert report.findings == ()
    assert (report.records, report.first_seq, report.next_seq) == (RECORDS, 0, RECORDS)
    assert report.root
    assert report.head_sha256 == head_of(original).sha256


def changed(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at].replace(b'"outcome":"ok"', b'"outcome":"minor"'), *lines[at + 1 :]]


def dropped(lines: list[bytes], at: int) -> list[bytes]:
    return lines[:at] + lines[at + 1 :]


def duplicated(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[: at + 1], lines[at], *lines[at + 1 :]]


def swapped(lines: list[bytes], at: int) -> list[bytes]:
    other = (at + 1) % len(lines)
    result = list(lines)
    result[at], result[other] = result[other], result[at]
    return result


def inserted(lines: list[bytes], at: int) -> list[bytes]:
    """A forged record that looks right by itself."""
    forged = lines[at].replace(b"pump", b"pomp").replace(b"provisioned", b"provizioned")
    assert forged != lines[at]
    return [*lines[:at], forged, *lines[at:]]


def blanked(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], b"\n", *lines[at + 1 :]]


@pytest.mark.parametrize("mutation", [changed, dropped, duplicated, swapped, inserted, blanked])
def test_every_mutation_of_every_record_is_found(
    original: Path, tmp_path: Path, mutation: Callable[[list[bytes], int], list[bytes]]
) -> None:
    head = head_of(original)
    for at in range(RECORDS):
        directory = Path(shutil.copytree(original, tmp_path / str(at)))
        rewrite(directory, lambda lines, at=at: mutation(lines, at))  # type: ignore[misc]
        assert not verify(directory, head=head).intact, f"{mutation.__name__} of record {at} was not found"


def test_every_flipped_byte_of_a_record_is_found(original: Path, tmp_path: Path) -> None:
    head = head_of(original)
    directory = Path(shutil.copytree(original, tmp_path / "copy"))
    last = segments(directory)[-1].path
    good = last.read_bytes()
    start = good.rindex(b"\n", 0, len(good) - 1) + 1
    for offset in range(start, len(good)):
        last.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        assert not verify(directory, head=head).intact, f"flip at {offset} was not found"


def test_a_cut_at_every_byte_of_the_last_two_records_is_found(original: Path, tmp_path: Path) -> None:
    head = head_of(original)
    directory = Path(shutil.copytree(original, tmp_path / "copy"))
    last = segments(directory)[-1].path
    good = last.read_bytes()
    lines = good.splitlines(keepends=True)
    start = len(good) - len(lines[-1]) - len(lines[-2])
    for length in range(start, len(good)):
        last.write_bytes(good[:length])
        report = verify(directory, head=head)
        assert Flaw.HEAD in {finding.flaw for finding in report.findings}
        is_torn = good[:length].endswith(b"\n") is False
        assert (Flaw.TORN_TAIL in {finding.flaw for finding in report.findings}) is is_torn


def test_without_a_known_head_a_cut_at_a_record_boundary_cannot_be_seen(copy: Path) -> None:
    last = segments(copy)[-1].path
    last.write_bytes(b"".join(last.read_bytes().splitlines(keepends=True)[:-1]))
    assert verify(copy).intact
    assert not verify(copy, head=Head(size=RECORDS, sha256="0" * 64)).intact


def test_a_missing_segment_is_a_hole(copy: Path) -> None:
    segments(copy)[1].path.unlink()
    assert Flaw.HOLE in {finding.flaw for finding in verify(copy).findings}


def test_a_pruned_start_is_accepted_only_with_its_end_file(copy: Path) -> None:
    first = segments(copy)[0]
    first.path.unlink()
    report = verify(copy)
    assert report.intact
    assert report.first_seq > 0
    first.end_path.unlink()
    assert [finding.flaw for finding in verify(copy).findings][:1] == [Flaw.HOLE]


@pytest.mark.parametrize("damage", [b"", b"{}", b"garbage\n"])
def test_a_damaged_end_file_is_found(copy: Path, damage: bytes) -> None:
    segments(copy)[0].end_path.write_bytes(damage)
    assert [finding.flaw for finding in verify(copy).findings] == [Flaw.END_FILE]


def test_a_missing_end_file_is_found(copy: Path) -> None:
    segments(copy)[0].end_path.unlink()
    assert [finding.flaw for finding in verify(copy).findings] == [Flaw.END_FILE]


def test_one_flaw_does_not_hide_the_next_and_names_its_place(copy: Path) -> None:
    rewrite(copy, lambda lines: changed(changed(lines, 5), 12))
    findings = verify(copy).findings
    chain = [finding for finding in findings if finding.flaw is Flaw.BROKEN_CHAIN]
    assert [finding.where for finding in chain] == ["log-000000000000.jsonl:7", "log-000000000000.jsonl:14"]
    assert "not the hash of the record before" in str(chain[0])


def test_a_record_of_another_component_is_found(copy: Path) -> None:
    rewrite(copy, lambda lines: [line.replace(b'"component":"updater"', b'"component":"hal"') if at == 9 else line
                                 for at, line in enumerate(lines)])  # fmt: skip
    assert any("component is hal" in finding.text for finding in verify(copy).findings)


def test_an_empty_directory_is_an_intact_log_without_records(tmp_path: Path) -> None:
    report = verify(tmp_path)
    assert (report.intact, report.records) == (True, 0)


def test_records_are_read_from_any_place_and_up_to_a_limit(original: Path) -> None:
    everything = list(read_records(original))
    assert len(everything) == RECORDS
    for from_seq in range(RECORDS + 2):
        assert list(read_records(original, from_seq=from_seq)) == everything[from_seq:]
        assert list(read_records(original, from_seq=from_seq, limit=7)) == everything[from_seq : from_seq + 7]


def test_a_line_that_is_still_being_written_is_not_read(copy: Path) -> None:
    with segments(copy)[-1].path.open("ab") as file:
        file.write(b'{"actor":')
    assert len(list(read_records(copy))) == RECORDS
