"""The command `tidewaiter-release`. Exit status: 0 done, 1 refused (the code is on stderr), 2 wrong usage, 130 interrupted."""

from __future__ import annotations

import argparse
import json
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
from tidewaiter_release.repository.changes import summary
from tidewaiter_release.repository.founding import stage_first
from tidewaiter_release.repository.sign import fingerprint
from tidewaiter_release.repository.signing import Calendar

_READERS = frozenset({"stage", "publish", "refresh", "export"})
"""Commands that say at their end what expires soon; `lint` has it among its findings."""
_INTERRUPTED = 130
"""What a shell expects of a program that Ctrl-C ended."""


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run its command."""
    return run_command(parser().parse_args(argv))


def run_command(arguments: argparse.Namespace) -> int:
    """Run a command; what ends it becomes a line and an exit status."""
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
    except KeyboardInterrupt:
        print(
            f"\ntidewaiter-release: {arguments.command}: interrupted; what was not finished is not used",
            file=sys.stderr,
        )
        return _INTERRUPTED


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="tidewaiter-release",
        description="Build releases from images and keep the signed repository that devices trust.",
        epilog="Exit status: 0 done, 1 refused, 2 wrong usage, 130 interrupted by Ctrl-C.",
    )
    top.add_argument("--version", action="version", version=f"tidewaiter-release {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("init", help="make a repository; or, over public keys, the request for one")
    add = command.add_argument
    add("--repo", type=Path, metavar="DIR", help="the new repository")
    add("--keys", type=Path, metavar="DIR", help="where to make all keys, mode 0600")
    add(
        "--public",
        type=Path,
        metavar="DIR",
        help="instead: <role>-<name>.pub.pem of people who made their own keys",
    )
    add(
        "--request",
        type=Path,
        metavar="REQUEST",
        help="with --public: the signing request for the new repository",
    )
    command.set_defaults(run=_init, usage_error=command.error)

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
        "inspect",
        help="check and print release.json, an index, a pack, a patch, metadata or a signing request",
    )
    command.add_argument("file", metavar="FILE", type=Path)
    command.add_argument("--json", action="store_true", help="for a program")
    command.set_defaults(run=_inspect)

    command = commands.add_parser("lint", help="check every number, signature, file and hash of a repository")
    command.add_argument("--repo", type=Path, required=True, metavar="DIR", help="the repository")
    command.set_defaults(run=_lint)
    return top


def _add_repository(command: argparse.ArgumentParser) -> None:
    command.add_argument("--repo", type=Path, required=True, metavar="DIR", help="the repository")
    command.add_argument("--keys", type=Path, required=True, metavar="DIR", help="signing keys, mode 0600")


def _init(arguments: argparse.Namespace) -> int:
    if arguments.public is not None or arguments.request is not None:
        return _init_over_public_keys(arguments)
    if arguments.repo is None or arguments.keys is None:
        arguments.usage_error("give --repo and --keys, or --public and --request")
    store = init_repository(arguments.repo, arguments.keys, clock=SystemClock())
    print(f"repository {arguments.repo}")
    print(f"trusted root for the image: {store.metadata / '1.root.json'}")
    print(f"trusted root for the image, for sticks: {store.media.metadata / '1.root.json'}")
    print(
        f"keys {arguments.keys}: move all but snapshot and timestamp to offline media; refresh needs those two"
    )
    return 0


def _init_over_public_keys(arguments: argparse.Namespace) -> int:
    if arguments.public is None or arguments.request is None or arguments.repo or arguments.keys:
        arguments.usage_error("--public and --request go together, and without --repo and --keys")
    request = stage_first(arguments.public, arguments.request, calendar=Calendar(clock=SystemClock()))
    for line in summary(request):
        print(line)
    print(f"\n{arguments.request}: request {fingerprint(request)}; sign it, then publish it to a new --repo")
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
    found = inspect(arguments.file)
    if arguments.json:
        print(json.dumps(found.to_json(), indent=1, sort_keys=True, default=str))
    else:
        print("\n".join(found.lines))
    return 0


def _lint(arguments: argparse.Namespace) -> int:
    findings = lint(Store(arguments.repo), clock=SystemClock())
    for finding in findings:
        print(finding)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    print(f"{arguments.repo}: {errors} errors, {len(findings) - errors} warnings")
    return 1 if errors else 0
