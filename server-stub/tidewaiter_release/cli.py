"""The command `tidewaiter-release`. Exit status: 0 done, 1 refused (the code is on stderr), 2 wrong usage."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tidewaiter_core import __version__
from tidewaiter_core.clock import SystemClock, parse_utc
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import SlotName
from tidewaiter_core.payload.components import FileSystem
from tidewaiter_core.payload.limits import U32_MAX
from tidewaiter_core.payload.policy import Activation, Consent, Risk

from tidewaiter_release import zstd
from tidewaiter_release.build import BuildSpec, build
from tidewaiter_release.cli_delta import add_delta_commands, add_level
from tidewaiter_release.cli_export import add_export_command
from tidewaiter_release.cli_keys import add_key_command
from tidewaiter_release.cli_sign import add_sign_command
from tidewaiter_release.cli_stage import add_publish_command, add_stage_command
from tidewaiter_release.errors import InputError
from tidewaiter_release.inspect import inspect
from tidewaiter_release.payload import DEFAULT_LEVEL
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

_NOTE = re.compile(r"([A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*)=(.+)", re.DOTALL)


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

    _add_build(commands.add_parser("build", help="make index, pack and unsigned release.json of an image"))
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


def _add_build(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("image", metavar="IMAGE", type=Path, help="file-system image of one slot")
    add("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    add("--product", required=True)
    add(
        "--version",
        required=True,
        dest="release_version",
        metavar="VERSION",
        help="for people and paths; never compared",
    )
    add("--sequence", type=int, required=True, help="rises with every release of the product; the only order")
    add("--hw", action="append", required=True, help="hardware id it is for; repeatable")
    add("--security-epoch", type=int, default=0, help="devices that commit it refuse lower ones from then on")
    add(
        "--consent",
        choices=[str(member) for member in Consent],
        default="none",
        help="whose agreement it needs",
    )
    add("--risk", choices=[str(member) for member in Risk], default="routine")
    add("--tries", type=int, default=3, help="boots before the old slot returns (1..9)")
    add(
        "--activation",
        choices=[str(member) for member in Activation],
        default="any",
        help="whether the reboot waits for a window",
    )
    add(
        "--health-required",
        type=_names,
        default=(),
        metavar="A,B",
        help="checks that must be green in the trial boot",
    )
    add("--health-deadline-s", type=int, default=600, metavar="N")
    add("--hold-s", type=int, default=30, metavar="N", help="how long they must stay green")
    add("--from-min", type=int, default=0, metavar="N", help="lowest running sequence that may install it")
    add("--from-max", type=int, default=U32_MAX, metavar="N", help="highest one")
    add("--data-writes", type=int, default=1, metavar="N", help="data schema it writes")
    add("--data-reads", type=_range, default=(1, 1), metavar="MIN-MAX", help="data schemas it reads")
    add(
        "--irreversible-data",
        action="store_true",
        help="after commit the older release cannot run on the data",
    )
    add(
        "--max-fetch-bytes",
        type=int,
        metavar="N",
        help="default: index and pack with 5 %% and 1 MiB to spare",
    )
    add("--fs", choices=[str(member) for member in FileSystem], help="default: as the superblock says")
    add(
        "--note",
        action="append",
        type=_note,
        default=[],
        metavar="LANG=TEXT",
        help="shown before consent; repeatable",
    )
    add("--built-utc", type=_utc, metavar="T", help="default: SOURCE_DATE_EPOCH, else the image's own time")
    add(
        "--level",
        type=int,
        default=DEFAULT_LEVEL,
        choices=range(zstd.LEVEL_MIN, zstd.LEVEL_MAX + 1),
        metavar="1..22",
        help="zstd level",
    )
    add(
        "--uki",
        action="append",
        type=_uki,
        default=[],
        metavar="SLOT=FILE",
        help="unified kernel image that starts slot A or B, for devices with systemd-boot; one for each slot",
    )
    add(
        "--patch-from",
        action="append",
        type=Path,
        default=[],
        metavar="OLD",
        help="also make the patch from this image or build directory; repeatable, up to 16",
    )
    add_level(command, "--patch-level")
    add("--jobs", type=int, metavar="N", help="threads; default one per processor")
    command.set_defaults(run=_build)


def _init(arguments: argparse.Namespace) -> int:
    store = init_repository(arguments.repo, arguments.keys, clock=SystemClock())
    print(f"repository {arguments.repo}")
    print(f"trusted root for the image: {store.metadata / '1.root.json'}")
    print(f"trusted root for the image, for sticks: {store.media.metadata / '1.root.json'}")
    print(
        f"keys {arguments.keys}: move all but snapshot and timestamp to offline media; refresh needs those two"
    )
    return 0


def _build(arguments: argparse.Namespace) -> int:
    spec = BuildSpec(
        product=arguments.product,
        version=arguments.release_version,
        sequence=arguments.sequence,
        hw=tuple(arguments.hw),
        built_utc=arguments.built_utc or _default_built_utc(arguments.image),
        security_epoch=arguments.security_epoch,
        consent=arguments.consent,
        risk=arguments.risk,
        tries=arguments.tries,
        activation=arguments.activation,
        health_required=arguments.health_required,
        health_deadline_s=arguments.health_deadline_s,
        health_hold_s=arguments.hold_s,
        from_min=arguments.from_min,
        from_max=arguments.from_max,
        data_writes=arguments.data_writes,
        data_reads_min=arguments.data_reads[0],
        data_reads_max=arguments.data_reads[1],
        data_reversible=not arguments.irreversible_data,
        max_fetch_bytes=arguments.max_fetch_bytes,
        fs=arguments.fs,
        notes=dict(arguments.note),
        ukis=dict(arguments.uki),
    )
    release = build(
        arguments.image,
        arguments.out,
        spec,
        level=arguments.level,
        patch_from=arguments.patch_from,
        patch_level=arguments.patch_level,
        workers=arguments.jobs,
        stream=sys.stderr,
    )
    print(f"{release.product} {release.version} sequence {release.sequence} digest {release.digest}")
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


def _default_built_utc(image: Path) -> datetime:
    """A time that is the same when the build is repeated."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if re.fullmatch(r"[0-9]{1,11}", epoch, re.ASCII):
        return datetime.fromtimestamp(int(epoch), UTC)
    try:
        return datetime.fromtimestamp(int(image.stat().st_mtime), UTC)
    except OSError as err:
        raise InputError(f"{image}: cannot be read: {err}") from err


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"expected MIN-MAX, found {text!r}") from err


def _uki(text: str) -> tuple[SlotName, Path]:
    slot, equals, path = text.partition("=")
    if slot not in ("A", "B") or not equals or not path:
        raise argparse.ArgumentTypeError(f"expected A=FILE or B=FILE, found {text!r}")
    return SlotName(slot), Path(path)


def _note(text: str) -> tuple[str, str]:
    match = _NOTE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected LANG=TEXT, found {text!r}")
    return match.group(1), match.group(2)


def _utc(text: str) -> datetime:
    try:
        return parse_utc(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err
