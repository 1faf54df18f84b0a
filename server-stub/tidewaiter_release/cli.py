"""The command `tidewaiter-release`. Exit status: 0 done, 1 refused (the code is on stderr), 2 wrong usage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tidewaiter_core import __version__
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_release.cli_build import add_build_command
from tidewaiter_release.cli_delta import add_delta_commands
from tidewaiter_release.cli_export import add_export_command
from tidewaiter_release.cli_keys import add_key_command
from tidewaiter_release.cli_sign import add_sign_command
from tidewaiter_release.cli_stage import add_publish_command, add_stage_command
from tidewaiter_release.inspect import inspect
from tidewaiter_release.repository import (
    Desk,
    Severity,
    Store,
    expiry_notes,
    init_repository,
    lint,
    refresh,
    renew_media,
)

_READERS = frozenset({"stage", "publish", "refresh", "export"})
"""Commands that say at their end what expires soon; `lint` has it among its findings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    arguments = parser().parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        status = run(arguments)
        if arguments.command in _READERS:
            for note in expiry_notes(Store(arguments.repo), SystemClock()):
                print(f"tidewaiter-release: {note}", file=sys.stderr)
        return status
    except TidewaiterError as err:
        print(f"tidewaiter-release: {err} [{err.code}]", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tidewaiter-release",
        description="Build releases from images and keep the signed repository that devices trust.",
        epilog="Exit status: 0 done, 1 refused, 2 wrong usage.",
    )
    top.add_argument("--version", action="version", version=f"tidewaiter-release {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("init", help="make keys and an empty repository")
    _add_repository(command)
    command.set_defaults(run=_init)

    add_build_command(commands)
    add_delta_commands(commands)

    add_stage_command(commands)
    add_sign_command(commands)
    add_publish_command(commands)
    add_key_command(commands)

    command = commands.add_parser("refresh", help="renew snapshot and timestamp (needs only their keys)")
    _add_repository(command)
    command.add_argument(
        "--media",
        action="store_true",
        help="instead the media side: its snapshot and timestamp over the present targets (needs 2 of 3 keys of both)",
    )
    command.set_defaults(run=_refresh)

    add_export_command(commands)

    command = commands.add_parser(
        "inspect", help="check and print release.json, an index, a pack, a patch or metadata"
    )
    command.add_argument("file", metavar="FILE", type=Path)
    command.set_defaults(run=_inspect)

    command = commands.add_parser("lint", help="check every number, signature, file and hash of a repository")
    command.add_argument("--repo", type=Path, required=True, metavar="DIR", help="the repository")
    command.set_defaults(run=_lint)
    return top


def _add_repository(command: argparse.ArgumentParser) -> None:
    command.add_argument("--repo", type=Path, required=True, metavar="DIR", help="the repository")
    command.add_argument("--keys", type=Path, required=True, metavar="DIR", help="signing keys, mode 0600")


def _init(arguments: argparse.Namespace) -> int:
    store = init_repository(arguments.repo, arguments.keys, clock=SystemClock())
    print(f"repository {arguments.repo}")
    print(f"trusted root for the image: {store.metadata / '1.root.json'}")
    print(f"trusted root for the image, for sticks: {store.media.metadata / '1.root.json'}")
    print(
        f"keys {arguments.keys}: move all but snapshot and timestamp to offline media; refresh needs those two"
    )
    return 0


def _refresh(arguments: argparse.Namespace) -> int:
    if arguments.media:
        version = renew_media(Store(arguments.repo), Desk(keys=arguments.keys, clock=SystemClock()))
        print(f"media timestamp version {version}")
        return 0
    version = refresh(Store(arguments.repo), Desk(keys=arguments.keys, clock=SystemClock()))
    print(f"timestamp version {version}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    print("\n".join(inspect(arguments.file)))
    return 0


def _lint(arguments: argparse.Namespace) -> int:
    findings = lint(Store(arguments.repo), clock=SystemClock())
    for finding in findings:
        print(finding)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    print(f"{arguments.repo}: {errors} errors, {len(findings) - errors} warnings")
    return 1 if errors else 0
