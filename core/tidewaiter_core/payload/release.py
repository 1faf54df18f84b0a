"""release.json: what one release is, for whom, and under which conditions. Strict: a device acts on it.

`Release.digest` (SHA-256 of the bytes) is its identity everywhere: consent, journal, quarantine, DDI.
Rules beyond the field table of update-engine.md section 4.1, each of which closes a way to be misread:
1. Exactly one slot component: a device has one pair of slots.
2. `chunk_bytes` is the one value that follows from `image_bytes`; the length of the index follows too.
3. Parts live under `releases/<product>/`, firmware under `firmware/`, as the delegations say.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tidewaiter_core import strictjson
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.components import (
    Component,
    FirmwareComponent,
    IndexRef,
    PackRef,
    PartRef,
    PatchRef,
    SlotComponent,
    UkiComponent,
    Verity,
    read_component,
    read_part,
)
from tidewaiter_core.payload.errors import PayloadVersionError, ReleaseRequiresError, ReleaseSchemaError
from tidewaiter_core.payload.fields import NAME, TEXT_LIMIT, Fields, shown
from tidewaiter_core.payload.limits import STANDARD, U16_MAX, U32_MAX, Limits
from tidewaiter_core.payload.policy import (
    Activation,
    Consent,
    Data,
    FirmwareRange,
    Health,
    Policy,
    Risk,
    Rollout,
    SequenceRange,
    read_data,
    read_firmware_range,
    read_health,
    read_policy,
    read_rollout,
)

__all__ = [
    "FEATURES",
    "RELEASE_LIMIT_BYTES",
    "Activation",
    "Component",
    "Consent",
    "Data",
    "FirmwareComponent",
    "FirmwareRange",
    "Health",
    "IndexRef",
    "PackRef",
    "PartRef",
    "PatchRef",
    "Policy",
    "Release",
    "Risk",
    "Rollout",
    "SequenceRange",
    "SlotComponent",
    "UkiComponent",
    "Verity",
    "build_release",
    "release_path",
]

RELEASE_LIMIT_BYTES = 65_536
MAX_DEPTH = 8
NOTE_LIMIT = 2048
SBOM_LIMIT_BYTES = 256 * 1024**2
FEATURES: frozenset[str] = frozenset()
"""Names this program understands in `requires`. Format 1 has none yet."""

VERSION = re.compile(r"[0-9A-Za-z+-][0-9A-Za-z.+-]{0,63}", re.ASCII)
"""`[0-9A-Za-z.+-]`, but no dot first: a version is also a directory of the repository."""
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8}){0,3}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One signed release, as the device understands it."""

    digest: Sha256
    """SHA-256 of the bytes that were parsed."""
    requires: tuple[str, ...]
    product: str
    version: str
    """For people and paths; never compared. `sequence` is the only order."""
    sequence: int
    security_epoch: int
    built_utc: datetime
    hw: tuple[str, ...]
    from_range: SequenceRange
    """Which running releases may install this one directly (the key `from`)."""
    components: tuple[Component, ...]
    data: Data
    firmware_compat: Mapping[str, FirmwareRange]
    health: Health
    policy: Policy
    rollout: Rollout | None
    """None: offered to every device."""
    sbom: PartRef | None
    notes: Mapping[str, str]

    @classmethod
    def parse(cls, data: bytes, *, limits: Limits = STANDARD, features: frozenset[str] = FEATURES) -> Release:
        """Read and check the bytes of a release.json.

        Raises:
            PayloadVersionError: A newer format.
            ReleaseRequiresError: It needs a feature this program lacks.
            ReleaseSchemaError: Any other rule is broken.
        """
        top = Fields(_load(data), where="")
        _check_format(top)
        requires = top.texts("requires", low=0, high=32)
        lacking = sorted(set(requires) - features)
        if (
            lacking
        ):  # before anything else: a new feature may come with keys that would only be called unknown
            raise ReleaseRequiresError(
                f"release.json: requires {shown(lacking[0])}, which this version does not have; "
                "install an intermediate release first"
            )
        product = top.text("product", pattern=NAME)
        release = cls(
            digest=Sha256(hashlib.sha256(data).hexdigest()),
            requires=requires,
            product=product,
            version=top.text("version", pattern=VERSION, high=64),
            sequence=top.integer("sequence", low=1, high=U32_MAX),
            security_epoch=top.integer("security_epoch", low=0, high=U16_MAX),
            built_utc=top.utc("built_utc"),
            hw=top.texts("hw", low=1, high=32),
            from_range=SequenceRange.read(top.object("from")),
            components=_read_components(top, product=product, limits=limits),
            data=read_data(top.object("data")),
            firmware_compat=_read_firmware_compat(top),
            health=read_health(top.object("health")),
            policy=read_policy(top.object("policy")),
            rollout=read_rollout(top.object("rollout")) if top.has("rollout") else None,
            sbom=_read_sbom(top, product=product),
            notes=_read_notes(top),
        )
        top.finish()
        return release

    @property
    def txn(self) -> str:
        """The first 8 bytes of the digest in hexadecimal: its mark in the boot environment."""
        return self.digest[:16]

    @property
    def slot(self) -> SlotComponent:
        """The image of this release."""
        return next(part for part in self.components if isinstance(part, SlotComponent))

    def uki(self, slot: SlotName) -> UkiComponent | None:
        """The kernel image that starts `slot`, for a loader that starts kernels from outside the slots."""
        images = (part for part in self.components if isinstance(part, UkiComponent))
        return next((part for part in images if part.slot is slot), None)

    @property
    def firmware(self) -> tuple[FirmwareComponent, ...]:
        return tuple(part for part in self.components if isinstance(part, FirmwareComponent))

    @property
    def path(self) -> str:
        """Where this release is a target of the repository."""
        return release_path(self.product, self.version)


