"""Copying and removing whole trees: everything that belongs to a file, hostile names, and trees that are too much."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from tidewaiter_updater.errors import DataStepError
from tidewaiter_updater.tree_copy import DEPTH_LIMIT
from tidewaiter_updater.trees import SystemTrees

from tests.sim.data_sets import snapshot

HOSTILE = (
    "two\nlines", "-rf", "--help", "$(reboot)", "*", ";", " ", "..x", "\x1b[2J", "'\"", "\\", "COMPLETE", "LIVE",
    "2.tmp", ".hidden", "n" * 255, "ä" * 127,
)  # fmt: skip


def quiet(files: int, size: int) -> None: ...


def copied(source: Path) -> Path:
    target = source.with_name("copy")
    SystemTrees().copy(source, target, beat=quiet)
    return target


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    return folder


def test_everything_that_belongs_to_a_file_is_kept(tree: Path) -> None:
    (tree / "inner/deeper").mkdir(parents=True)
    (tree / "inner/file").write_bytes(os.urandom(100_000))
    (tree / "inner/file").chmod(0o640)
    (tree / "empty").touch()
    (tree / "tool").write_text("#!/bin/sh\n")
    (tree / "tool").chmod(0o4755)
    (tree / "inner/deeper/again").hardlink_to(tree / "inner/file")
    (tree / "third").hardlink_to(tree / "inner/file")
    (tree / "link").symlink_to("inner/file")
    (tree / "nowhere").symlink_to("/etc/shadow\n/../x")
    os.mkfifo(tree / "pipe", 0o600)
    os.setxattr(tree / "inner/file", "user.origin", b"factory\0binary\xff")
    os.setxattr(tree / "inner", "user.kind", b"protocols")
    os.utime(tree / "inner/deeper", ns=(1_000_000_001, 2_000_000_002))
    (tree / "inner").chmod(0o2750)
    assert snapshot(copied(tree)) == snapshot(tree)


def test_a_file_with_holes_stays_one(tree: Path) -> None:
    with (tree / "sparse").open("wb") as file:
        file.seek(50_000_000)
        file.write(b"end")
        file.truncate(80_000_000)
    copy = copied(tree)
    assert (copy / "sparse").stat().st_size == 80_000_000
    assert (copy / "sparse").stat().st_blocks <= (tree / "sparse").stat().st_blocks
    with (copy / "sparse").open("rb") as file:
        file.seek(50_000_000)
        assert file.read(3) == b"end"


def test_hostile_names_are_names(tree: Path) -> None:
    for name in HOSTILE:
        (tree / name).write_text(name)
    (tree.parent / "outside").write_text("mine")
    os.symlink("../outside", tree / "escape")
    raw = os.fsencode(tree) + b"/\xff\xfe not utf-8"
    Path(os.fsdecode(raw)).write_bytes(b"raw")
    copy = copied(tree)
    assert snapshot(copy) == snapshot(tree)
    SystemTrees().remove(copy, beat=quiet)
    assert not copy.exists()
    assert (tree.parent / "outside").read_text() == "mine"


def test_a_socket_is_left_out(tree: Path) -> None:
    (tree / "kept").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "s"))
    assert {path.name for path in copied(tree).iterdir()} == {"kept"}


@pytest.mark.privileged
def test_a_device_node_is_refused(tree: Path) -> None:
    os.mknod(tree / "null", 0o600 | 0o020000, os.makedev(1, 3))
    with pytest.raises(DataStepError) as error:
        copied(tree)
    assert error.value.code == "data.special"


@pytest.mark.privileged
def test_owners_and_capabilities_are_kept(tree: Path) -> None:
    (tree / "file").write_text("x")
    os.chown(tree / "file", 12345, 54321)
    os.symlink("file", tree / "link")
    os.chown(tree / "link", 12345, 1, follow_symlinks=False)
    capability = bytes.fromhex("0000000201000000000000000000000000000000")
    (tree / "tool").touch()
    os.setxattr(tree / "tool", "security.capability", capability)
    copy = copied(tree)
    assert snapshot(copy) == snapshot(tree)
    assert os.getxattr(copy / "tool", "security.capability") == capability


def test_a_tree_that_is_too_deep_is_refused_and_can_be_removed(tree: Path) -> None:
    at = os.open(tree, os.O_RDONLY)
    for _ in range(DEPTH_LIMIT * 3):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    with pytest.raises(DataStepError) as error:
        copied(tree)
    assert error.value.code == "data.limit"
    SystemTrees().remove(tree.with_name("copy"), beat=quiet)
    SystemTrees().remove(tree, beat=quiet)
    assert list(tree.parent.iterdir()) == []


def test_ten_thousand_files_are_copied_with_beats_for_each(tree: Path) -> None:
    for number in range(10_000):
        folder = tree / f"{number // 1000}"
        folder.mkdir(exist_ok=True)
        (folder / str(number)).write_bytes(b"x")
    files = []
    SystemTrees().copy(tree, tree.with_name("copy"), beat=lambda count, size: files.append(count))
    assert sum(files) == 10_010
    assert sum(1 for _ in tree.with_name("copy").rglob("*")) == 10_010


def _write(tree: Path) -> None:
    (tree / "a").write_text("new")


def _append(tree: Path) -> None:
    with (tree / "inner/b").open("a") as file:
        file.write("x")


CHANGES: tuple[Callable[[Path], None], ...] = (
    _write,
    _append,
    lambda tree: (tree / "a").chmod(0o777),
    lambda tree: (tree / "a").unlink(),
    lambda tree: (tree / "new").touch(),
    lambda tree: tree.chmod(0o700),
    lambda tree: os.setxattr(tree / "inner", "user.x", b"1"),
)


@pytest.mark.parametrize("change", CHANGES)
def test_the_mark_tells_every_change_and_no_reading(tree: Path, change: Callable[[Path], None]) -> None:
    (tree / "inner").mkdir()
    (tree / "a").write_text("old")
    (tree / "inner/b").write_text("b")
    mark = SystemTrees().mark(tree, beat=quiet)
    copied(tree)
    assert SystemTrees().mark(tree, beat=quiet) == mark
    change(tree)
    assert SystemTrees().mark(tree, beat=quiet) != mark


def test_used_bytes_count_a_file_with_two_names_once(tree: Path) -> None:
    (tree / "a").write_bytes(b"x" * 100_000)
    once = SystemTrees().used_bytes(tree, beat=quiet)
    (tree / "b").hardlink_to(tree / "a")
    assert SystemTrees().used_bytes(tree, beat=quiet) == once


def test_a_rename_never_replaces_anything(tree: Path) -> None:
    (tree / "a").mkdir()
    (tree / "b").mkdir()
    with pytest.raises(FileExistsError):
        SystemTrees().rename(tree / "a", tree / "b")


def test_a_beat_that_raises_ends_the_copy(tree: Path) -> None:
    (tree / "a").write_bytes(b"x" * 10)

    def too_late(files: int, size: int) -> None:
        raise DataStepError("the time is over", code="data.deadline")

    with pytest.raises(DataStepError, match="the time is over"):
        SystemTrees().copy(tree, tree.with_name("copy"), beat=too_late)
