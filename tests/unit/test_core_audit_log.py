"""AuditLog: durability, recovery after power cuts, new epochs, rotation, budget, refusing media, floods."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_core.audit import (
    SUPPRESSED,
    Actor,
    AuditLog,
    AuditUnavailableError,
    Head,
    Outcome,
    read_records,
    verify,
)
from tidewaiter_core.audit_files import RESERVE_BYTES, segments, usage_bytes
from tidewaiter_core.audit_record import sha256
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import SecondInstanceError

from tests.sim.auditlog import ACTOR, ORIGIN, Medium, fill, open_log
from tests.sim.clock import FakeClock


def records(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_records(directory)]


def kinds(directory: Path) -> list[str]:
    return [record["kind"] for record in records(directory)]


def whole(directory: Path) -> list[bytes]:
    return list(read_records(directory))


def append(log: AuditLog, kind: str = "update.refused", **fields: Any) -> int:
    return log.append(kind, actor=ACTOR, fields=fields)


# -- begin, content, durability ---------------------------------------------------------------------------------------


def test_a_new_log_begins_with_its_identity(tmp_path: Path) -> None:
    with open_log(tmp_path / "new" / "updater") as log:
        assert log.origin == f"{ORIGIN}/1"
        assert log.next_seq == 1
    (first,) = records(tmp_path / "new" / "updater")
    assert first["kind"] == "audit.opened"
    assert first["fields"] == {"origin": f"{ORIGIN}/1", "reason": "provisioned"}
    assert first["actor"] == {"kind": "component", "id": "updater"}


def test_a_record_says_who_when_and_what(tmp_path: Path) -> None:
    clock = FakeClock(boottime_s=61.5)
    with open_log(tmp_path, clock=clock, clock_state=lambda: "synced") as log:
        seq = log.append(
            "consent.refused",
            actor=Actor("local", "uid:985", via="hmi"),
            outcome=Outcome.MINOR,
            fields={"digest": "d" * 64, "scopes": ("install",)},
        )
        assert seq == 1
        assert log.head_sha256 == sha256(whole(tmp_path)[-1])
    record = records(tmp_path)[-1]
    assert record["actor"] == {"kind": "local", "id": "uid:985", "via": "hmi"}
    assert (record["outcome"], record["clock"], record["boottime_ms"]) == ("minor", "synced", 61500)
    assert record["utc"] == "2026-11-24T12:00:00.000Z"
    assert record["fields"] == {"digest": "d" * 64, "scopes": ["install"]}


def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    for _ in range(3):
        with open_log(tmp_path) as log:
            append(log, release="pump 1")
    assert kinds(tmp_path) == ["audit.opened", *["update.refused"] * 3]
    assert verify(tmp_path).intact


def test_a_class_a_record_is_synced_before_append_returns(tmp_path: Path) -> None:
    medium = Medium()
    with open_log(tmp_path, disk=medium) as log:
        before = medium.syncs
        append(log, release="x")
        assert medium.syncs == before + 1


def test_class_b_records_share_one_sync_and_flush_forces_it(tmp_path: Path) -> None:
    medium = Medium()
    with open_log(tmp_path, disk=medium) as log:
        before = medium.syncs
        for _ in range(20):
            append(log, "hardware.changed", what="pump")
        assert medium.syncs == before
        log.flush()
        assert medium.syncs == before + 1
        log.flush()
        assert medium.syncs == before + 1


@pytest.mark.parametrize(("kind", "within_s"), [("hardware.changed", 1.0), ("injector.link", 5.0)])
def test_a_record_of_class_b_or_c_is_synced_in_its_time_when_more_follow(
    tmp_path: Path, kind: str, within_s: float
) -> None:
    medium, clock = Medium(), FakeClock()
    with open_log(tmp_path, disk=medium, clock=clock) as log:
        before = medium.syncs
        append(log, kind)
        clock.advance(within_s - 0.1)
        append(log, "injector.link")
        assert medium.syncs == before
        clock.advance(0.1)
        append(log, "injector.link")
        assert medium.syncs == before + 1


def test_a_quiet_class_b_record_is_synced_without_a_further_append(tmp_path: Path) -> None:
    synced = threading.Event()

    class Watched(Medium):
        def sync(self, fd: int) -> None:
            super().sync(fd)
            synced.set()

    with open_log(tmp_path, disk=Watched(), clock=SystemClock()) as log:
        synced.clear()
        append(log, "hardware.changed", what="pump")
        assert synced.wait(3)


def test_files_are_readable_by_the_group_whatever_the_umask(tmp_path: Path) -> None:

    old = os.umask(0o077)
    try:
        with open_log(tmp_path) as log:
            fill(log, 40)
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) >= 4
    assert set(modes.values()) == {0o640}


def test_an_unknown_kind_or_field_is_a_programming_error_and_the_log_goes_on(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        with pytest.raises(ValueError, match="closed list"):
            append(log, "update.exploded")
        with pytest.raises(ValueError, match="has no field"):
            append(log, colour="red")
        assert append(log, release="x") == 1


def test_many_threads_append_to_one_chain(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        threads = [threading.Thread(target=fill, args=(log, 25)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        head = Head(size=log.next_seq, sha256=log.head_sha256)
    report = verify(tmp_path, head=head)
    assert (report.intact, report.records) == (True, 101)


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with (
        open_log(tmp_path),
        pytest.raises(SecondInstanceError, match="another process writes this audit log"),
    ):
        open_log(tmp_path)
    open_log(tmp_path).close()


def test_a_closed_log_refuses(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.close()
    with pytest.raises(AuditUnavailableError, match="it is closed"):
        append(log)
    log.close()


# -- power cuts -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def short_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("short") / "updater"
    with open_log(directory, segment_bytes=1 << 20) as log:
        fill(log, 6)
    return directory


def test_a_cut_at_every_byte_of_the_last_two_records_keeps_all_whole_records(
    short_log: Path, tmp_path: Path
) -> None:
    good = segments(short_log)[0].path.read_bytes()
    lines = good.splitlines(keepends=True)
    start = len(good) - len(lines[-1]) - len(lines[-2])
    for length in range(start, len(good)):
        directory = tmp_path / str(length)
        shutil.copytree(short_log, directory)
        segments(directory)[0].path.write_bytes(good[:length])
        torn = good[:length].rpartition(b"\n")[2]
        expected = good[: length - len(torn)].splitlines()
        with open_log(directory) as log:
            assert log.next_seq == len(expected) + (1 if torn else 0)
        assert whole(directory)[: len(expected)] == expected
        if torn:
            quarantined = directory / f"torn-{len(expected)}.bin"
            assert quarantined.read_bytes() == torn
            fields = records(directory)[-1]["fields"]
            assert fields == {"bytes": len(torn), "sha256": sha256(torn), "file": quarantined.name}
        assert verify(directory).intact
        shutil.rmtree(directory)


@pytest.mark.parametrize("torn", [b"\0" * 4096, b"\xff\xfe", b'{"actor":{"id":"\n', b"\n"])
def test_an_unreadable_last_line_is_a_torn_tail(short_log: Path, tmp_path: Path, torn: bytes) -> None:
    directory = Path(shutil.copytree(short_log, tmp_path / "updater"))
    before = whole(directory)
    with segments(directory)[0].path.open("ab") as file:
        file.write(torn)
    open_log(directory).close()
    assert whole(directory)[:-1] == before
    assert kinds(directory)[-1] == "audit.recovered"
    assert (directory / f"torn-{len(before)}.bin").read_bytes() == torn


def test_power_lost_between_truncation_and_record_still_reports_the_tail(
    short_log: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(short_log, tmp_path / "updater"))
    (directory / "torn-7.bin").write_bytes(b"half a rec")
    for _ in range(2):
        open_log(directory).close()
    assert kinds(directory).count("audit.recovered") == 1


def test_power_lost_before_truncation_does_not_quarantine_twice(short_log: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(short_log, tmp_path / "updater"))
    with segments(directory)[0].path.open("ab") as file:
        file.write(b"half a rec")
    (directory / "torn-7.bin").write_bytes(b"half a rec")
    open_log(directory).close()
    assert [path.name for path in directory.glob("torn-*")] == ["torn-7.bin"]


def test_another_tail_at_the_same_place_gets_a_name_of_its_own(short_log: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(short_log, tmp_path / "updater"))
    with segments(directory)[0].path.open("ab") as file:
        file.write(b"second tail")
    (directory / "torn-7.bin").write_bytes(b"first tail")
    open_log(directory).close()
    assert (directory / "torn-7.bin").read_bytes() == b"first tail"
    assert (directory / "torn-7-2.bin").read_bytes() == b"second tail"
    assert kinds(directory).count("audit.recovered") == 2


def test_a_torn_first_record_begins_the_log_again_and_says_so(tmp_path: Path) -> None:
    open_log(tmp_path).close()
    path = segments(tmp_path)[0].path
    path.write_bytes(path.read_bytes()[:40])
    open_log(tmp_path).close()
    assert kinds(tmp_path) == ["audit.opened", "audit.recovered"]


def test_power_lost_between_end_file_and_new_segment_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        while len(segments(tmp_path)) < 2:
            fill(log, 1)
    segments(tmp_path)[-1].path.unlink()
    lost = segments(tmp_path)[-1]
    with open_log(tmp_path) as log:
        fill(log, 1)
    assert lost.end_path.exists()
    assert verify(tmp_path).intact
    assert len(segments(tmp_path)) == 2


# -- damage -----------------------------------------------------------------------------------------------------------


def test_a_bad_line_that_is_not_the_last_opens_a_new_epoch_and_keeps_the_old_log(
    short_log: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(short_log, tmp_path / "updater"))
    path = segments(directory)[0].path
    damaged = path.read_bytes().replace(b"pump 2", b"pomp 2")
    path.write_bytes(damaged)
    head = sha256(damaged.splitlines()[3])
    with open_log(directory) as log:
        assert log.origin == f"{ORIGIN}/2"
    assert (directory / "corrupt-1" / path.name).read_bytes() == damaged
    (first,) = records(directory)
    assert (first["seq"], first["outcome"]) == (0, "major")
    assert first["fields"]["reason"] == "corrupt"
    assert first["fields"]["previous_origin"] == f"{ORIGIN}/1"
    assert first["fields"]["head_sha256"] == head
    assert "log-000000000000.jsonl:5" in first["fields"]["detail"]
    with open_log(directory) as log:
        assert log.origin == f"{ORIGIN}/2"


def test_a_whole_last_line_of_another_chain_is_damage_and_not_a_torn_tail(
    short_log: Path, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(short_log, tmp_path / "updater"))
    path = segments(directory)[0].path
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1])
    open_log(directory).close()
    assert (directory / "corrupt-1").is_dir()


def test_every_damage_gets_an_epoch_of_its_own(tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        with open_log(tmp_path) as log:
            assert log.origin == f"{ORIGIN}/{epoch}"
            fill(log, 2)
        path = segments(tmp_path)[0].path
        path.write_bytes(path.read_bytes().replace(b"pump 0", b"pomp 0"))
    assert sorted(path.name for path in tmp_path.glob("corrupt-*")) == ["corrupt-1", "corrupt-2"]


def test_a_log_of_another_device_is_put_aside(tmp_path: Path) -> None:
    open_log(tmp_path).close()
    other = ORIGIN.replace("INJ-000123", "INJ-000999")
    with open_log(tmp_path, origin=other) as log:
        assert log.origin == f"{other}/2"
    assert records(tmp_path)[0]["fields"]["reason"] == "origin"
    assert verify(tmp_path).intact


def test_an_epoch_in_the_configured_origin_is_ignored(tmp_path: Path) -> None:
    with open_log(tmp_path, origin=f"{ORIGIN}/1") as log:
        assert log.origin == f"{ORIGIN}/1"


def test_fewer_records_than_the_end_file_vouches_for_is_a_rollback(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        while len(segments(tmp_path)) < 2:
            fill(log, 1)
    first, last = segments(tmp_path)
    last.path.unlink()
    first.path.write_bytes(b"".join(first.path.read_bytes().splitlines(keepends=True)[:-1]))
    open_log(tmp_path).close()
    assert records(tmp_path)[0]["fields"]["reason"] == "rollback"
    assert verify(tmp_path).intact


def test_a_lost_end_file_is_made_again_from_the_records(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, 60)
    for part in segments(tmp_path)[:-1]:
        part.end_path.unlink()
    with open_log(tmp_path) as log:
        fill(log, 1)
    assert verify(tmp_path).records == 62
    assert segments(tmp_path)[-2].end_path.exists()


def test_a_hole_before_the_last_segment_without_end_file_is_damage(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, 60)
    last_but_one = segments(tmp_path)[-2]
    last_but_one.end_path.unlink()
    last_but_one.path.unlink()
    with open_log(tmp_path) as log:
        assert log.origin.endswith("/2")
    assert verify(tmp_path).intact


# -- rotation ---------------------------------------------------------------------------------------------------------


def test_segments_end_at_their_size_and_the_chain_crosses_them(tmp_path: Path) -> None:
    with open_log(tmp_path, segment_bytes=4096) as log:
        fill(log, 50)
        head = Head(size=log.next_seq, sha256=log.head_sha256)
    assert len(segments(tmp_path)) > 3
    assert all(4096 <= part.path.stat().st_size < 4096 + 1024 for part in segments(tmp_path)[:-1])
    assert verify(tmp_path, head=head).intact


def test_a_segment_ends_after_thirty_days(tmp_path: Path) -> None:
    clock = FakeClock()
    with open_log(tmp_path, clock=clock) as log:
        fill(log, 1)
        clock.advance(timedelta(days=31).total_seconds())
        fill(log, 2)
    assert [part.first_seq for part in segments(tmp_path)] == [0, 2]
    assert verify(tmp_path).intact


# -- budget and refusing media ----------------------------------------------------------------------------------------


def test_a_full_budget_refuses_beginnings_records_ends_and_says_full_once(tmp_path: Path) -> None:
    budget = 64 * 1024
    with open_log(tmp_path, budget_bytes=budget) as log:
        with pytest.raises(AuditUnavailableError, match="budget is used up; the action is refused"):
            fill(log, 1000)
        with pytest.raises(AuditUnavailableError):
            append(log, "update.installing")
        assert append(log, "update.rolled_back", code="health.hal") > 0
        assert append(log, "consent.revoked") > 0
    found = kinds(tmp_path)
    assert (found.count("audit.disk_low"), found.count("audit.full")) == (1, 1)
    assert not (tmp_path / "reserve.bin").exists()
    assert verify(tmp_path).intact


def test_the_last_words_end_when_the_reserve_is_used_up(tmp_path: Path) -> None:
    budget = 64 * 1024
    with open_log(tmp_path, budget_bytes=budget) as log, pytest.raises(AuditUnavailableError):
        while True:
            append(log, "update.failed", detail="x" * 256, code="x" * 256, release="x" * 256)
    assert budget < usage_bytes(tmp_path) <= budget + RESERVE_BYTES + 4096
    assert verify(tmp_path).intact


def test_a_full_log_heals_when_space_was_made(tmp_path: Path) -> None:
    clock = FakeClock()
    with open_log(tmp_path, budget_bytes=64 * 1024, clock=clock) as log:
        with pytest.raises(AuditUnavailableError):
            fill(log, 1000)
        for part in segments(tmp_path)[:-2]:
            part.path.unlink()
        with pytest.raises(AuditUnavailableError):
            append(log, "update.installing")
        clock.advance(61)
        assert append(log, "update.installing") > 0
        assert (tmp_path / "reserve.bin").stat().st_size == RESERVE_BYTES
    assert verify(tmp_path).intact


def test_short_space_counts_class_c_and_keeps_class_b(tmp_path: Path) -> None:
    clock = FakeClock()
    budget = 64 * 1024
    with open_log(tmp_path, budget_bytes=budget, clock=clock) as log:
        while usage_bytes(tmp_path) < budget * 0.95:
            fill(log, 1)
        assert append(log, "injector.link", state="up") == SUPPRESSED
        assert append(log, "injector.link", state="down") == SUPPRESSED
        assert append(log, "hardware.changed", what="pump") > 0
        clock.advance(601)
        assert append(log, "hardware.changed", what="pump") > 0
    gaps = [record["fields"] for record in records(tmp_path) if record["kind"] == "audit.gap"]
    assert gaps == [{"count": 2}]


def test_a_full_disk_refuses_leaves_no_torn_line_and_heals(tmp_path: Path) -> None:
    medium, clock = Medium(), FakeClock()
    with open_log(tmp_path, disk=medium, clock=clock) as log:
        fill(log, 3)
        medium.is_full()
        with pytest.raises(AuditUnavailableError, match="No space left on device; the action is refused"):
            fill(log, 1)
        assert segments(tmp_path)[0].path.read_bytes().endswith(b"\n")
        assert not (tmp_path / "reserve.bin").exists()
        with pytest.raises(AuditUnavailableError):
            append(log, "update.rolled_back")
        medium.refuse_write = 0
        assert append(log, "update.rolled_back") > 0
        with pytest.raises(AuditUnavailableError):
            fill(log, 1)
        clock.advance(61)
        fill(log, 1)
    assert "audit.full" in kinds(tmp_path)
    assert verify(tmp_path).intact


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_medium_that_refuses_writing_makes_the_log_unavailable_until_restart(
    tmp_path: Path, code: int
) -> None:
    medium = Medium()
    with open_log(tmp_path, disk=medium) as log:
        fill(log, 1)
        medium.refuse_write = code
        with pytest.raises(AuditUnavailableError, match="write failed"):
            fill(log, 1)
        medium.refuse_write = 0
        with pytest.raises(AuditUnavailableError, match="until this process is restarted"):
            append(log, "update.rolled_back")
        with pytest.raises(AuditUnavailableError):
            log.flush()
    with open_log(tmp_path) as log:
        fill(log, 1)
    assert verify(tmp_path).records == 3


def test_a_failed_sync_is_final_even_if_the_next_one_would_succeed(tmp_path: Path) -> None:
    medium = Medium()
    with open_log(tmp_path, disk=medium) as log:
        medium.refuse_sync = errno.EIO
        with pytest.raises(AuditUnavailableError, match="sync failed"):
            fill(log, 1)
        medium.refuse_sync = 0
        with pytest.raises(AuditUnavailableError, match="sync failed"):
            fill(log, 1)


def test_a_medium_that_hangs_refuses_within_two_seconds(tmp_path: Path) -> None:
    release = threading.Event()

    class Hanging(Medium):
        hangs = False

        def sync(self, fd: int) -> None:
            if self.hangs:
                release.wait(10)
            super().sync(fd)

    medium = Hanging()
    with open_log(tmp_path, disk=medium) as log:
        medium.hangs = True
        with pytest.raises(AuditUnavailableError, match="within 2 s; the action is refused"):
            append(log, "update.installing")
        medium.hangs = False
        release.set()
        fill(log, 1)


def test_a_directory_that_cannot_be_used_gives_a_log_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with open_log(tmp_path / "file") as log:
        assert "file" in log.unavailable_reason
        with pytest.raises(AuditUnavailableError, match="the action is refused"):
            fill(log, 1)


def test_a_bug_in_the_writer_refuses_and_is_told_to_the_composition(tmp_path: Path) -> None:
    bugs: list[BaseException] = []

    def broken() -> str:
        if bugs_wanted:
            raise KeyError("clock")
        return "rtc"

    bugs_wanted: list[bool] = []
    with open_log(tmp_path, clock_state=broken, on_bug=bugs.append) as log:
        bugs_wanted.append(True)
        with pytest.raises(AuditUnavailableError, match="its writer has ended"):
            fill(log, 1)
        with pytest.raises(AuditUnavailableError):
            fill(log, 1)
    assert [type(bug) for bug in bugs] == [KeyError]


# -- floods -----------------------------------------------------------------------------------------------------------


def test_a_flood_of_one_kind_and_actor_is_counted_after_the_burst(tmp_path: Path) -> None:
    clock = FakeClock()
    flooder, other = Actor("local", "uid:1"), Actor("local", "uid:2")
    with open_log(tmp_path, clock=clock) as log:
        results = [log.append("command.refused", actor=flooder) for _ in range(200)]
        assert results.count(SUPPRESSED) == 80
        assert log.append("command.refused", actor=other) != SUPPRESSED
        assert log.append("session.refused", actor=flooder) != SUPPRESSED
        clock.advance(60)
        assert log.append("command.refused", actor=flooder) != SUPPRESSED
    reports = [record for record in records(tmp_path) if record["kind"] == "audit.suppressed"]
    assert [report["fields"] for report in reports] == [
        {"kind": "command.refused", "actor": "local:uid:1", "count": 80}
    ]


def test_what_was_suppressed_is_reported_at_the_latest_when_the_log_closes(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for _ in range(130):
            append(log, "command.refused")
    assert records(tmp_path)[-1]["fields"]["count"] == 10


def test_class_a_is_never_suppressed(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        fill(log, 200)
        assert log.next_seq == 201
