"""An MCUboot image as the build tool sees it: the version and the hash that the boot loader itself will check.

release.json names both. They come from the file, never from a person: a version that differs from the one in the header is a
board that never reports what its release expects.

Source: MCUboot, boot/bootutil/include/bootutil/image.h (image header version 1, TLV area).
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

from tidewaiter_core.model import Sha256

from tidewaiter_release.errors import InputError

_HEADER = struct.Struct("<IIHHII BBHI I")
_MAGIC = 0x96F3B83D
_TLV_INFO = struct.Struct("<HH")
_TLV_MAGIC = 0x6907
_TLV_SHA256 = 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class McubootImage:
    """What an image says of itself."""

    version: str
    """`major.minor.revision`, with `+build` if that is not 0."""
    hash: Sha256
    """SHA-256 over header, payload and protected TLVs; differs from that of the file."""


def read_mcuboot(data: bytes, *, what: str) -> McubootImage:
    """Read an image and prove its hash.

    Raises:
        InputError: It is none, is truncated, has no SHA-256, or the hash is wrong.
    """
    if len(data) < _HEADER.size:
        raise InputError(f"{what}: {len(data)} bytes are no MCUboot image")
    magic, _, header_bytes, protected_bytes, image_bytes, _, major, minor, revision, build, _ = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC:
        raise InputError(f"{what}: begins with {magic:08x}, an MCUboot image with {_MAGIC:08x}")
    hashed = header_bytes + image_bytes + protected_bytes
    if header_bytes < _HEADER.size or hashed > len(data):
        raise InputError(f"{what}: says it has {hashed} bytes, the file has {len(data)}")
    expected = _find_hash(data, hashed, what=what)
    found = hashlib.sha256(data[:hashed]).digest()
    if found != expected:
        raise InputError(
            f"{what}: sha256 {found.hex()}, its own TLV says {expected.hex()}; the boot loader would refuse it"
        )
    version = f"{major}.{minor}.{revision}" + (f"+{build}" if build else "")
    return McubootImage(version=version, hash=Sha256(found.hex()))


def _find_hash(data: bytes, offset: int, *, what: str) -> bytes:
    """The SHA-256 of the unprotected TLV area."""
    area = data[offset:]
    magic, area_bytes = _TLV_INFO.unpack_from(area) if len(area) >= _TLV_INFO.size else (0, 0)
    if magic != _TLV_MAGIC or not _TLV_INFO.size <= area_bytes <= len(area):
        raise InputError(f"{what}: no TLV area behind the image; was it signed with imgtool?")
    at = _TLV_INFO.size
    while at + _TLV_INFO.size <= area_bytes:
        kind, length = _TLV_INFO.unpack_from(area, at)
        at += _TLV_INFO.size
        if kind == _TLV_SHA256 and length == 32 and at + length <= area_bytes:
            return area[at : at + length]
        at += length
    raise InputError(f"{what}: no SHA-256 in its TLV area")
