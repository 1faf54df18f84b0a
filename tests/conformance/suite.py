"""Runs a checkout of theupdateframework/tuf-conformance over our client, in an environment that is the suite's own.

The suite pins another python-tuf than the device uses, and is nobody's dependency: it is neither vendored nor installed here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
CLIENT: Final = ROOT / "tests/conformance/tuf-client"
CHECKOUT_VARIABLE: Final = "TIDEWAITER_TUF_CONFORMANCE"
HOW_TO_GET_IT: Final = (
    f"the public suite is not here: clone github.com/theupdateframework/tuf-conformance (eec841c or later) and set "
    f"{CHECKOUT_VARIABLE}=<checkout>, or run `make conformance SUITE=<checkout>`"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the suite said."""

    passed: int
    failed: int
    other: int
    """Skipped, expected failures, errors at set-up."""
    failures: tuple[str, ...]


def checkout() -> Path | None:
    """Where a checkout of the suite lies: the variable, or beside the design documents."""
    named = os.environ.get(CHECKOUT_VARIABLE)
    for place in [Path(named)] if named else [ROOT.parent / "shared/reference/tuf-conformance"]:
        if (place / "tuf_conformance/conftest.py").is_file():
            return place.resolve()
    return None


def missing_program() -> str | None:
    """What else the suite needs and this machine has not."""
    return (
        None if shutil.which("faketime") else "the suite needs the program faketime (Debian package faketime)"
    )


def run(suite: Path, out: Path, arguments: Sequence[str] = ()) -> Outcome:
    """Run the suite; its own report lands in `out`/report.json.

    Args:
        out: Holds the suite's environment, too, made at the first run.
        arguments: For pytest, such as `-k rollback`.

    Raises:
        subprocess.CalledProcessError: The suite's requirements cannot be installed.
    """
    python = _environment(suite, out / "env")
    report = out / "report.json"
    report.unlink(missing_ok=True)
    subprocess.run(
        [
            python,
            "-m",
            "pytest",
            "-q",
            "--rootdir=.",
            "-c",
            "pyproject.toml",
            "-p",
            "no:cacheprovider",
            "--json-report",
            f"--json-report-file={report}",
            # One word: as two, pytest would take the client's folder for one more place of tests, and our options with it.
            f"--entrypoint={CLIENT}",
            *arguments,
            "tuf_conformance",
        ],
        cwd=suite,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    return _outcome(json.loads(report.read_bytes()))


def _environment(suite: Path, place: Path) -> str:
    python = place / "bin/python"
    ready = place / ".ready"
    wanted = (suite / "pyproject.toml").read_bytes()
    requirements = tomllib.loads(wanted.decode("utf-8"))["project"]["dependencies"]
    if not ready.exists() or ready.read_bytes() != wanted:
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        ready.write_bytes(wanted)
    return str(python)


def _outcome(report: dict[str, object]) -> Outcome:
    tests = report["tests"]
    rows = (
        [(str(one["nodeid"]), str(one["outcome"])) for one in tests if isinstance(one, dict)]
        if isinstance(tests, list)
        else []
    )
    failures = tuple(name for name, outcome in rows if outcome in ("failed", "error"))
    passed = sum(outcome == "passed" for _, outcome in rows)
    return Outcome(
        passed=passed,
        failed=len(failures),
        other=len(rows) - passed - len(failures),
        failures=failures,
    )


def main(argv: Sequence[str]) -> int:
    """Entry point of `make conformance`; returns the exit code."""
    if not argv or not (Path(argv[0]) / "tuf_conformance/conftest.py").is_file():
        sys.stderr.write(f"{HOW_TO_GET_IT}\n")
        return 2
    missing = missing_program()
    if missing is not None:
        sys.stderr.write(f"{missing}\n")
        return 2
    outcome = run(Path(argv[0]).resolve(), ROOT / "out/conformance", argv[1:])
    sys.stdout.write(
        f"conformance: {outcome.passed} passed, {outcome.failed} failed, {outcome.other} neither; "
        "report: out/conformance/report.json\n"
    )
    return 0 if outcome.passed and not outcome.failed and not outcome.other else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
