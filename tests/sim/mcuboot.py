"""MCUboot images as imgtool makes them, for tests that need firmware."""

from __future__ import annotations

import hashlib
import struct


def mcuboot_image(payload: bytes, *, version: tuple[int, int, int, int] = (1, 2, 3, 0)) -> bytes:
    """Header, payload and a TLV area with the SHA-256 of both."""
    header = struct.pack("<IIHHIIBBHII", 0x96F3B83D, 0, 32, 0, len(payload), 0, *version, 0)
    digest = hashlib.sha256(header + payload).digest()
    area = struct.pack("<HH", 0x10, 32) + digest
    return header + payload + struct.pack("<HH", 0x6907, 4 + len(area)) + area
