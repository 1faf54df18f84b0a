"""A signed permit to go back to an older release: for one pair of releases, some devices, and a time. Pure.

It lifts two rules of an offer, that sequence rises and that the running release is in `from`; every other one stays, above all
the security epoch. It never stands for a consent: a person at the device has to agree.

Source: update-engine.md section 5.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tidewaiter_core import strictjson
from tidewaiter_core.clock import format_utc, parse_utc
from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.release import RELEASE_LIMIT_BYTES

from tidewaiter_updater.model import txn_of

EVERY_DEVICE: Final = "*"
_SERIAL_CHARS: Final = 64
_REASON_CHARS: Final = 256
_KEYS: Final = frozenset({"format", "from_digest", "to_digest", "serials", "not_after_utc", "reason"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Permit:
    """What the role `targets` allows."""

    from_digest: Sha256
    to_digest: Sha256
    serials: frozenset[str] | None
    """None: every device."""
    not_after_utc: datetime
    reason: str

    def objection(self, *, running: Sha256 | None, digest: Sha256, serial: str, now: datetime) -> str | None:
        """Why this permit does not cover this device, this step, now; None if it does."""
        if digest != self.to_digest:
            return f"its permit is for release {self.to_digest[:16]}"
        if running != self.from_digest:
            found = f"{running[:16]} runs" if running else "which release runs is not recorded"
            return f"its permit is for devices that run {self.from_digest[:16]}, {found}"
        if self.serials is not None and serial not in self.serials:
            return f"its permit is for {len(self.serials)} other devices, this is {serial}"
        if now > self.not_after_utc:
            return f"its permit ended {format_utc(self.not_after_utc)}, it is {format_utc(now)}"
        return None


def permit_path(product: str, digest: Sha256) -> str:
    """Where the repository has the permit to install `digest` over something newer."""
    return f"permits/{product}/{txn_of(digest)}.json"


def parse_permit(data: bytes) -> Permit:
    """Read a permit; ValueError if it is not exactly one. As in a release, only keys that start with x_ may be added."""
    top = strictjson.loads(data, limit_bytes=RELEASE_LIMIT_BYTES, depth=4)
    if not isinstance(top, dict):
        raise ValueError("expected an object")  # noqa: TRY004 - one error for all bad input
    unknown = sorted(key for key in top if key not in _KEYS and not key.startswith("x_"))
    if unknown or top.get("format") != 1:
        raise ValueError(
            f"expected format 1 and no key {unknown[0][:32]!r}" if unknown else "expected format 1"
        )
    return Permit(
        from_digest=Sha256.parse(_text(top, "from_digest")),
        to_digest=Sha256.parse(_text(top, "to_digest")),
        serials=_serials(top.get("serials")),
        not_after_utc=parse_utc(_text(top, "not_after_utc")),
        reason=_text(top, "reason"),
    )


def _serials(value: object) -> frozenset[str] | None:
    if value == EVERY_DEVICE:
        return None
    if not isinstance(value, list) or not value:
        raise ValueError(f"serials: expected a list of serial numbers or {EVERY_DEVICE!r}")
    if not all(isinstance(one, str) and 0 < len(one) <= _SERIAL_CHARS for one in value):
        raise ValueError(f"serials: expected texts of 1 to {_SERIAL_CHARS} characters")
    return frozenset(value)


def _text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= _REASON_CHARS:
        raise ValueError(f"{name}: expected 1 to {_REASON_CHARS} characters")
    return value
