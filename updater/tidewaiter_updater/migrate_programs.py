"""Runs the product's migration programs: `<from>-<to>-*` of the image, on a copy, with nothing of ours around them.

A program gets a clean environment, no input, the copy as its directory, and a group of its own. Its output goes to the log,
redacted, line by line, up to a limit. When the time is over, or when it ends, nothing of it may be left: what it started, also
in another session, is killed, and a program that leaves something running has failed, because nobody knows what that was still
going to write.

Source: update-engine.md section 12, docs/guides/data-migration.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import selectors
import signal
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final

from tidewaiter_core.clock import Deadline
from tidewaiter_core.log import escape, redact

from tidewaiter_updater.errors import DataStepError

logger = logging.getLogger(__name__)

NEW: Final = "new"
"""What stands for <from> when there is no earlier set."""
LINE_LIMIT_BYTES: Final = 1024
OUTPUT_LIMIT_LINES: Final = 1000
READ_BYTES: Final = 65_536
POLL_S: Final = 0.5
DRAIN_READS: Final = 16
"""What a pipe may still hold once its program has ended; who writes into it after that is not listened to."""
_SET_PARENT_DEATH_SIGNAL: Final = 1
_SET_CHILD_SUBREAPER: Final = 36

_libc = ctypes.CDLL(None, use_errno=True)


class SystemPrograms:
    """Port Programs over a directory of the image."""

    def __init__(
        self, folder: Path, *, deadline: Deadline, beat: Callable[[], None] = lambda: None, owner: int = 0
    ) -> None:
        """
        Args:
            deadline: For all of them together.
            beat: Called while one runs, at least twice a second.
            owner: User whom a program must belong to; nobody else may be able to change it.
        """
        self._folder = folder
        self._deadline = deadline
        self._beat = beat
        self._owner = owner

    def run(self, folder: Path, *, made_from: int | None, schema: int) -> None:
        source = NEW if made_from is None else str(made_from)
        programs = self._programs(f"{source}-{schema}-")
        if not programs and made_from is not None:
            raise DataStepError(
                f"{self._folder}: expected a program {source}-{schema}-*, found none; the data are not migrated",
                code="data.program",
            )
        for program in programs:
            self._run(program, folder, {"TIDEWAITER_FROM": source, "TIDEWAITER_TO": str(schema)})
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise DataStepError(f"{program.name}: replaced {folder}; given up", code="data.program")

    def _programs(self, prefix: str) -> list[Path]:
        try:
            found = sorted(path for path in self._folder.iterdir() if path.name.startswith(prefix))
        except FileNotFoundError:
            return []
        for path in found:
            status = path.stat()
            is_sound = stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_IXUSR
            if not is_sound or status.st_uid != self._owner or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise DataStepError(
                    f"{path}: expected an executable file of user {self._owner} that nobody else may change, found mode "
                    f"{stat.filemode(status.st_mode)} of user {status.st_uid}; the data are not migrated",
                    code="data.program",
                )
        return found

    def _run(self, program: Path, folder: Path, extra: Mapping[str, str]) -> None:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "TIDEWAITER_SET": str(folder),
        }
        _adopt_orphans()
        ours = frozenset(_children())
        try:
            process = subprocess.Popen(  # noqa: S603 - a program of the signed image
                [str(program)],
                cwd=folder,
                env={**environment, **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_limit,  # noqa: PLW1509 - this program has one thread
            )
        except OSError as err:
            raise DataStepError(
                f"{program}: cannot be started ({err.strerror}); the data are not migrated",
                code="data.program",
            ) from err
        output = Output(program.name)
        try:
            in_time = self._attend(process, output)
        finally:
            code = _end(process)
            left = _end_orphans(ours)
            output.close()
        if not in_time:
            raise DataStepError(
                f"{program.name}: not done when the time for the data step was over; killed, the copy is given up",
                code="data.deadline",
            )
        if code != 0:
            how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
            raise DataStepError(
                f"{program.name}: failed with {how}; the copy is given up", code="data.program"
            )
        if left:
            raise DataStepError(
                f"{program.name}: left {left} processes running; the copy is given up", code="data.program"
            )

    def _attend(self, process: subprocess.Popen[bytes], output: Output) -> bool:
        """Read what it says until it ends; False when the time was over first. Who holds the pipe after that does not matter."""
        pipe = _pipe(process)
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            is_open = True
            while process.poll() is None:
                if self._deadline.expired:
                    return False
                self._beat()
                if not is_open:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(POLL_S)
                elif selector.select(min(POLL_S, max(0.0, self._deadline.remaining_s()))):
                    is_open = output.take(os.read(pipe.fileno(), READ_BYTES))
            os.set_blocking(pipe.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(DRAIN_READS):
                    if not output.take(os.read(pipe.fileno(), READ_BYTES)):
                        break
        return True


class Output:
    """What a program said, as log lines; too much of it is counted instead."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._line = b""
        self._cut = False
        self.lines = 0
        self.dropped = 0

    def take(self, data: bytes) -> bool:
        """The next piece; False when it was the end."""
        *lines, rest = (self._line + data).split(b"\n")
        for line in lines:
            self._say(line)
        self._cut = self._cut or len(rest) > LINE_LIMIT_BYTES
        self._line = rest[:LINE_LIMIT_BYTES]
        return bool(data)

    def close(self) -> None:
        if self._line:
            self._say(self._line)
        self._line = b""
        if self.dropped:
            logger.warning("%s: %d more lines of output", self._program, self.dropped)

    def _say(self, line: bytes) -> None:
        if self.lines >= OUTPUT_LIMIT_LINES:
            self.dropped += 1
            return
        self.lines += 1
        is_cut, self._cut = self._cut or len(line) > LINE_LIMIT_BYTES, False
        text = escape(redact(line[:LINE_LIMIT_BYTES].decode("utf-8", "replace")))
        logger.info("%s: %s%s", self._program, text, " ..." if is_cut else "")


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    if process.stdout is None:
        raise RuntimeError("the program was started without a pipe")
    return process.stdout


def _limit() -> None:
    """In the child, before the program: it dies with us, and leaves no core file in the copy."""
    _libc.prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _adopt_orphans() -> None:
    """Whatever a program starts and leaves becomes our child, so that it can be found."""
    _libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end(process: subprocess.Popen[bytes]) -> int:
    """The exit code; kills the program and its group if it still runs."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    _pipe(process).close()
    return code


def _end_orphans(ours: frozenset[int]) -> int:
    """Kill and collect what is left, round by round: each may have children that become ours by its death.

    Args:
        ours: Children that we had before.
    """
    count = 0
    while orphans := [pid for pid in _children() if pid not in ours]:
        for pid in orphans:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in orphans:
            with contextlib.suppress(ChildProcessError):
                _, status = os.waitpid(pid, 0)
                # One that had ended by itself before we came is nobody's harm.
                count += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return count


def _children() -> list[int]:
    own, found = os.getpid(), []
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = Path(entry.path, "stat").read_text(encoding="utf-8", errors="replace")
                if int(text.rpartition(")")[2].split()[1]) == own:
                    found.append(int(entry.name))
    return found
