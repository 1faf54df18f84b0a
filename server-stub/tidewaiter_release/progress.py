"""A progress bar where a person looks, plain lines where a log looks."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

_BAR_MOST_CELLS = 30
_BAR_LEAST_CELLS = 8
_COLUMNS = 80
"""Where nobody says how wide the terminal is."""
_REDRAW_S = 0.1
_LINE_EVERY_PERCENT = 10
_LINE_EVERY_S = 1.0


class Progress:
    """Bytes done of bytes to do, on one stream. With stream None it only counts."""

    def __init__(
        self,
        label: str,
        total_bytes: int,
        *,
        stream: TextIO | None,
        now: Callable[[], float] = time.monotonic,
        columns: Callable[[], int] | None = None,
    ) -> None:
        self._label = label
        self._total = max(total_bytes, 1)
        self._stream = stream
        self._tty = stream is not None and stream.isatty()
        self._now = now
        self._started = self._drawn = now()
        self._percent_line = 0
        self._columns = columns or self._columns_of_terminal
        self._shown = 0

    def update(self, done_bytes: int) -> None:
        """Show that `done_bytes` are done; cheap enough to call per chunk."""
        if self._stream is None:
            return
        percent = min(100, done_bytes * 100 // self._total)
        now = self._now()
        if self._tty:
            if now - self._drawn >= _REDRAW_S:
                self._drawn = now
                self._redraw(self._bar(done_bytes, percent))
        elif self._percent_line + _LINE_EVERY_PERCENT <= percent < 100 and now - self._drawn >= _LINE_EVERY_S:
            self._drawn = now
            self._percent_line = percent - percent % _LINE_EVERY_PERCENT
            self._write(f"{self._label}: {percent} % of {_size(self._total)}\n")

    def finish(self) -> None:
        """Show the end and leave the line."""
        if self._stream is None:
            return
        seconds = self._now() - self._started
        if self._tty:
            self._redraw(self._bar(self._total, 100, end=f" in {seconds:.1f} s"))
            self._write("\n")
        else:
            self._write(f"{self._label}: done, {_size(self._total)} in {seconds:.1f} s\n")

    def _bar(self, done_bytes: int, percent: int, *, end: str = "") -> str:
        """At most one character less than the terminal has: a full line wraps, and the next could not take its place."""
        speed = done_bytes / max(self._now() - self._started, 0.001)
        left = f", {_left(self._total - done_bytes, speed)} left" if 0 < done_bytes < self._total else ""
        tail = f"] {percent:3d} % of {_size(self._total)}, {_size(int(speed))}/s{left}{end}"
        room = self._columns() - 1
        label = self._label
        if (over := len(label) + len(" [") + _BAR_LEAST_CELLS + len(tail) - room) > 0:
            label = label[: max(0, len(label) - over - 3)] + "..."
        width = max(_BAR_LEAST_CELLS, min(_BAR_MOST_CELLS, room - len(label) - len(" [") - len(tail)))
        cells = percent * width // 100
        return f"{label} [{'#' * cells}{'.' * (width - cells)}{tail}"[:room]

    def _redraw(self, line: str) -> None:
        self._write("\r" + line + " " * max(0, self._shown - len(line)))
        self._shown = len(line)

    def _columns_of_terminal(self) -> int:
        try:
            found = os.get_terminal_size(self._stream.fileno()).columns if self._stream is not None else 0
        except (OSError, ValueError):  # a stream without a file, or one that is no terminal
            found = 0
        return found or _COLUMNS

    def _write(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text)
            self._stream.flush()


def _left(count: int, bytes_per_s: float) -> str:
    seconds = int(count / max(bytes_per_s, 1.0)) + 1
    if seconds < 60:
        return f"{seconds} s"
    minutes = -(-seconds // 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _size(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"
