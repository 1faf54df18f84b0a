"""What this machine can do at best: the bounds that no program beats, printed beside every ratio."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

_HASHED_BYTES = 512 << 20


def facts() -> dict[str, Any]:
    """Processor, kernel, interpreter, and how fast one core hashes."""
    return {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "system": _system(),
        "python": platform.python_version(),
        "sha256_of_one_core_mb_per_s": round(_hashlib_speed()),
        "openssl_sha256_mb_per_s": _openssl_speed(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "measured_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _hashlib_speed() -> float:
    data = bytes(1 << 20)
    digest = hashlib.sha256()
    began_s = time.monotonic()
    for _ in range(_HASHED_BYTES // len(data)):
        digest.update(data)
    return _HASHED_BYTES / (time.monotonic() - began_s) / 1e6


def _openssl_speed() -> int | None:
    command = ["openssl", "speed", "-seconds", "1", "-bytes", "1048576", "-evp", "sha256"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    found = re.findall(r"^sha256\s+([0-9.]+)k", done.stdout, re.IGNORECASE | re.MULTILINE)
    return round(float(found[-1]) / 1000) if found else None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _system() -> str:
    return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
