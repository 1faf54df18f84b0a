"""How the boot before ended, by the kernel's files; what cannot be told is unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from tidewaiter_updater.evidence import SystemEvidence
from tidewaiter_updater.model import BootEnd
from tidewaiter_updater.state_files import StateFiles

OFF, FAULT, UNKNOWN = BootEnd.SWITCHED_OFF, BootEnd.FAULT, BootEnd.UNKNOWN


class Board:
    """A board that can tell everything. `boot` is one start of the updater."""

    def __init__(self, root: Path) -> None:
        self.root = root / "root"
        self.state = StateFiles(root / "state")
        self.write("sys/class/watchdog/watchdog0/bootstatus", "0\n")
        self.write("sys/class/watchdog/watchdog0/options", "0x8160\n")
        self.write("sys/module/pstore/parameters/backend", "ramoops\n")
        (self.root / "sys/fs/pstore").mkdir(parents=True)
        (self.root / "var/lib/systemd/pstore").mkdir(parents=True)

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def boot(self, boot_id: str = "b1") -> BootEnd:
        return SystemEvidence(self.state, boot_id=boot_id, root=self.root).boot_before()


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board(tmp_path)


def test_no_fault_anywhere_means_that_somebody_took_the_power(board: Board) -> None:
    assert board.boot() is OFF


@pytest.mark.parametrize("status", ["32", "0x20", "1"])
def test_a_reset_that_the_watchdog_reports_is_a_fault(board: Board, status: str) -> None:
    board.write("sys/class/watchdog/watchdog0/bootstatus", status)
    assert board.boot() is FAULT


@pytest.mark.parametrize("place", ["sys/fs/pstore/dmesg-ramoops-0", "var/lib/systemd/pstore/17/dmesg.txt"])
def test_a_new_record_of_a_panic_is_a_fault_in_this_boot_only(board: Board, place: str) -> None:
    board.write(place, "Kernel panic - not syncing")
    assert board.boot("b1") is FAULT
    assert board.boot("b1") is FAULT, "a restart of the service finds the record known, and the boot the same"
    assert board.boot("b2") is OFF


def test_a_panic_that_overwrites_its_record_is_a_new_one(board: Board) -> None:
    board.write("sys/fs/pstore/dmesg-ramoops-0", "first")
    board.boot("b1")
    board.write("sys/fs/pstore/dmesg-ramoops-0", "the second one")
    assert board.boot("b2") is FAULT


def test_lost_notes_make_a_fault_of_an_old_record(board: Board) -> None:
    board.write("sys/fs/pstore/dmesg-ramoops-0", "first")
    board.boot("b1")
    board.state.save("evidence", {})
    assert board.boot("b2") is FAULT


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/class/watchdog/watchdog0/options", "0x8140"),
        ("sys/class/watchdog/watchdog0/options", "many"),
        ("sys/class/watchdog/watchdog0/bootstatus", ""),
        ("sys/module/pstore/parameters/backend", "(null)"),
        ("sys/module/pstore/parameters/backend", ""),
    ],
)
def test_what_a_driver_does_not_report_is_unknown(board: Board, path: str, text: str) -> None:
    board.write(path, text)
    assert board.boot() is UNKNOWN


@pytest.mark.parametrize(
    "path", ["sys/class/watchdog/watchdog0/bootstatus", "sys/module/pstore/parameters/backend"]
)
def test_hardware_without_watchdog_or_records_is_unknown(board: Board, path: str) -> None:
    (board.root / path).unlink()
    assert board.boot() is UNKNOWN


def test_a_kernel_that_does_not_list_options_is_believed_as_the_image_vouches_for_it(board: Board) -> None:
    (board.root / "sys/class/watchdog/watchdog0/options").unlink()
    assert board.boot() is OFF


def test_places_of_records_that_nobody_may_read_are_unknown(board: Board) -> None:
    (board.root / "sys/fs/pstore").rmdir()
    (board.root / "var/lib/systemd/pstore").rmdir()
    assert board.boot() is UNKNOWN
