"""The first eight bytes that every payload file shares: four letters, `0D 0A 1A`, a version byte."""

from __future__ import annotations

from tidewaiter_core.payload.errors import PayloadLengthError, PayloadMagicError, PayloadVersionError


def check_magic(data: bytes, magic: bytes, *, version: int, header_bytes: int, what: str) -> None:
    """Refuse a header that is too short, of another format, or of another version, in this order.

    Raises:
        PayloadLengthError, PayloadMagicError, PayloadVersionError: As their names say.
    """
    if len(data) < header_bytes:
        raise PayloadLengthError(f"{what}: {len(data)} bytes, its header alone has {header_bytes}; refused")
    if data[: len(magic)] != magic:
        raise PayloadMagicError(
            f"{what}: starts with {data[:8].hex(' ')}, expected {magic.hex(' ')}; refused"
        )
    if data[len(magic)] != version:
        raise PayloadVersionError(
            f"{what}: version {data[len(magic)]} of the format, this program knows {version}; refused"
        )
