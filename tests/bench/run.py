"""Runs a program and says what it took: wall time, processor time of it and its children, peak memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One run of a program that ended well."""

    wall_s: float
    processor_s: float
    """User and system time. What the kernel does later (write-back, loop devices) is not in it, for nobody."""
    output: str


def act(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> Act:
    """Run `command` to its end.

    Raises:
        RuntimeError: It failed; the end of what it said is in the message.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as complained:
        began_s = time.monotonic()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=complained,
            env={**os.environ, "LC_ALL": "C", **(environment or {})},
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (said, complained):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    if process.returncode:
        raise RuntimeError(
            f"{command[0]}: exit {process.returncode}: {(texts[1] or texts[0]).strip()[-600:]}"
        )
    return Act(wall_s=wall_s, processor_s=usage.ru_utime + usage.ru_stime, output=texts[0])
