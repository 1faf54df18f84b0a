"""`sign`: adds the signatures of one person to a signing request. Works without network, repository or clock."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from securesystemslib.signer import Key, Signature, Signer
from tidewaiter_core import strictjson
from tidewaiter_core.durable import write_atomic

from tidewaiter_release.errors import InputError, KeyFileError
from tidewaiter_release.repository.request import SIGNATURES_NAME, Request

_KIND = "tidewaiter-signatures"
_LIMIT_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemSignature:
    """One signature over one item."""

    item: str
    signature: Signature


def sign(
    request: Request, directory: Path, signers: Sequence[Signer], *, out: Path | None = None
) -> list[str]:
    """Sign every item that a key is listed for, and write one file per key; returns a line per signature.

    Args:
        out: Folder for the signature files; default: the one in the request.

    Raises:
        KeyFileError: A key may sign nothing in this request: very likely the wrong key or the wrong request.
    """
    place = out if out is not None else directory / SIGNATURES_NAME
    files: dict[Path, bytes] = {}
    lines: list[str] = []
    for signer in signers:
        key = signer.public_key
        wanted = [item for item in request.items if key.keyid in item.keys]
        if not wanted:
            raise KeyFileError(
                f"key {key.keyid[:16]}: signs nothing in this request, which asks for "
                f"{', '.join(item.desk_name for item in request.items)}; nothing was signed"
            )
        made = [ItemSignature(item=item.name, signature=signer.sign(item.data)) for item in wanted]
        files[place / f"{request.digest[:8]}-{key.keyid[:16]}.json"] = _to_bytes(request, key, made)
        lines += [f"{item.name} by {item.keys[key.keyid]}" for item in wanted]
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise InputError(f"{place}: no folder for signatures can be made: {err}; nothing was signed") from err
    for path, data in files.items():
        write_atomic(path, data, mode=0o644)
    return lines


def read_signatures(path: Path, request: Request) -> list[ItemSignature]:
    """One signature file; whether its signatures are good is the business of `publish`.

    Raises:
        InputError: It is none, or belongs to another request.
    """
    try:
        with path.open("rb") as file:
            document = strictjson.loads(file.read(_LIMIT_BYTES + 1), limit_bytes=_LIMIT_BYTES, depth=8)
        if not isinstance(document, dict) or document.get("kind") != _KIND or document["schema"] != 1:
            raise InputError(f"{path}: no signatures of this tool")
        if document["request"] != request.digest:
            raise InputError(
                f"{path}: signs the request {str(document['request'])[:16]}, this one is {request.digest[:16]}; not used"
            )
        return [
            ItemSignature(
                item=str(entry["item"]), signature=Signature(str(entry["keyid"]), str(entry["sig"]))
            )
            for entry in document["signatures"]
        ]
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    except (strictjson.StrictJsonError, KeyError, TypeError, AttributeError) as err:
        raise InputError(f"{path}: no signatures of this tool: {type(err).__name__} {err}") from err


def signature_files(directory: Path) -> list[Path]:
    """The signature files that came back with a request folder."""
    return sorted((directory / SIGNATURES_NAME).glob("*.json"))


def _to_bytes(request: Request, key: Key, made: Sequence[ItemSignature]) -> bytes:
    document = {
        "schema": 1,
        "kind": _KIND,
        "request": request.digest,
        "signatures": [
            {"item": one.item, "keyid": key.keyid, "sig": one.signature.signature} for one in made
        ],
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def fingerprint(request: Request) -> str:
    """What two people compare over the telephone before they sign: the head of the digest in groups of four."""
    head = request.digest[:32]
    return " ".join(head[at : at + 4] for at in range(0, len(head), 4))
