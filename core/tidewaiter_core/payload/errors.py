"""Errors of the payload formats: each one is a defect of the release, because every byte here is signed.

`PayloadError` is the family; a parser of this package raises nothing else, whatever bytes it is given.
Source: update-engine.md sections 3 and 16.
"""

from __future__ import annotations

from tidewaiter_core.errors import TidewaiterError


class PayloadError(TidewaiterError):
    """A signed object does not follow its format. Trying again cannot help; the release tool made it so."""

    code = "payload.limit"


class PayloadMagicError(PayloadError):
    """The first bytes are not those of the format: another file, or one damaged by a text-mode transfer."""

    code = "payload.magic"


class PayloadVersionError(PayloadError):
    """The format is known, its version is newer than this program."""

    code = "payload.version"


class PayloadLengthError(PayloadError):
    """A file is longer or shorter than its own header (or the signed length) says."""

    code = "payload.length"


class PayloadLimitError(PayloadError):
    """A number is outside the range that the format allows."""

    code = "payload.limit"


class PayloadMapError(PayloadError):
    """A table refers to something it may not: another file's bytes, a later chunk, an unsorted order."""

    code = "payload.map"


class PayloadFrameError(PayloadError):
    """Stored bytes do not decode to exactly one frame of the promised length."""

    code = "payload.frame"


class PayloadChunkError(PayloadError):
    """A hash does not match: of a chunk, of a table, or of index and release that belong together."""

    code = "payload.chunk"


class ReleaseSchemaError(PayloadError):
    """release.json breaks a rule of its schema."""

    code = "release.schema"


class ReleaseRequiresError(PayloadError):
    """release.json needs a feature that this program does not have."""

    code = "release.requires"
