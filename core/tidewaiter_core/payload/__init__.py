"""The signed objects an update consists of: release document, chunk index, pack, patch. Pure: bytes in, values out.

Shared by the device (which believes nothing it has not checked) and the release tool (which builds it).
Source: update-engine.md sections 3 and 4.
"""

from tidewaiter_core.payload.errors import (
    PayloadChunkError,
    PayloadError,
    PayloadFrameError,
    PayloadLengthError,
    PayloadLimitError,
    PayloadMagicError,
    PayloadMapError,
    PayloadVersionError,
    ReleaseRequiresError,
    ReleaseSchemaError,
)
from tidewaiter_core.payload.index import IndexHeader, IndexReader, Method, Unit, build_index, require_match
from tidewaiter_core.payload.limits import STANDARD, Limits
from tidewaiter_core.payload.pack import PackHeader
from tidewaiter_core.payload.patch import PatchHeader, PatchReader
from tidewaiter_core.payload.release import Release, SlotComponent, build_release, release_path

__all__ = [
    "STANDARD",
    "IndexHeader",
    "IndexReader",
    "Limits",
    "Method",
    "PackHeader",
    "PatchHeader",
    "PatchReader",
    "PayloadChunkError",
    "PayloadError",
    "PayloadFrameError",
    "PayloadLengthError",
    "PayloadLimitError",
    "PayloadMagicError",
    "PayloadMapError",
    "PayloadVersionError",
    "Release",
    "ReleaseRequiresError",
    "ReleaseSchemaError",
    "SlotComponent",
    "Unit",
    "build_index",
    "build_release",
    "release_path",
    "require_match",
]
