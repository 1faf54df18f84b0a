"""The progress line: it fits the terminal, and where there is none it is a log that a person can read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_agent.cli_progress import ProgressPrinter, fitted_line

from tests.sim.updater import DIGEST, UpdaterWorld

MIB = 1 << 20
LONG_WAIT = ["update.interlock:state-not-idle", "update.interlock:motion", "update.window", "update.consent"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def status(
    done: int, *, total: int = 64 * MIB, phase: str = "TRANSFER", waiting: tuple[str, ...] = ()
) -> Mapping[str, Any]:
    world = UpdaterWorld(Path("unused"))
    world.phase, world.digest, world.done_bytes, world.total_bytes = phase, DIGEST, done, total
    world.waiting_for = list(waiting)
    return world.status()


def test_eighty_columns_hold_phase_bar_bytes_speed_and_time() -> None:
    line = fitted_line(status(32 * MIB), 80)
    assert len(line) <= 80
    for shown in ("TRANSFER", "###", "50 %", "32.0/64.0 MiB", "5.0 MiB/s", "0:10 left"):
        assert shown in line


@pytest.mark.parametrize("columns", [40, 60, 79, 80, 120])
@pytest.mark.parametrize("total", [0, 64 * MIB, 256 << 30])
@pytest.mark.parametrize("waiting", [(), tuple(LONG_WAIT), ("\x1b[2J" * 9,)])
@pytest.mark.parametrize("phase", ["IDLE", "WAIT_CONSENT", "TRANSFER", "ROLLED_BACK"])
def test_no_status_is_wider_than_the_terminal(
    columns: int, total: int, waiting: tuple[str, ...], phase: str
) -> None:
    line = fitted_line(status(total // 3, total=total, phase=phase, waiting=waiting), columns)
    assert len(line) <= columns
    assert line.isprintable()
    assert line.startswith(phase)


def test_a_narrow_terminal_keeps_the_share_and_the_time_that_is_left() -> None:
    line = fitted_line(status(32 * MIB), 48)
    assert "50 %" in line
    assert "0:10 left" in line
    assert "MiB/s" not in line


def test_a_shorter_line_leaves_nothing_of_a_longer_one() -> None:
    terminal = Terminal()
    printer = ProgressPrinter(terminal)
    printer.show(status(32 * MIB, waiting=("injector-injecting",)))
    printer.show(status(33 * MIB, phase="VERIFY"))
    first, second = terminal.getvalue().split("\r")[1:]
    assert len(second) >= len(first.rstrip())
    assert "\n" not in terminal.getvalue()


def test_the_terminal_is_left_on_a_line_of_its_own() -> None:
    terminal = Terminal()
    printer = ProgressPrinter(terminal)
    printer.show(status(32 * MIB))
    printer.end()
    printer.end()
    assert terminal.getvalue().endswith("\n")
    assert terminal.getvalue().count("\n") == 1


def test_without_a_terminal_each_line_is_plain_and_says_something_new() -> None:
    out = io.StringIO()
    printer = ProgressPrinter(out)
    for step in range(101):
        printer.show(status(step * 64 * MIB // 100))
    lines = out.getvalue().splitlines()
    assert "\r" not in out.getvalue()
    assert len(lines) == 21  # 0, 5, ... 100 percent
    assert "100 %" in lines[-1]


def test_without_a_terminal_a_new_reason_to_wait_is_a_line() -> None:
    out = io.StringIO()
    printer = ProgressPrinter(out)
    for waiting in ((), ("source.vanished",), ("source.vanished",), ()):
        printer.show(status(32 * MIB, waiting=waiting))
    assert len(out.getvalue().splitlines()) == 3
