"""The only importer of zstd in the release tool: one frame per chunk, exactly as the device expects it.

A frame carries its content size, no checksum and no dictionary id. Decoding checks what the library does not: truncated
input raises nothing there, and neither do trailing bytes (update-engine.md section 3).
"""

from __future__ import annotations

import sys

from tidewaiter_core.payload.errors import PayloadFrameError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL_MIN, LEVEL_MAX = 1, 22


def library_version() -> str:
    """The zstd version; equal frames need equal versions."""
    return str(zstd.zstd_version)


def compress(data: bytes, *, level: int) -> bytes:
    """One frame."""
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.content_size_flag: 1,
        zstd.CompressionParameter.checksum_flag: 0,
        zstd.CompressionParameter.dict_id_flag: 0,
    }
    return bytes(zstd.compress(data, options=options))


def decompress(frame: bytes, *, length: int, what: str) -> bytes:
    """The content of one frame that must decode to exactly `length` bytes.

    Raises:
        PayloadFrameError: Not one frame, or of another length. No more than `length` + 1 bytes are ever produced.
    """
    decoder = zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: max(10, (length - 1).bit_length() + 1)}
    )
    try:
        data = bytes(decoder.decompress(frame, max_length=length + 1))
    except zstd.ZstdError as err:
        raise PayloadFrameError(f"{what}: not a zstd frame this tool can read: {err}") from err
    if len(data) != length or not decoder.eof or decoder.unused_data:
        raise PayloadFrameError(
            f"{what}: {len(frame)} stored bytes gave {len(data)} of {length} bytes, "
            f"end {'reached' if decoder.eof else 'not reached'}, {len(decoder.unused_data)} bytes left over"
        )
    return data
