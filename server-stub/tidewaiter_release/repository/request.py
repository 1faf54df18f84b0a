"""A signing request: a folder that travels from the repository to the people with the keys, and back.

    request.json     what is to be signed, by which keys, over which present state
    summary.txt      the same for a person
    sign/            the canonical bytes of each item, `<role>-<version>.json`
    present/         the metadata that each item replaces, whole
    files/           small documents that are published with it, by SHA-256: release.json, permits, authority files
    signatures/      what `sign` adds

Nothing in it is believed: `sign` shows what the canonical bytes say, `publish` takes keys and thresholds from the repository.
The identity of a request is the SHA-256 of request.json, which names every other file by hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidewaiter_core import __version__, strictjson
from tidewaiter_core.durable import write_atomic
from tidewaiter_core.errors import StateError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError
from tuf.api.serialization.json import CanonicalJSONSerializer

from tidewaiter_release.errors import InputError
from tidewaiter_release.repository.roles import DELEGATED, Side
from tidewaiter_release.repository.store import sync_directories

REQUEST_NAME = "request.json"
SUMMARY_NAME = "summary.txt"
SIGNATURES_NAME = "signatures"
TOOL = f"tidewaiter-release {__version__}"
KIND = "tidewaiter-signing-request"
_LIMIT_BYTES = 16 * 2**20
_DEPTH = 32

_SIGNED_BY_PEOPLE = frozenset(
    {(Side.ONLINE, name) for name in ("root", "targets", *(spec.name for spec in DELEGATED))}
    | {(Side.MEDIA, name) for name in ("root", "snapshot", "timestamp")}
)
"""Online snapshot and timestamp are signed by `publish`; targets files are the same on both sides and signed once."""

Signed = Root | Timestamp | Snapshot | Targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One metadata document to be signed."""

    side: Side
    role: str
    version: int
    data: bytes
    """Canonical bytes: exactly what a signature is over."""
    keys: Mapping[str, str]
    """Who may sign, key id to name. For people; `publish` asks the repository."""
    thresholds: tuple[int, ...]
    """Two for a root: of the old keys and of the new."""
    present: bytes | None
    """The metadata it replaces, whole; None: it is the first."""

    @property
    def desk_name(self) -> str:
        return self.side.desk_name(self.role)

    @property
    def name(self) -> str:
        """What it is called: role and version."""
        return f"{self.desk_name}-{self.version}"

    def signed(self) -> Signed:
        """The document, as it says itself.

        Raises:
            InputError: The bytes are no metadata of this role.
        """
        return parse_signed(self.data, what=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A whole request, every file of it checked against request.json."""

    digest: str
    """SHA-256 of request.json."""
    made_utc: str
    tool: str
    roots: Mapping[str, str]
    """SHA-256 of the first root of each side: which repository it is for."""
    items: tuple[Item, ...]
    files: Mapping[str, bytes]
    """Documents that travel with it, by target path."""

    def item(self, side: Side, role: str) -> Item | None:
        return next((item for item in self.items if (item.side, item.role) == (side, role)), None)


def parse_signed(data: bytes, *, what: str) -> Signed:
    """Metadata out of its canonical bytes.

    Raises:
        InputError: It is none, or not in canonical form: the bytes that a person is shown must be the bytes that are signed.
    """
    try:
        # Canonical JSON writes the line ends of a PEM key as they are, which JSON proper does not allow in a string. It
        # has none anywhere else; the comparison below would find one.
        text = data.replace(b"\n", b"\\n")
        document = strictjson.loads(text, limit_bytes=_LIMIT_BYTES, depth=_DEPTH)
        envelope = json.dumps({"signed": document, "signatures": []}).encode()
        signed: Signed = Metadata[Any].from_bytes(envelope).signed
        canonical = CanonicalJSONSerializer().serialize(signed)
    except (
        DeserializationError,
        SerializationError,
        strictjson.StrictJsonError,
        TypeError,
        ValueError,
    ) as err:
        raise InputError(f"{what}: no metadata: {err}; it is not signed") from err
    if canonical != data:
        raise InputError(
            f"{what}: not in canonical form, so it could say more than it shows; it is not signed"
        )
    return signed


def write_request(
    out: Path,
    *,
    made_utc: str,
    roots: Mapping[str, str],
    items: Sequence[Item],
    files: Mapping[str, bytes],
    summary: str,
) -> Request:
    """Write a request folder; it appears whole or not at all.

    Raises:
        InputError: The folder exists, or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists; a signing request is never changed, choose another folder")
    contents: dict[str, bytes] = {SUMMARY_NAME: summary.encode()}
    entries = []
    for item in items:
        contents[f"sign/{item.name}.json"] = item.data
        if item.present is not None:
            contents[f"present/{item.name}.json"] = item.present
        entries.append(
            {
                "side": item.side,
                "role": item.role,
                "version": item.version,
                "sha256": _sha256(item.data),
                "keys": dict(sorted(item.keys.items())),
                "thresholds": list(item.thresholds),
                "present": None if item.present is None else _sha256(item.present),
            }
        )
    for data in files.values():
        contents[f"files/{_sha256(data)}"] = data
    document = {
        "schema": 1,
        "kind": KIND,
        "tool": TOOL,
        "made_utc": made_utc,
        "roots": dict(roots),
        "items": entries,
        "files": [{"path": path, "sha256": _sha256(data)} for path, data in sorted(files.items())],
    }
    contents[REQUEST_NAME] = json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"
    _write_folder(out, contents)
    return read_request(out)


def read_request(directory: Path) -> Request:
    """Read a request folder and check every file of it.

    Raises:
        InputError: A file is missing, damaged, or not the one that request.json names.
    """
    data = _read(directory / REQUEST_NAME)
    where = str(directory / REQUEST_NAME)
    try:
        document = strictjson.loads(data, limit_bytes=_LIMIT_BYTES, depth=_DEPTH)
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise InputError(f"{where}: no signing request")
        if document["schema"] != 1:
            raise InputError(f"{where}: schema {document['schema']!r}, this tool knows 1; use the newer tool")
        items = tuple(_read_item(directory, entry) for entry in document["items"])
        files = {
            str(entry["path"]): _hashed(directory / "files" / _name(entry["sha256"]), entry["sha256"])
            for entry in document["files"]
        }
        names = [item.name for item in items]
        if not items or len(set(names)) != len(names):
            raise InputError(f"{where}: expected items of different names, found {names}")
        return Request(
            digest=_sha256(data),
            made_utc=str(document["made_utc"]),
            tool=str(document["tool"]),
            roots={str(side): str(digest) for side, digest in document["roots"].items()},
            items=items,
            files=files,
        )
    except (strictjson.StrictJsonError, KeyError, TypeError, ValueError, AttributeError) as err:
        raise InputError(f"{where}: no signing request: {type(err).__name__} {err}") from err


def _read_item(directory: Path, entry: Mapping[str, Any]) -> Item:
    side, role, version = Side(entry["side"]), str(entry["role"]), int(entry["version"])
    if (side, role) not in _SIGNED_BY_PEOPLE:
        raise InputError(
            f"{directory}: an item of {side} role {role!r}, which no request asks people to sign"
        )
    name = f"{side.desk_name(role)}-{version}.json"
    present = entry["present"]
    item = Item(
        side=side,
        role=role,
        version=version,
        data=_hashed(directory / "sign" / name, entry["sha256"]),
        keys={str(keyid): str(text) for keyid, text in entry["keys"].items()},
        thresholds=tuple(int(number) for number in entry["thresholds"]),
        present=None if present is None else _hashed(directory / "present" / name, present),
    )
    signed = item.signed()
    kind = role if role in ("root", "snapshot", "timestamp") else "targets"
    if (signed.type, signed.version) != (kind, version):
        raise InputError(
            f"{name}: holds {signed.type} version {signed.version}, request.json calls it {role} {version}"
        )
    return item


def _hashed(path: Path, sha256: str) -> bytes:
    data = _read(path)
    if _sha256(data) != sha256:
        raise InputError(
            f"{path}: sha256 {_sha256(data)}, request.json names {str(sha256)[:64]!r}; damaged or changed, not used"
        )
    return data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    if len(data) > _LIMIT_BYTES:
        raise InputError(f"{path}: larger than {_LIMIT_BYTES} bytes")
    return data


def _name(text: object) -> str:
    """A hash as a file name: nothing in a request chooses a path."""
    if not isinstance(text, str) or len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ValueError(f"{text!r} is no SHA-256")
    return text


def _write_folder(out: Path, contents: Mapping[str, bytes]) -> None:
    draft = out.with_name(f".{out.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / SIGNATURES_NAME).mkdir()
        for name, data in contents.items():
            path = draft / name
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, data, mode=0o644)
        sync_directories(draft, up_to=draft)
        draft.rename(out)
        sync_directories(out.parent, up_to=out.parent)
    except (OSError, StateError) as err:
        raise InputError(f"{out}: cannot be written: {err}; no signing request was made") from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
