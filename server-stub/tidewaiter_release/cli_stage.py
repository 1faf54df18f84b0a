"""The commands `stage` and `publish` of `tidewaiter-release`: what leaves the release desk, and what comes back signed."""

from __future__ import annotations

import argparse
import sys
from datetime import datetime
from pathlib import Path

from tidewaiter_core.clock import SystemClock, parse_utc

from tidewaiter_release.repository import Desk, Store, has_media, publish
from tidewaiter_release.repository import edits as edit
from tidewaiter_release.repository.adopt import adopt
from tidewaiter_release.repository.changes import summary
from tidewaiter_release.repository.request import read_request
from tidewaiter_release.repository.sign import fingerprint, read_signatures, signature_files
from tidewaiter_release.repository.signing import Calendar
from tidewaiter_release.repository.stage import Change, stage


def add_stage_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `stage` to the command line."""
    command = commands.add_parser("stage", help="make a signing request; nothing is published")
    kinds = command.add_subparsers(dest="kind", required=True, metavar="KIND")

    kind = _kind(kinds, "release", "a build, with its firmware")
    kind.add_argument("build", metavar="BUILD_DIR", type=Path, help="directory that `build` wrote")
    kind.set_defaults(change=lambda given: edit.release(given.build, stream=sys.stderr))

    kind = _kind(kinds, "permit", "allow devices to go back from one release to an older one")
    kind.add_argument("--product", required=True)
    kind.add_argument("--from-release", required=True, metavar="VERSION", help="what the devices run")
    kind.add_argument("--to-release", required=True, metavar="VERSION", help="where they may go back to")
    who = kind.add_mutually_exclusive_group(required=True)
    who.add_argument("--serial", action="append", metavar="N", help="a device; repeatable")
    who.add_argument("--all-devices", action="store_true")
    kind.add_argument("--not-after", type=_utc, required=True, metavar="T", help="RFC 3339, UTC")
    kind.add_argument("--reason", required=True, metavar="TEXT")
    kind.set_defaults(change=_permit)

    kind = _kind(kinds, "file", "support authority or trust anchors; replaces the present file")
    kind.add_argument(
        "files",
        metavar="TARGET=FILE",
        nargs="+",
        type=_file,
        help="authorities/support.json=..., trust/roots.json=..., trust/revoked.json=...",
    )
    kind.set_defaults(change=lambda given: edit.documents(dict(given.files), now_utc=SystemClock().now_utc()))

    kind = _kind(kinds, "keys", "replace keys; of a top-level role: under the next root")
    kind.add_argument(
        "--replace",
        action="append",
        required=True,
        type=_replacement,
        metavar="ROLE:OLD=NEW.pub.pem",
        help="OLD is the key's name or the beginning of its id; repeatable",
    )
    kind.set_defaults(change=lambda given: edit.keys(given.replace))

    kind = _kind(kinds, "renew", "the same content with a new life, before it expires")
    kind.add_argument(
        "roles", metavar="ROLE", nargs="+", help="os, targets, root, media-root, media-snapshot ..."
    )
    kind.set_defaults(change=lambda given: edit.renew(given.roles))


def add_publish_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `publish` to the command line."""
    command = commands.add_parser(
        "publish", help="publish a signed request, or a build with all keys at hand"
    )
    add = command.add_argument
    add("--repo", type=Path, required=True, metavar="DIR", help="the repository")
    add(
        "--keys",
        type=Path,
        required=True,
        metavar="DIR",
        help="keys of snapshot and timestamp; or all, mode 0600",
    )
    add("--request", type=Path, metavar="REQUEST", help="folder that `stage` wrote, with what `sign` added")
    add(
        "--signatures",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a signature file that is not in the folder; repeatable",
    )
    add(
        "build",
        metavar="BUILD_DIR",
        type=Path,
        nargs="?",
        help="directory that `build` wrote; without --request it is signed at once",
    )
    command.set_defaults(run=_publish, usage_error=command.error)


def _kind(
    kinds: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_text: str
) -> argparse.ArgumentParser:
    kind = kinds.add_parser(name, help=help_text)
    kind.add_argument("--repo", type=Path, required=True, metavar="DIR", help="the repository")
    kind.add_argument(
        "--out", type=Path, required=True, metavar="REQUEST", help="folder of the request; must not exist"
    )
    kind.add_argument(
        "--without-media",
        action="store_true",
        help="leave the media side as it is; sticks get the change with a later `stage renew media-snapshot`",
    )
    kind.set_defaults(run=_stage)
    return kind


def _stage(arguments: argparse.Namespace) -> int:
    change: Change = arguments.change(arguments)
    calendar = Calendar(clock=SystemClock())
    request = stage(
        Store(arguments.repo), arguments.out, change, calendar=calendar, media=not arguments.without_media
    )
    for line in summary(request):
        _say(line)
    _say(f"\n{arguments.out}: request {fingerprint(request)}")
    return 0


def _publish(arguments: argparse.Namespace) -> int:
    if arguments.request is not None:
        return _publish_request(arguments)
    if arguments.build is None or arguments.signatures:
        arguments.usage_error("give BUILD_DIR, or --request with its signatures")
    desk = Desk(keys=arguments.keys, clock=SystemClock())
    store = Store(arguments.repo)
    published = publish(store, desk, arguments.build, stream=sys.stderr)
    if not published.new:
        _note(f"{published.path}: was published before, nothing to do")
    if not published.on_media and has_media(store):
        _note("the media side does not have it yet, its keys are not here: `refresh --media` before `export`")
    _say(published.path)
    return 0


def _publish_request(arguments: argparse.Namespace) -> int:
    request = read_request(arguments.request)
    files = [*signature_files(arguments.request), *arguments.signatures]
    signatures = [one for path in files for one in read_signatures(path, request)]
    adopted = adopt(
        Store(arguments.repo),
        Desk(keys=arguments.keys, clock=SystemClock()),
        request,
        signatures,
        builds=[arguments.build] if arguments.build is not None else [],
    )
    if not adopted.items:
        _note("was published before, nothing to do")
    for name in adopted.items:
        _say(f"published {name}")
    for path in adopted.targets:
        _say(path)
    return 0


def _permit(given: argparse.Namespace) -> Change:
    return edit.permit(
        given.product,
        from_version=given.from_release,
        to_version=given.to_release,
        serials=given.serial,
        not_after_utc=given.not_after,
        reason=given.reason,
    )


def _file(text: str) -> tuple[str, Path]:
    target, found, path = text.partition("=")
    if not found or not path:
        raise argparse.ArgumentTypeError(f"expected TARGET=FILE, found {text!r}")
    return target, Path(path)


def _replacement(text: str) -> edit.Replacement:
    role, colon, rest = text.partition(":")
    old, found, new = rest.partition("=")
    if not (colon and found and old and new):
        raise argparse.ArgumentTypeError(f"expected ROLE:OLD=NEW.pub.pem, found {text!r}")
    return edit.Replacement(role=role, old=old, new=Path(new))


def _utc(text: str) -> datetime:
    try:
        return parse_utc(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _note(line: str) -> None:
    sys.stderr.write(f"{line}\n")
