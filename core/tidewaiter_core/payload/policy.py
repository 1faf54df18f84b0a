"""The conditions part of release.json: who may install it, when, and what must be well afterwards."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from tidewaiter_core.payload.fields import NAME, Fields
from tidewaiter_core.payload.limits import U16_MAX, U32_MAX

MAX_FETCH_LIMIT_BYTES = 2**40
_SALT = re.compile(r"[0-9a-f]{32}", re.ASCII)
_FIRMWARE_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,5})(?:\+(\d{1,10}))?", re.ASCII)


class Consent(StrEnum):
    """Whose agreement an installation needs."""

    NONE = "none"
    SITE = "site"
    LOCAL = "local"


class Risk(StrEnum):
    """Why this release exists; `security` is also the server's security_fix flag."""

    ROUTINE = "routine"
    SECURITY = "security"
    CRITICAL = "critical"


class Activation(StrEnum):
    """Whether the reboot waits for the maintenance window."""

    ANY = "any"
    WINDOW = "window"


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRange:
    """Running releases, by sequence, both ends included."""

    min_sequence: int
    max_sequence: int

    def __contains__(self, sequence: int) -> bool:
        return self.min_sequence <= sequence <= self.max_sequence

    @classmethod
    def read(cls, source: Fields) -> SequenceRange:
        low = source.integer("min_sequence", low=0, high=U32_MAX)
        high = source.integer("max_sequence", low=low, high=U32_MAX)
        source.finish()
        return cls(min_sequence=low, max_sequence=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """The schema of the product's data sets that this release writes and can read."""

    writes: int
    reads_min: int
    reads_max: int
    reversible: bool
    """False: after commit the older release can no longer run on this device's data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareRange:
    """Versions of one injector board that this release works with, both ends included."""

    min: str
    max: str

    def __contains__(self, version: str) -> bool:
        """False too for text that is no version: an unknown board version is not a compatible one."""
        found = firmware_order(version)
        low, high = firmware_order(self.min), firmware_order(self.max)
        return found is not None and low is not None and high is not None and low <= found <= high


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What must be green in the trial boot."""

    required: tuple[str, ...]
    deadline_s: int
    hold_s: int
    """How long the checks must stay green before they count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How the release may be installed."""

    consent: Consent
    risk: Risk
    tries: int
    activation: Activation
    max_fetch_bytes: int
    """Most bytes a device may fetch for it; a larger plan needs a new decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """A share of the fleet, chosen by each device for itself, so that it can be audited there."""

    salt: str
    percent_x100: int
    not_before_utc: datetime

    def includes(self, serial: str) -> bool:
        """Whether the device with this serial number is in the share (the time is the caller's question)."""
        head = hashlib.sha256(f"{self.salt}:{serial}".encode()).digest()[:8]
        return int.from_bytes(head, "big") % 10_000 < self.percent_x100


def firmware_order(version: str) -> tuple[int, int, int, int] | None:
    """An MCUboot version `major.minor.revision+build` in comparable form; None if it is none."""
    match = _FIRMWARE_VERSION.fullmatch(version)
    if match is None:
        return None
    major, minor, revision, build = (int(part or 0) for part in match.groups())
    if major > 255 or minor > 255 or revision > U16_MAX or build > U32_MAX:
        return None
    return major, minor, revision, build


def read_data(source: Fields) -> Data:
    low = source.integer("reads_min", low=0, high=U16_MAX)
    high = source.integer("reads_max", low=low, high=U16_MAX)
    # A release that cannot read what it writes would lose its data at its second boot.
    writes = source.integer("writes", low=low, high=high)
    data = Data(writes=writes, reads_min=low, reads_max=high, reversible=source.boolean("reversible"))
    source.finish()
    return data


def read_firmware_range(source: Fields) -> FirmwareRange:
    values = {}
    for key in ("min", "max"):
        values[key] = source.text(key, pattern=_FIRMWARE_VERSION, high=32)
        if firmware_order(values[key]) is None:
            source.refuse(key, "a version part is out of range (major and minor 0..255, revision 0..65535)")
    source.finish()
    result = FirmwareRange(min=values["min"], max=values["max"])
    if result.min not in result:
        source.refuse("max", "below min")
    return result


def read_health(source: Fields) -> Health:
    health = Health(
        required=source.texts("required", low=0, high=16, pattern=NAME),
        deadline_s=source.integer("deadline_s", low=60, high=3600),
        hold_s=source.integer("hold_s", low=0, high=600),
    )
    source.finish()
    return health


def read_policy(source: Fields) -> Policy:
    policy = Policy(
        consent=source.choice("consent", Consent),
        risk=source.choice("risk", Risk),
        tries=source.integer("tries", low=1, high=9),
        activation=source.choice("activation", Activation),
        max_fetch_bytes=source.integer("max_fetch_bytes", low=1, high=MAX_FETCH_LIMIT_BYTES),
    )
    source.finish()
    return policy


def read_rollout(source: Fields) -> Rollout:
    rollout = Rollout(
        salt=source.text("salt", pattern=_SALT),
        percent_x100=source.integer("percent_x100", low=0, high=10_000),
        not_before_utc=source.utc("not_before_utc"),
    )
    source.finish()
    return rollout
