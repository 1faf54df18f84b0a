"""The new hash table as a difference to the old one: how many chunks stay, then the hashes of those that change, repeated.

So a patch needs no index. Unsigned LEB128 `same`, unsigned LEB128 `changed`, then `changed` x 32 bytes, until the table is full.
A run of two zeros is refused, and so is a `same` that the old table does not cover.
Source: update-engine.md section 4.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from tidewaiter_core.payload.errors import PayloadMapError
from tidewaiter_core.payload.patchfile import HASH_BYTES
from tidewaiter_core.payload.patchmap import encode_number

_MAX_SHIFT = 28
_WHAT = "patch: hashes"


def encode_hashes(old: Sequence[bytes], new: Sequence[bytes]) -> bytes:
    """The hashes section for two tables of 32-byte hashes."""
    out = bytearray()
    at = 0
    while at < len(new):
        same = at
        while same < len(new) and same < len(old) and old[same] == new[same]:
            same += 1
        end = same
        while end < len(new) and (end >= len(old) or old[end] != new[end]):
            end += 1
        out += encode_number(same - at) + encode_number(end - same) + b"".join(new[same:end])
        at = end
    return bytes(out)


def decode_hashes(
    pieces: Iterable[bytes], *, count: int, old_count: int, old_hash: Callable[[int], bytes]
) -> Iterator[bytes]:
    """The `count` hashes of the new table.

    Args:
        pieces: The bytes of the section.
        old_hash: The hash of a chunk of the old image.

    Raises:
        PayloadMapError: The section is cut off, too long, or refers to a chunk that the old image does not have.
    """
    reader = _Reader(pieces)
    chunk = 0
    while chunk < count:
        same, changed = reader.number(), reader.number()
        if not 0 < same + changed <= count - chunk or (same and chunk + same > old_count):
            raise PayloadMapError(
                f"{_WHAT}: {same} equal and {changed} changed chunks from {chunk} on, of {count} new and {old_count} old; refused"
            )
        for number in range(chunk, chunk + same):
            yield old_hash(number)
        for _ in range(changed):
            yield reader.take(HASH_BYTES)
        chunk += same + changed
    reader.finish()


class _Reader:
    """Numbers and hashes out of a stream of pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._at = 0

    def number(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if not byte and shift:
                    raise PayloadMapError(f"{_WHAT}: a number is padded; refused")
                return value
            shift += 7
            if shift > _MAX_SHIFT:
                raise PayloadMapError(f"{_WHAT}: a number is longer than five bytes; refused")

    def take(self, length: int) -> bytes:
        out = self._piece[self._at : self._at + length]
        self._at += len(out)
        while len(out) < length:
            piece = next(self._pieces, None)
            if piece is None:
                raise PayloadMapError(f"{_WHAT}: the section ends too early; refused")
            missing = length - len(out)
            self._piece, self._at = piece, min(missing, len(piece))
            out += piece[:missing]
        return out

    def finish(self) -> None:
        if self._at < len(self._piece) or next(self._pieces, None):
            raise PayloadMapError(f"{_WHAT}: the section is longer than the table needs; refused")
