"""The command `export` of `tidewaiter-release`: a stick out of the media side of a repository."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidewaiter_core.clock import SystemClock

from tidewaiter_release.repository import Store, export


def add_export_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    command = commands.add_parser(
        "export", help="write releases to a stick, or continue an interrupted export to it"
    )
    add = command.add_argument
    add("--repo", type=Path, required=True, metavar="DIR", help="the repository")
    add(
        "--release",
        action="append",
        required=True,
        metavar="VERSION",
        help="which release; PRODUCT/VERSION where several products have it; repeatable",
    )
    add("--to", type=Path, required=True, metavar="DIR", help="where the medium is mounted")
    add(
        "--patches",
        nargs="?",
        const="all",
        metavar="A,B",
        help="also the patches: all, or those that start from these versions (default: none)",
    )
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    chosen: tuple[str, ...] | None = ()
    if arguments.patches is not None:
        chosen = None if arguments.patches == "all" else tuple(filter(None, arguments.patches.split(",")))
    done = export(
        Store(arguments.repo),
        arguments.to,
        arguments.release,
        clock=SystemClock(),
        patches_from=chosen,
        stream=sys.stderr,
    )
    for release in done.releases:
        _say(f"{release.product} {release.version} sequence {release.sequence} digest {release.digest}")
    _say(f"{arguments.to}/TIDEWAITER: {done.written_bytes} bytes written, every file read back")
    _say(f"devices accept it until {done.metadata_expires}")
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
