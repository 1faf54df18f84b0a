"""The command `sign` of `tidewaiter-release`: for the offline machine of whoever holds a key."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tidewaiter_release.cli_keys import add_key_options, key_files, signers_of
from tidewaiter_release.errors import InputError
from tidewaiter_release.repository.changes import summary
from tidewaiter_release.repository.request import read_request
from tidewaiter_release.repository.sign import fingerprint, sign

_CONFIRM_DIGITS = 8


def add_sign_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    command = commands.add_parser(
        "sign", help="show what a signing request changes, then sign it (offline; needs no repository)"
    )
    command.add_argument("request", metavar="REQUEST", type=Path, help="folder that `stage` wrote")
    add_key_options(command)
    command.add_argument(
        "--keys", type=Path, metavar="DIR", help="use every key file of this folder that the request asks for"
    )
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="where the signature goes; default: into the request"
    )
    command.add_argument(
        "--yes", action="store_true", help="do not ask; for scripts that checked it otherwise"
    )
    command.set_defaults(run=_sign)


def _sign(arguments: argparse.Namespace) -> int:
    request = read_request(arguments.request)
    for line in summary(request):
        _say(line)
    _say(f"\nrequest {fingerprint(request)}")
    if not arguments.yes:
        _confirm(request.digest)
    if arguments.keys is not None:
        wanted = {keyid for item in request.items for keyid in item.keys}
        arguments.key += key_files(arguments.keys, wanted)
    lines = sign(request, arguments.request, signers_of(arguments), out=arguments.out)
    for line in lines:
        _say(f"signed {line}")
    return 0


def _confirm(digest: str) -> None:
    if not sys.stdin.isatty():
        raise InputError("nobody is there to confirm: read the summary, then use --yes; nothing was signed")
    sys.stdout.write(f"type the first {_CONFIRM_DIGITS} digits of the request to sign: ")
    sys.stdout.flush()
    if sys.stdin.readline().replace(" ", "").strip() != digest[:_CONFIRM_DIGITS]:
        raise InputError("not confirmed; nothing was signed")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