def release_path(product: str, version: str) -> str:
    """The target path of a release document."""
    return f"releases/{product}/{version}/release.json"


def build_release(fields: Mapping[str, Any], *, limits: Limits = STANDARD) -> bytes:
    """The canonical bytes of a release document, proven to parse: sorted keys, no spaces, a final newline.

    Raises:
        PayloadError: `fields` break a rule of the schema.
    """
    try:
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8") + b"\n"
    except (TypeError, ValueError, RecursionError) as err:
        raise ReleaseSchemaError(
            f"release.json: the fields have no JSON form: {err}; nothing was built"
        ) from err
    Release.parse(data, limits=limits)
    return data


def _load(data: bytes) -> object:
    try:
        document = strictjson.loads(data, limit_bytes=RELEASE_LIMIT_BYTES, depth=MAX_DEPTH)
    except strictjson.StrictJsonError as err:
        raise ReleaseSchemaError(f"release.json: {err}; the release is refused") from err
    if isinstance(document, dict):
        # `notes` has its own, larger bound; everything else, also below x_ keys, is short and whole-numbered.
        _check_values([value for key, value in document.items() if key != "notes"] + list(document))
    return document


def _check_values(pending: list[Any]) -> None:
    while pending:
        value = pending.pop()
        if isinstance(value, float):
            raise ReleaseSchemaError(f"release.json: {shown(value)} is no integer; the release is refused")
        if isinstance(value, str) and len(value) > TEXT_LIMIT:
            raise ReleaseSchemaError(
                f"release.json: text of {len(value)} characters, at most {TEXT_LIMIT} are allowed; refused"
            )
        if isinstance(value, dict):
            pending.extend(value)
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _check_format(top: Fields) -> None:
    number = top.integer("format", low=1, high=U32_MAX)
    if number != 1:
        raise PayloadVersionError(
            f"release.json: format {number} is newer than 1; install an intermediate release first"
        )


def _read_components(top: Fields, *, product: str, limits: Limits) -> tuple[Component, ...]:
    entries = top.objects("components", low=1, high=8)
    components = tuple(read_component(entry, product=product, limits=limits) for entry in entries)
    slots = sum(isinstance(part, SlotComponent) for part in components)
    if slots != 1:
        top.refuse("components", f"expected exactly one of kind slot, found {slots}")
    for kind, names in (
        ("uki for slot", [part.slot for part in components if isinstance(part, UkiComponent)]),
        ("firmware for board", [part.board for part in components if isinstance(part, FirmwareComponent)]),
    ):
        if len(set(names)) != len(names):
            top.refuse("components", f"two components give {kind} of the same name")
    return components


def _read_firmware_compat(top: Fields) -> dict[str, FirmwareRange]:
    if not top.has("firmware_compat"):
        return {}
    inner, boards = top.keys("firmware_compat", high=8, pattern=NAME)
    return {board: read_firmware_range(inner.object(board)) for board in boards}


def _read_sbom(top: Fields, *, product: str) -> PartRef | None:
    if not top.has("sbom"):
        return None
    return read_part(top.object("sbom"), PartRef, prefix=f"releases/{product}/", low=1, high=SBOM_LIMIT_BYTES)


def _read_notes(top: Fields) -> dict[str, str]:
    if not top.has("notes"):
        return {}
    inner, languages = top.keys("notes", high=16, pattern=_LANGUAGE)
    return {tag: inner.text(tag, high=NOTE_LIMIT, lines=True) for tag in languages}
