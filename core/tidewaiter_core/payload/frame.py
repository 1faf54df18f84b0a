"""Decodes one zstd frame with a library that says too little: every check that the library leaves out, once for everybody.

The library raises nothing for truncated input, for bytes behind the frame, or for a wrong prefix (which gives garbage of the
right length). So the frame header is read here, lengths and ends are checked here, and the hash of the result stays the
caller's last word. zstd itself comes through the port `Codec`: core has no third party.

Source: update-engine.md section 3; RFC 8878 section 3.1.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from tidewaiter_core.payload.errors import PayloadFrameError

PIECE_BYTES = 128 * 1024
"""How much is decoded at a time; the library would otherwise hold the output twice."""
_MAGIC = b"\x28\xb5\x2f\xfd"
_CHECKSUM_FLAG = 0x04
_DICTIONARY_FLAG = 0x03
_SINGLE_SEGMENT = 0x20


class Decompressor(Protocol):
    """The part of `ZstdDecompressor` that is used."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes | memoryview, max_length: int = -1) -> bytes: ...


class Codec(Protocol):
    """A zstd library."""

    @property
    def error(self) -> type[Exception]:
        """What it raises for bytes that are no frame."""

    def decompressor(self, *, window_log_max: int, prefix: bytes | memoryview | None = None) -> Decompressor:
        """A decoder for one frame.

        Args:
            prefix: Raw content in front of the frame, which was given to the encoder too; the decoder keeps a copy.
        """


def decode_frame(
    decoder: Decompressor,
    pieces: Iterable[bytes | memoryview],
    *,
    raw_bytes: int,
    error: type[Exception],
    what: str,
) -> Iterator[bytes]:
    """The content of one frame in pieces of at most 128 KiB; no more than one byte too much is ever produced.

    Args:
        pieces: The stored bytes, in order.
        error: `Codec.error`.

    Raises:
        PayloadFrameError: Anything but one complete frame of exactly `raw_bytes`.
    """
    left = raw_bytes
    for data in pieces:
        if decoder.eof:
            raise PayloadFrameError(f"{what}: {len(data)} bytes behind the frame; not used")
        while True:
            try:
                piece = decoder.decompress(data, max_length=min(PIECE_BYTES, left + 1))
            except error as err:
                raise PayloadFrameError(f"{what}: not a zstd frame: {err}; not used") from err
            if len(piece) > left:
                raise PayloadFrameError(
                    f"{what}: decodes to more than the {raw_bytes} bytes promised; not used"
                )
            left -= len(piece)
            if piece:
                yield piece
            if decoder.eof or decoder.needs_input:
                break
            data = b""
    if left or not decoder.eof or decoder.unused_data:
        raise PayloadFrameError(
            f"{what}: decoded {raw_bytes - left} of {raw_bytes} bytes, the frame is "
            f"{'complete' if decoder.eof else 'cut off'}, {len(decoder.unused_data)} bytes behind it; not used"
        )


def check_frame_header(data: bytes | memoryview, *, raw_bytes: int, what: str) -> None:
    """Refuse a frame whose header does not say exactly `raw_bytes`, or that has a checksum or names a dictionary.

    Raises:
        PayloadFrameError: It does not.
    """
    head = bytes(data[:18])
    if head[:4] != _MAGIC or len(head) < 6:
        raise PayloadFrameError(f"{what}: starts with {head[:4].hex(' ')}, which is no zstd frame; not used")
    descriptor = head[4]
    single = bool(descriptor & _SINGLE_SEGMENT)
    if descriptor & (_CHECKSUM_FLAG | _DICTIONARY_FLAG | 0x08):
        raise PayloadFrameError(
            f"{what}: frame descriptor {descriptor:#04x} has flags this format excludes; not used"
        )
    size = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 if single else 6
    field = head[start : start + size]
    content = int.from_bytes(field, "little") + (256 if size == 2 else 0)
    if not size or len(field) != size or content != raw_bytes:
        raise PayloadFrameError(
            f"{what}: the frame says {content if size else 'no'} bytes, expected {raw_bytes}; not used"
        )


def in_pieces(data: bytes | memoryview) -> Iterator[memoryview]:
    """A buffer in pieces of at most 128 KiB: the library copies what it does not consume at once."""
    view = memoryview(data)
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]
