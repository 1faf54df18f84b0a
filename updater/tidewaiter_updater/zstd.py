"""The only user of a zstd library: one frame in, exactly the promised number of bytes out, or an error.

The library raises nothing for truncated input, for trailing bytes, or when a limit on the output stops it. So every decode
checks length, end of frame and unused input here; the hash of the result is the caller's last word.
Source: update-engine.md section 3.
"""

from __future__ import annotations

import sys
from functools import lru_cache

from tidewaiter_core.payload.errors import PayloadFrameError
from tidewaiter_core.payload.frame import Decompressor

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdDict, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdDict, ZstdError

_MIN_WINDOW_LOG = 10
"""Below this the library refuses the option itself."""


def decode_chunk(stored: bytes | memoryview, *, raw_bytes: int, chunk_bytes: int, what: str) -> bytes:
    """The content of a pack unit that is one zstd frame.

    Args:
        raw_bytes: Exact length of the chunk; a frame that holds more is stopped there.
        chunk_bytes: Chunk size of the index; bounds the memory the frame may ask for.

    Raises:
        PayloadFrameError: Anything but one complete frame of `raw_bytes`.
    """
    decoder = ZstdDecompressor(options=_chunk_options(chunk_bytes))
    try:
        raw = decoder.decompress(stored, max_length=raw_bytes)
        if not decoder.eof and not decoder.needs_input:
            # The output limit was met before the decoder looked at the end mark; one byte more is a bomb.
            raw += decoder.decompress(b"", max_length=1)
    except ZstdError as err:
        raise PayloadFrameError(
            f"{what}: {len(stored)} stored bytes are not a zstd frame: {err}; not written"
        ) from err
    if len(raw) != raw_bytes or not decoder.eof or decoder.unused_data:
        raise PayloadFrameError(
            f"{what}: expected one zstd frame of {raw_bytes} bytes, found {len(raw)} bytes, "
            f"{'complete' if decoder.eof else 'incomplete or longer'}, {len(decoder.unused_data)} bytes behind it; not written"
        )
    return raw


@lru_cache(maxsize=8)
def _chunk_options(chunk_bytes: int) -> dict[int, int]:
    window_log = max(_MIN_WINDOW_LOG, (chunk_bytes - 1).bit_length() + 1)
    return {DecompressionParameter.window_log_max: window_log}


class ZstdCodec:
    """Port `Codec` of core.payload.frame, for the frames of a patch."""

    error: type[Exception] = ZstdError

    def decompressor(self, *, window_log_max: int, prefix: bytes | memoryview | None = None) -> Decompressor:
        options: dict[int, int] = {
            DecompressionParameter.window_log_max: max(_MIN_WINDOW_LOG, window_log_max)
        }
        dictionary = ZstdDict(prefix, is_raw=True).as_prefix if prefix is not None else None
        decoder: Decompressor = ZstdDecompressor(zstd_dict=dictionary, options=options)
        return decoder
