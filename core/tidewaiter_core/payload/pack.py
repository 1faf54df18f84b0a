"""The header of a pack `.twpk`: the stored chunks of one image, in chunk order, behind 64 bytes.

The pack table of the index says where each unit lies; the header only ties the file to its image.
Source: update-engine.md section 4.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.components import PACK_HEADER_BYTES
from tidewaiter_core.payload.errors import PayloadLengthError, PayloadLimitError
from tidewaiter_core.payload.limits import MAGIC_TAIL, STANDARD, Limits
from tidewaiter_core.payload.magic import check_magic

__all__ = ["PACK_HEADER_BYTES", "PackHeader"]

_MAGIC = b"TWPK" + MAGIC_TAIL
_VERSION = 1
_HEADER = struct.Struct("<8sIIQ32s8s")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackHeader:
    """What a pack says about itself."""

    pack_bytes: int
    """Length of the whole file, header included."""
    image_root: Sha256

    @classmethod
    def parse(cls, data: bytes, *, length: int | None = None, limits: Limits = STANDARD) -> PackHeader:
        """Check the first 64 bytes of a pack, of a file of `length` bytes if the caller knows it.

        Raises:
            PayloadError: The member of the family says which rule is broken.
        """
        check_magic(data, _MAGIC, version=_VERSION, header_bytes=PACK_HEADER_BYTES, what="pack")
        _, header_bytes, flags, pack_bytes, image_root, reserved = _HEADER.unpack(data[:PACK_HEADER_BYTES])
        if header_bytes != PACK_HEADER_BYTES or flags or reserved != bytes(8):
            raise PayloadLimitError(
                f"pack: header_bytes {header_bytes}, flags {flags:#x}, reserved {reserved.hex()}: "
                "expected 64, 0, 0; refused"
            )
        if not PACK_HEADER_BYTES <= pack_bytes <= PACK_HEADER_BYTES + limits.max_image_bytes:
            raise PayloadLimitError(f"pack: pack_bytes {pack_bytes} is no size a pack can have; refused")
        if length is not None and length != pack_bytes:
            raise PayloadLengthError(f"pack: {length} bytes, its header says {pack_bytes}; refused")
        return cls(pack_bytes=pack_bytes, image_root=Sha256.from_raw(image_root))

    def to_bytes(self) -> bytes:
        """The 64 bytes of the header."""
        return _HEADER.pack(
            _MAGIC + bytes([_VERSION]), PACK_HEADER_BYTES, 0, self.pack_bytes, self.image_root.raw, bytes(8)
        )
