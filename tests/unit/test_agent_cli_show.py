"""What the command line prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from tidewaiter_agent.cli_show import bar, duration, table, update_line, update_text

from tests.sim.updater import DIGEST, UpdaterWorld


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (0, 100, "[----------]    0 %"),
        (50, 100, "[#####-----]   50 %"),
        (100, 100, "[##########]  100 %"),
        (150, 100, "[##########]  100 %"),
        (5, 0, "[----------]    ? %"),
    ],
)
def test_bar_is_filled_by_share_and_never_overflows(done: int, total: int, shown: str) -> None:
    assert bar(done, total, width=10) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(7, "0:07"), (3723, "1:02:03"), (-5, "0:00")])
def test_durations_read_like_a_clock(seconds: int, shown: str) -> None:
    assert duration(seconds) == shown


def world(tmp_path: Path) -> UpdaterWorld:
    made = UpdaterWorld(tmp_path / "unused.sock")
    made.phase, made.digest, made.done_bytes = "WAIT_WINDOW", DIGEST, made.total_bytes
    made.waiting_for = ["update.interlock:injecting"]
    return made


def test_update_line_says_phase_bytes_speed_time_and_what_is_awaited(tmp_path: Path) -> None:
    line = update_line(world(tmp_path).status())
    for word in (
        "WAIT_WINDOW",
        "100 %",
        "64.0/64.0 MiB",
        "5.0 MiB/s",
        "0:10 left",
        "waiting for update.interlock:injecting",
    ):
        assert word in line


def test_last_failure_is_shown_with_what_to_do(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.end("FAILED", "slot.io", "slot B: EIO")
    text = update_text(made.status())
    assert "slot.io: slot B: EIO" in text
    assert "what to do" in text


def test_control_characters_from_outside_do_not_reach_the_terminal(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.waiting_for = ["\x1b]0;owned\x07"]
    assert "\x1b" not in update_line(made.status())
    assert "\x1b" not in table([("a", "\x1b[2J")])
