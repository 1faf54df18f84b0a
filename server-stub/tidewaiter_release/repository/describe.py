"""One metadata file in words, for `inspect`. Says who signed, not whether they may: that needs the whole repository."""

from __future__ import annotations

from typing import Any

from tidewaiter_core.log import escape
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from tidewaiter_release.errors import InputError


def describe_metadata(data: bytes) -> list[str]:
    """The lines that describe TUF metadata.

    Raises:
        InputError: It is none.
    """
    try:
        metadata: Metadata[Any] = Metadata.from_bytes(data)
    except (DeserializationError, ValueError, KeyError, TypeError) as err:
        raise InputError(f"metadata: {err}") from err
    signed = metadata.signed
    lines = [
        f"{signed.type} version {signed.version}",
        f"  expires     {signed.expires:%Y-%m-%dT%H:%M:%SZ}",
        f"  signatures  {', '.join(escape(keyid)[:16] for keyid in metadata.signatures)} (not verified here)",
    ]
    if isinstance(signed, Root):
        lines += [
            f"  {name:<11} {role.threshold} of {len(role.keyids)}: {', '.join(keyid[:16] for keyid in role.keyids)}"
            for name, role in sorted(signed.roles.items())
        ]
    elif isinstance(signed, Timestamp):
        lines.append(f"  snapshot    version {signed.snapshot_meta.version}")
    elif isinstance(signed, Snapshot):
        lines += [f"  {escape(name)}  version {meta.version}" for name, meta in sorted(signed.meta.items())]
    elif isinstance(signed, Targets):
        roles = (signed.delegations.roles or {}) if signed.delegations is not None else {}
        lines += [
            f"  delegates   {escape(role.name)} {role.threshold} of {len(role.keyids)}: {', '.join(role.paths or ())}"
            for role in roles.values()
        ]
        lines += [
            f"  target      {escape(path)}, {target.length} bytes, {', '.join(sorted(target.hashes))}"
            for path, target in sorted(signed.targets.items())
        ]
    return lines
