"""Imports a release that the TUF repository names: reads the metadata, checks release.json against it, stores a pointer.

The server names a release; it never makes a device trust one. So this reading is for convenience and early, friendly
refusals: no signature is checked here and no key is needed. The device's own TUF client decides.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, insert, select
from tidewaiter_core.clock import Clock, format_utc
from tidewaiter_core.payload.release import release_path
from tidewaiter_core.strictjson import StrictJsonError, loads

from tidewaiter_server import audit
from tidewaiter_server.errors import Refusal
from tidewaiter_server.schema import releases

_METADATA_LIMIT_BYTES: Final = 16 * 1024 * 1024
_RELEASE_LIMIT_BYTES: Final = 65_536
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
ROLE: Final = "os"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A release as the repository describes it."""

    target_path: str
    digest: str
    length_bytes: int
    sha1: str
    md5: str
    sequence: int
    hw: tuple[str, ...]
    security_fix: bool


def stored_path(path: str, digest: str) -> str:
    """Where a consistent-snapshot repository keeps the target: the hash in front of the last name."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{digest}.{name}"


def find(repository: Path, product: str, version: str) -> Found:
    """The release in the repository's present metadata.

    Raises:
        Refusal: 404 `release.absent`, or 409 `release.mismatch` when repository and file disagree.
    """
    path = release_path(product, version)
    role = _role(repository)
    targets = role.get("targets")
    target = targets.get(path) if isinstance(targets, dict) else None
    if not isinstance(target, dict):
        raise Refusal(
            404, "release.absent", f"{path}: not a target of role {ROLE} in this repository; nothing imported"
        )
    hashes = target.get("hashes")
    digest = hashes.get("sha256") if isinstance(hashes, dict) else None
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise _mismatch(path, "a sha256 in its metadata", repr(digest))
    data = _read(repository / "targets" / stored_path(path, digest), _RELEASE_LIMIT_BYTES, path)
    if hashlib.sha256(data).hexdigest() != digest or len(data) != target.get("length"):
        raise _mismatch(path, f"{target.get('length')} bytes with hash {digest}", f"{len(data)} other bytes")
    return _describe(path, digest, data, product, version)


def store(
    connection: Connection, clock: Clock, found: Found, *, tenant: str, product: str, version: str, actor: str
) -> int:
    """The id of the imported release; importing the same again changes nothing, other content is 409."""
    known = connection.execute(
        select(releases.c.id, releases.c.digest).where(
            releases.c.tenant == tenant, releases.c.product == product, releases.c.version == version
        )
    ).first()
    if known is not None:
        if known.digest != found.digest:
            raise Refusal(
                409,
                "release.changed",
                f"{found.target_path}: imported before with digest {known.digest}, now the repository says "
                f"{found.digest}; a version never changes, publish a new one",
            )
        return int(known.id)
    inserted = connection.execute(
        insert(releases).values(
            tenant=tenant,
            product=product,
            version=version,
            target_path=found.target_path,
            digest=found.digest,
            length_bytes=found.length_bytes,
            sha1=found.sha1,
            md5=found.md5,
            sequence=found.sequence,
            hw=json.dumps(found.hw),
            security_fix=found.security_fix,
            imported_utc=format_utc(clock.now_utc()),
        )
    )
    key = inserted.inserted_primary_key
    release_id = int(key[0]) if key else 0
    audit.append(
        connection,
        clock,
        "release.imported",
        actor=actor,
        object=f"release:{release_id}",
        fields={"product": product, "version": version, "digest": found.digest, "sequence": found.sequence},
    )
    return release_id


def _role(repository: Path) -> dict[str, Any]:
    """The signed part of the os role, by the version numbers of timestamp and snapshot."""
    timestamp = _signed(repository, "timestamp.json")
    snapshot = _signed(repository, f"{_version(timestamp, 'snapshot.json')}.snapshot.json")
    return _signed(repository, f"{_version(snapshot, f'{ROLE}.json')}.{ROLE}.json")


def _signed(repository: Path, name: str) -> dict[str, Any]:
    data = _read(repository / "metadata" / name, _METADATA_LIMIT_BYTES, name)
    try:
        document = loads(data, limit_bytes=_METADATA_LIMIT_BYTES, depth=16)
    except StrictJsonError as error:
        raise _mismatch(name, "TUF metadata", str(error)) from error
    signed = document.get("signed") if isinstance(document, dict) else None
    if not isinstance(signed, dict):
        raise _mismatch(name, "TUF metadata with a signed part", "none")
    return signed


def _version(signed: dict[str, Any], name: str) -> int:
    meta = signed.get("meta")
    entry = meta.get(name) if isinstance(meta, dict) else None
    version = entry.get("version") if isinstance(entry, dict) else None
    if type(version) is not int or version < 1:
        raise _mismatch(name, "a version in the metadata above it", repr(version))
    return version


def _read(path: Path, limit_bytes: int, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Refusal(
            404, "release.absent", f"{name}: not in the repository ({reason}); nothing imported"
        ) from error
    if len(data) > limit_bytes:
        raise _mismatch(name, f"at most {limit_bytes} bytes", "more")
    return data


def _describe(path: str, digest: str, data: bytes, product: str, version: str) -> Found:
    try:
        release = loads(data, limit_bytes=_RELEASE_LIMIT_BYTES, depth=8)
    except StrictJsonError as error:
        raise _mismatch(path, "a release document", str(error)) from error
    if not isinstance(release, dict) or (release.get("product"), release.get("version")) != (
        product,
        version,
    ):
        raise _mismatch(path, f"the release document of {product} {version}", "another one")
    sequence, hw, policy = release.get("sequence"), release.get("hw"), release.get("policy")
    if type(sequence) is not int or not isinstance(hw, list) or not all(isinstance(one, str) for one in hw):
        raise _mismatch(path, "sequence and hw", "neither or only one")
    return Found(
        target_path=path,
        digest=digest,
        length_bytes=len(data),
        # Clients in the field demand these two; neither is a security control here.
        sha1=hashlib.sha1(data, usedforsecurity=False).hexdigest(),
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
        sequence=sequence,
        hw=tuple(hw),
        security_fix=isinstance(policy, dict) and policy.get("risk") in ("security", "critical"),
    )


def _mismatch(name: str, expected: str, found: str) -> Refusal:
    return Refusal(
        409, "release.mismatch", f"{name}: expected {expected}, found {found[:120]}; nothing imported"
    )
