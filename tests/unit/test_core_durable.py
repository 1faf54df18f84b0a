"""State that survives power cuts, full disks and other programs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tidewaiter_core import durable
from tidewaiter_core.errors import SecondInstanceError, StateError, StateWriteError

from tests.sim.state_disk import PowerCut, StateDisk

OLD = b"old content"
NEW = b"new content, longer than the old one"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state.json"
    path.write_bytes(OLD)
    return path


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.parent.iterdir())


def test_a_written_file_has_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "flag"
    durable.write_atomic(path, NEW, mode=0o640)
    assert path.read_bytes() == NEW
    assert path.stat().st_mode & 0o777 == 0o640
    assert names(path) == ["flag"]


def test_the_default_mode_is_readable_by_the_owner_only(tmp_path: Path) -> None:
    durable.write_atomic(tmp_path / "key", b"x")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_the_order_of_effects_is_write_sync_replace_sync_directory(state: Path) -> None:
    disk = StateDisk()
    durable.write_atomic(state, NEW, disk=disk)
    kinds = list(dict.fromkeys(disk.effects))
    assert kinds == ["write", "sync", "replace", "sync_directory"]
    assert disk.effects.count("write") > 1, "the disk takes half of each write, all of it must arrive"


def test_a_power_cut_at_any_effect_leaves_old_or_new_content(state: Path) -> None:
    rehearsal = StateDisk()
    durable.write_atomic(state.with_name("rehearsal"), NEW, disk=rehearsal)
    for cut in range(len(rehearsal.effects)):
        state.write_bytes(OLD)
        with pytest.raises(PowerCut):
            durable.write_atomic(state, NEW, disk=StateDisk(cut_before=cut))
        expected = NEW if rehearsal.effects[cut] == "sync_directory" else OLD
        assert state.read_bytes() == expected, f"cut before effect {cut}, {rehearsal.effects[cut]}"


def test_a_torn_temporary_file_is_overwritten_by_the_next_write(state: Path) -> None:
    with pytest.raises(PowerCut):
        durable.write_atomic(state, NEW, disk=StateDisk(cut_before=0))
    assert names(state) == [".state.json.tmp", "state.json"]
    durable.write_atomic(state, b"short")
    assert state.read_bytes() == b"short"
    assert names(state) == ["state.json"]


def test_a_full_disk_is_named_keeps_the_old_content_and_gives_the_space_back(state: Path) -> None:
    with pytest.raises(
        StateWriteError, match=r"state\.json: cannot be written \(No space left on device\); its previous"
    ):
        durable.write_atomic(state, NEW, disk=StateDisk(room_bytes=20))
    assert state.read_bytes() == OLD
    assert names(state) == ["state.json"]


def test_a_full_disk_is_worth_another_try() -> None:
    assert StateWriteError("x").retryable
    assert not StateError("x").retryable


@pytest.mark.parametrize("effect", ["sync", "replace"])
def test_an_io_error_keeps_the_old_content(state: Path, effect: str) -> None:
    disk = StateDisk()
    disk.broken.add(effect)
    with pytest.raises(StateWriteError, match="previous content is unchanged"):
        durable.write_atomic(state, NEW, disk=disk)
    assert state.read_bytes() == OLD


def test_a_directory_that_cannot_be_synced_is_reported_as_not_yet_safe(state: Path) -> None:
    disk = StateDisk()
    disk.broken.add("sync_directory")
    with pytest.raises(StateWriteError, match="may be lost in a power cut"):
        durable.write_atomic(state, NEW, disk=disk)
    assert state.read_bytes() == NEW


def test_a_missing_directory_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(StateWriteError, match=r"gone/state\.json: cannot be written \(No such file"):
        durable.write_atomic(tmp_path / "gone" / "state.json", NEW)


def test_a_planted_link_is_not_followed(state: Path) -> None:
    victim = state.with_name("victim")
    victim.write_bytes(b"precious")
    state.with_name(".state.json.tmp").symlink_to(victim)
    with pytest.raises(StateWriteError):
        durable.write_atomic(state, NEW)
    assert victim.read_bytes() == b"precious"


def test_each_new_directory_is_on_storage_before_anything_is_put_into_it(tmp_path: Path) -> None:
    disk = StateDisk()
    durable.make_directory(tmp_path / "a" / "b", disk=disk)
    assert (tmp_path / "a" / "b").is_dir()
    assert disk.effects == ["sync_directory", "sync_directory"]
    durable.make_directory(tmp_path / "a" / "b", disk=disk)
    assert len(disk.effects) == 2, "one that exists is left alone"


def test_a_directory_that_cannot_be_created_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateWriteError, match="cannot be created"):
        durable.make_directory(tmp_path / "file" / "below")


def test_a_planted_pipe_does_not_block(state: Path) -> None:
    os.mkfifo(state.with_name(".state.json.tmp"))
    with pytest.raises(StateWriteError, match="no regular file"):
        durable.write_atomic(state, NEW)


def test_many_writers_of_one_file_never_mix_their_contents(state: Path) -> None:
    contents = [bytes([65 + n]) * 20_000 for n in range(6)]
    errors: list[BaseException] = []

    def write(content: bytes) -> None:
        try:
            for _ in range(10):
                durable.write_atomic(state, content)
        except BaseException as err:
            errors.append(err)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert state.read_bytes() in contents
    assert names(state) == ["state.json"]


def test_a_document_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    document = {"b": [1, 2.5, None], "a": {"ü": "\u2028"}}
    durable.save_document(path, document, schema=3)
    assert durable.load_document(path, schema=3) == document
    assert json.loads(path.read_bytes())["schema"] == 3


def test_an_absent_document_is_none(tmp_path: Path) -> None:
    assert durable.load_document(tmp_path / "none.json", schema=1) is None


def test_equal_documents_are_equal_bytes(tmp_path: Path) -> None:
    durable.save_document(tmp_path / "1", {"a": 1, "b": 2}, schema=1)
    durable.save_document(tmp_path / "2", {"b": 2, "a": 1}, schema=1)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_an_older_schema_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    durable.save_document(path, {"a": 1}, schema=1)
    assert durable.load_document(path, schema=2) == {"a": 1}


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    durable.save_document(path, {"a": 1}, schema=2)
    before = path.read_bytes()
    with pytest.raises(StateError, match="schema 2 was written by a newer program, this one knows up to 1"):
        durable.load_document(path, schema=1)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        (b"", "expected one JSON document, found 0 bytes"),
        (b"{", "expected one JSON document"),
        (b"\0" * 512, "expected one JSON document, found 512 bytes"),
        (b"\xff\xfe{}", "expected one JSON document"),
        (b"[1]", "expected a JSON object, found list"),
        (b"{}", 'member "schema"'),
        (b'{"schema": true}', 'member "schema"'),
        (b'{"schema": 0}', 'member "schema"'),
        (b'{"schema": "1"}', 'member "schema"'),
        (b'{"schema": 1, "a": 1, "a": 2}', "key 'a' occurs twice"),
        (b'{"schema": 1, "a": {"b": 1, "b": 2}}', "key 'b' occurs twice"),
        (b'{"schema": 1, "a": NaN}', "NaN is not JSON"),
        (b'{"schema": 1}{"schema": 1}', "expected one JSON document"),
        (b'{"schema": 1, "a":' + b"[" * 100_000, "expected one JSON document"),
    ],
    ids=lambda value: value[:28].decode("latin-1") if isinstance(value, bytes) else "",
)
def test_an_unreadable_document_is_named_and_left_alone(tmp_path: Path, content: bytes, finding: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(content)
    with pytest.raises(StateError) as caught:
        durable.load_document(path, schema=1)
    assert str(caught.value).startswith(f"{path}: ")
    assert finding in str(caught.value)
    assert str(caught.value).endswith("left as it is")
    assert path.read_bytes() == content


def test_an_endless_document_stops_at_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_bytes(b'{"schema": 1}' + b" " * 100)
    with pytest.raises(StateError, match="longer than 64 bytes"):
        durable.load_document(path, schema=1, limit_bytes=64)


def test_a_directory_in_place_of_a_document_is_an_error_not_absence(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be read"):
        durable.load_document(tmp_path, schema=1)


def test_a_document_with_another_schema_than_announced_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="schema 1"):
        durable.save_document(tmp_path / "d", {"schema": 1}, schema=2)


def test_a_number_that_json_does_not_have_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        durable.save_document(tmp_path / "d", {"a": float("nan")}, schema=1)
    assert list(tmp_path.iterdir()) == []


def test_a_quarantined_file_keeps_its_content_under_a_new_name(state: Path) -> None:
    target = durable.quarantine(state)
    assert target.read_bytes() == OLD
    assert target.name.startswith("state.json.corrupt-2")
    assert not state.exists()


def test_two_files_quarantined_in_one_second_are_both_kept(state: Path) -> None:
    first = durable.quarantine(state)
    state.write_bytes(NEW)
    second = durable.quarantine(state)
    assert (first.read_bytes(), second.read_bytes()) == (OLD, NEW)


def test_quarantine_of_an_absent_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateWriteError, match="cannot be moved aside"):
        durable.quarantine(tmp_path / "none")


def test_a_second_instance_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    holder = f"process {os.getpid()} holds this lock"
    second = durable.InstanceLock(tmp_path / "lock")
    with durable.InstanceLock(tmp_path / "lock"), pytest.raises(SecondInstanceError, match=holder) as caught:
        second.__enter__()
    assert caught.value.code == "core.second-instance"


def test_a_lock_is_free_after_its_context(tmp_path: Path) -> None:
    for _ in range(2):
        with durable.InstanceLock(tmp_path / "lock"):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tidewaiter_core.durable import InstanceLock\n"
        "with InstanceLock(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SecondInstanceError, match=f"process {holder.pid} holds"):
            durable.InstanceLock(lock).__enter__()
        holder.kill()
        holder.wait()
    with durable.InstanceLock(lock):
        pass


def test_a_lock_in_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="instance lock cannot be opened"):
        durable.InstanceLock(tmp_path / "gone" / "lock").__enter__()


def test_a_lock_that_cannot_note_its_holder_is_held_all_the_same() -> None:
    """On a full disk the process has to start, or nobody could undo a trial that filled it."""
    before = len(os.listdir("/proc/self/fd"))
    with durable.InstanceLock(Path("/dev/full")), pytest.raises(SecondInstanceError, match="another process"):
        durable.InstanceLock(Path("/dev/full")).__enter__()
    assert len(os.listdir("/proc/self/fd")) == before
