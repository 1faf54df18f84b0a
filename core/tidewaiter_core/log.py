"""The developers' log: journald priorities, one line per event, no secrets, nothing that moves a terminal.

The log may be lost; what the hospital must be able to prove goes to the audit chain. Rules LG-01 to LG-06 of
security-and-audit.md section 10: every record passes `redact` (LG-02), `escape` (LG-03) and a rate limit (LG-04).
Lines above 8 KiB are cut and marked before any expression looks at them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, TextIO

from tidewaiter_core.redaction import Secret, escape, redact

__all__ = ["RateLimit", "Secret", "configure", "escape", "make_handler", "redact"]

_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_TRACE_LINES: Final = 200
_BURST: Final = 20
_WINDOW_S: Final = 10.0
_EVENTS: Final = 1024


class _LineFormatter(logging.Formatter):
    """One line per event; a stack trace follows on marked lines, so that no text in it can pose as an event."""

    def __init__(self, component: str, *, journal: bool) -> None:
        super().__init__()
        self._component = component
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        message = _message(record)
        suppressed = getattr(record, "suppressed", 0)
        if suppressed:
            message += f" ({suppressed} more like this were suppressed)"
        head = f"{record.name}: {escape(redact(message))}"
        lines = [head, *(f"  | {line}" for line in self._trace(record))]
        if self._journal:
            prefix = f"<{_priority(record.levelno)}>"
        else:
            moment = datetime.fromtimestamp(record.created, UTC)
            prefix = f"{moment:%Y-%m-%dT%H:%M:%S}.{int(record.msecs):03d}Z {self._component} {record.levelname:<8} "
        return "\n".join(prefix + line for line in lines)

    def _trace(self, record: logging.LogRecord) -> list[str]:
        # Chained causes are part of the text, so they are redacted like the rest.
        text = ""
        if record.exc_info and record.exc_info[0] is not None:
            text += self.formatException(record.exc_info)
        if record.stack_info:
            text += "\n" + record.stack_info
        lines = [escape(line) for line in redact(text).split("\n") if line]
        if len(lines) > _TRACE_LINES:
            left_out = len(lines) - _TRACE_LINES
            lines[_TRACE_LINES // 2 : -_TRACE_LINES // 2] = [f"... {left_out} lines left out ..."]
        return lines


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        # A wrong call must not lose the event, nor print arguments that nobody looked at.
        return f"{record.msg} (the arguments of this log call do not fit)"


def _priority(level: int) -> int:
    return next((priority for bound, priority in _PRIORITIES if level >= bound), 7)


class RateLimit(logging.Filter):
    """LG-04: at most 20 equal events in 10 s; the next one after that tells how many were suppressed.

    Equal means the same logger and the same text before its arguments are filled in.
    """

    def __init__(self, *, now_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now_s = now_s
        self._lock = threading.Lock()
        self._events: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        event = (record.name, str(record.msg)[:200])
        now_s = self._now_s()
        with self._lock:
            start_s, count = self._events.pop(event, (now_s, 0))
            if now_s - start_s >= _WINDOW_S:
                record.suppressed = max(0, count - _BURST)
                start_s, count = now_s, 0
            # Inserted last, so the first entry is the one unseen for longest; the table cannot grow without end.
            self._events[event] = (start_s, count + 1)
            if len(self._events) > _EVENTS:
                del self._events[next(iter(self._events))]
            return count < _BURST


def make_handler(
    component: str, *, stream: TextIO | None = None, journal: bool | None = None
) -> logging.Handler:
    """A log handler that obeys the rules above; `configure` installs it."""
    target = sys.stderr if stream is None else stream
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        _LineFormatter(component, journal=_is_journal(target) if journal is None else journal)
    )
    handler.addFilter(RateLimit())
    return handler


def configure(
    component: str, *, stream: TextIO | None = None, journal: bool | None = None, level: int = logging.INFO
) -> None:
    """Send the log of this process to `stream` (standard error) and nowhere else.

    Args:
        journal: With priority prefixes and without times; None finds out whether journald reads the stream.
    """
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(make_handler(component, stream=stream, journal=journal))
    root.setLevel(level)
    logging.captureWarnings(True)
    # A broken pipe at the other end of the log must not print a traceback per event.
    logging.raiseExceptions = False
    sys.excepthook = _log_uncaught


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The interpreter's own report would bypass the redaction."""
    logging.getLogger("tidewaiter").critical(
        "process.uncaught: %s", kind.__name__, exc_info=(kind, error, trace)
    )


def _is_journal(stream: TextIO) -> bool:
    """systemd names device and inode of the journal's socket, so that a redirected stream is noticed."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = os.fstat(stream.fileno())
        return (device, inode) == (str(found.st_dev), str(found.st_ino))
    return False
