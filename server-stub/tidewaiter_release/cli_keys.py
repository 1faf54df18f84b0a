"""The command `key` of `tidewaiter-release`, and how every command comes by a key: file, passphrase, token, PIN."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from tidewaiter_release.errors import KeyFileError
from tidewaiter_release.repository.keys import (
    PUBLIC_SUFFIX,
    Signer,
    load_public,
    load_signer,
    make_key,
    write_public,
)
from tidewaiter_release.repository.token import token_signer

_SECRET_LIMIT_BYTES = 1024


def add_key_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add it to the command line."""
    command = commands.add_parser("key", help="make a signing key, or write the public half of one")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")

    action = actions.add_parser("make", help="make an Ed25519 key file, and its public half beside it")
    action.add_argument("key", metavar="KEY.pem", type=Path, help="its name is what others call the key")
    action.add_argument("--encrypt", action="store_true", help="with a passphrase")
    _add_passphrase(action)
    action.set_defaults(run=_make)

    action = actions.add_parser("public", help="write the public half of a key file or of a key on a token")
    add_key_options(action)
    action.add_argument("--out", type=Path, required=True, metavar="KEY.pub.pem")
    action.set_defaults(run=_public)


def add_key_options(command: argparse.ArgumentParser) -> None:
    """Which keys to use."""
    add = command.add_argument
    add("--key", action="append", type=Path, default=[], metavar="KEY.pem", help="a key file; repeatable")
    _add_passphrase(command)
    add("--pkcs11-module", type=Path, metavar="LIB.so", help="use a token, through the library of its maker")
    add("--pkcs11-id", type=int, default=2, metavar="N", help="which key of the token (CKA_ID; default 2)")
    add("--pkcs11-token", metavar="LABEL", help="which token, if several are plugged in")
    add("--pin-file", type=Path, metavar="FILE", help="the token's PIN; default: ask")


def signers_of(arguments: argparse.Namespace) -> list[Signer]:
    """The keys that the options name.

    Raises:
        KeyFileError: None is named, or one cannot be used.
    """
    found: list[Signer] = [
        load_signer(path, passphrase=_passphrase(arguments.passphrase_file)) for path in arguments.key
    ]
    if arguments.pkcs11_module is not None:
        found.append(
            token_signer(
                arguments.pkcs11_module,
                key_id=arguments.pkcs11_id,
                label=arguments.pkcs11_token,
                pin=lambda: _secret(arguments.pin_file, "PIN of the token").decode(),
            )
        )
    if not found:
        raise KeyFileError("no key named: give --key FILE or --pkcs11-module LIB")
    return found


def key_files(directory: Path, wanted: Collection[str]) -> list[Path]:
    """The key files of a folder whose keys are wanted; those without a public half beside them are opened to find out.

    Raises:
        KeyFileError: None is, or one cannot be read.
    """
    found = []
    for path in sorted(directory.glob("*.pem")):
        if path.name.endswith(PUBLIC_SUFFIX):
            continue
        public = path.with_name(path.name.removesuffix(".pem") + PUBLIC_SUFFIX)
        key = load_public(public) if public.exists() else load_signer(path).public_key
        if key.keyid in wanted:
            found.append(path)
    if not found:
        raise KeyFileError(f"{directory}: holds no key that this request asks for; nothing was signed")
    return found


def _make(arguments: argparse.Namespace) -> int:
    passphrase = None
    if arguments.encrypt:
        passphrase = _secret(arguments.passphrase_file, f"new passphrase of {arguments.key}", twice=True)
    key = make_key(arguments.key, passphrase=passphrase)
    public = arguments.key.with_name(arguments.key.name.removesuffix(".pem") + PUBLIC_SUFFIX)
    write_public(key, public)
    _say(f"{arguments.key}: secret, keep it offline")
    _say(f"{public}: public, key id {key.keyid}")
    return 0


def _public(arguments: argparse.Namespace) -> int:
    signers = signers_of(arguments)
    if len(signers) != 1:
        raise KeyFileError(f"{len(signers)} keys named; one public half fits in one file")
    write_public(signers[0].public_key, arguments.out)
    _say(f"{arguments.out}: key id {signers[0].public_key.keyid}")
    return 0


def _add_passphrase(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--passphrase-file",
        type=Path,
        metavar="FILE",
        help="first line of it is the passphrase; default: ask",
    )


def _passphrase(path: Path | None) -> Callable[[Path], bytes]:
    return lambda key: _secret(path, f"passphrase of {key}")


def _secret(path: Path | None, what: str, *, twice: bool = False) -> bytes:
    """A passphrase or PIN: never an argument, which every process of the machine can read."""
    if path is not None:
        try:
            with path.open("rb") as file:
                secret = file.read(_SECRET_LIMIT_BYTES).split(b"\n")[0].rstrip(b"\r")
        except OSError as err:
            raise KeyFileError(f"{path}: cannot be read: {err}") from err
    elif sys.stdin.isatty():
        secret = getpass.getpass(f"{what}: ").encode()
        if twice and getpass.getpass("again: ").encode() != secret:
            raise KeyFileError("the two differ; no key was made")
    else:
        raise KeyFileError(f"{what}: there is no terminal to ask at; give it in a file")
    if not secret:
        raise KeyFileError(f"{what}: is empty")
    return secret


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
