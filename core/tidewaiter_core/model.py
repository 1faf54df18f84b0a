"""Words that every component shares: slot names and digests. Pure."""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Final

_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class SlotName(StrEnum):
    """The two places a system image can live."""

    A = "A"
    B = "B"

    @property
    def other(self) -> SlotName:
        """The slot that is not this one."""
        return SlotName.B if self is SlotName.A else SlotName.A


class Sha256(str):
    """A SHA-256 digest as 64 lower-case hexadecimal digits; equal to the plain string."""

    __slots__ = ()

    def __new__(cls, text: str) -> Sha256:
        """Accept only the canonical spelling, so that two equal digests are equal strings.

        Raises:
            ValueError: `text` is not 64 lower-case hexadecimal digits.
        """
        if not _SHA256.fullmatch(text):
            shown = text[:80].encode("unicode_escape").decode("ascii")
            raise ValueError(f"SHA-256 digest: expected 64 lower-case hexadecimal digits, found '{shown}'")
        return super().__new__(cls, text)

    @classmethod
    def parse(cls, text: str) -> Sha256:
        """The digest that `text` spells; ValueError if it spells none."""
        return cls(text)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Sha256:
        """The digest of `data`."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def from_raw(cls, raw: bytes) -> Sha256:
        """The digest whose 32 bytes are `raw`."""
        return cls(raw.hex())

    @property
    def raw(self) -> bytes:
        """The 32 bytes of the digest."""
        return bytes.fromhex(self)
