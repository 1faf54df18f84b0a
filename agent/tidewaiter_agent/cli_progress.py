"""The updater's status as one line that is renewed in place on a terminal, or as plain lines where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, TextIO

from tidewaiter_core.redaction import escape

from tidewaiter_agent.cli_show import MIB, bar, duration, update_line

PLAIN_STEP_PERCENT = 5
BAR_LEAST_CHARS = 8
BAR_MOST_CHARS = 24


def columns_of_terminal() -> int:
    """Characters of a line; 80 where nobody says."""
    return shutil.get_terminal_size((80, 24)).columns


def fitted_line(status: Mapping[str, Any], columns: int) -> str:
    """`update_line` in so many characters: first the bar gets shorter, then speed and bytes go, last the text is cut."""
    counts = status["bytes"]
    done, total = counts["written"] + counts["skipped"], counts["total"]
    waiting = ["waiting for " + ", ".join(status["waiting_for"])] if status["waiting_for"] else []
    paused = ["paused"] if status["paused"] else []
    if total <= 0:
        return _cut("  ".join([status["phase"], *paused, *waiting]), columns)
    speed = f"{status['speed_bytes_per_s'] / MIB:.1f} MiB/s" if status["speed_bytes_per_s"] > 0 else ""
    left = f"{duration(status['remaining_s'])} left" if status.get("remaining_s") is not None else ""
    amount = f"{done / MIB:.1f}/{total / MIB:.1f} MiB"
    for wanted in ([amount, speed, left], [amount, left], [left], []):
        tail = [text for text in wanted if text] + paused + waiting
        fixed = len("  ".join([status["phase"], bar(done, total, width=0), *tail]))
        if fixed + BAR_LEAST_CHARS <= columns or not wanted:
            break
    width = max(BAR_LEAST_CHARS, min(BAR_MOST_CHARS, columns - fixed))
    return _cut("  ".join([status["phase"], bar(done, total, width=width), *tail]), columns)


def _cut(line: str, columns: int) -> str:
    shown = escape(line)
    return shown if len(shown) <= columns else shown[: max(0, columns - 3)] + "..."


class ProgressPrinter:
    """Shows status after status."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._live = out.isatty()
        self._line = ""
        self._key: tuple[object, ...] = ()

    def show(self, status: Mapping[str, Any]) -> None:
        """Renew the line, or add one if there is something to tell."""
        if self._live:
            # One character less: a full line would wrap, and the next one could not take its place.
            line = fitted_line(status, columns_of_terminal() - 1)
            self._out.write("\r" + line + " " * max(0, len(self._line) - len(line)))
            self._line = line
        elif (key := _plain_key(status)) != self._key:
            self._out.write(update_line(status) + "\n")
            self._key = key
        self._out.flush()

    def end(self) -> None:
        """What is printed next begins on a line of its own."""
        if self._live and self._line:
            self._out.write("\n")
            self._out.flush()
        self._line = ""


def _plain_key(status: Mapping[str, Any]) -> tuple[object, ...]:
    """Statuses with equal keys tell the same to who reads a log: the share counts in steps of five percent."""
    counts = status["bytes"]
    done, total = counts["written"] + counts["skipped"], counts["total"]
    step = 100 * done // total // PLAIN_STEP_PERCENT if total > 0 else -1
    return status["phase"], step, status["paused"], tuple(status["waiting_for"])
