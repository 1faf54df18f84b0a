"""The only importer of zstd in the release tool: one frame per chunk, exactly as the device expects it.

A frame carries its content size, no checksum and no dictionary id. Decoding checks what the library does not: truncated
input raises nothing there, and neither do trailing bytes (update-engine.md section 3).
"""

from __future__ import annotations

import sys

from tidewaiter_core.payload.errors import PayloadFrameError
from tidewaiter_core.payload.frame import Decompressor

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LEVEL_MIN, LEVEL_MAX = 1, 22
PUBLISH_LEVEL = 19
"""Of patches: 12 is for drafts."""
_WINDOW_LOG_MIN = 10


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


def compress_behind(data: bytes, prefix: bytes, *, level: int, window_log: int = 0) -> bytes:
    """One frame that a decoder reads with the same raw-content prefix in front of it.

    Args:
        prefix: Fewer than 8 bytes are none at all.
        window_log: 0: as the level says. Below the length of `data` the prefix would be lost without a word.
    """
    options: dict[int, int] = {
        zstd.CompressionParameter.compression_level: level,
        zstd.CompressionParameter.content_size_flag: 1,
        zstd.CompressionParameter.checksum_flag: 0,
        zstd.CompressionParameter.dict_id_flag: 0,
        # Off by measurement: with it, patches of real images were 0.8 % larger.
        zstd.CompressionParameter.enable_long_distance_matching: 0,
    }
    if window_log:
        options[zstd.CompressionParameter.window_log] = window_log
    dictionary = zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= 8 else None
    compressor = zstd.ZstdCompressor(options=options, zstd_dict=dictionary)
    compressor.set_pledged_input_size(len(data))
    return bytes(compressor.compress(data, mode=zstd.ZstdCompressor.FLUSH_FRAME))


class ZstdCodec:
    """The port of core.payload.frame; a device has its own over the same library."""

    error: type[Exception] = zstd.ZstdError

    def decompressor(self, *, window_log_max: int, prefix: bytes | memoryview | None = None) -> Decompressor:
        options: dict[int, int] = {
            zstd.DecompressionParameter.window_log_max: max(_WINDOW_LOG_MIN, window_log_max)
        }
        dictionary = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix is not None else None
        decoder: Decompressor = zstd.ZstdDecompressor(zstd_dict=dictionary, options=options)
        return decoder
