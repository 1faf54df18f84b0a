"""The new hash table as a difference to the old one: runs of chunks that the old image has, then the hashes of others, repeated.

So a patch needs no index. Unsigned LEB128 `kept`; only if it is not zero, zigzag, the change of their shift (number in the old
image minus number in the new one; 0 at first); unsigned LEB128 `changed`; `changed` x 32 bytes; until the table is full.
Two zeros are refused, and so are kept chunks that the old image does not have. Where every file moved, a fifth of the chunks are
still old ones at another place.
Source: update-engine.md section 4.4, docs/adr/0013.
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
    places: dict[bytes, int] = {}
    for place, digest in enumerate(old):
        places.setdefault(digest, place)

    def has(place: int, digest: bytes) -> bool:
        return 0 <= place < len(old) and old[place] == digest

    out = bytearray()
    at = shift = 0
    while at < len(new):
        source = next((place for place in (at + shift, at) if has(place, new[at])), places.get(new[at]))
        kept = 0
        if source is not None:
            while at + kept < len(new) and has(source + kept, new[at + kept]):
                kept += 1
        out += encode_number(kept)
        if source is not None:
            step, shift = source - at - shift, source - at
            out += encode_number(step << 1 if step >= 0 else (-step << 1) - 1)
        at += kept
        end = at
        while end < len(new) and new[end] not in places:
            end += 1
        out += encode_number(end - at) + b"".join(new[at:end])
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
    chunk = shift = 0
    while chunk < count:
        kept = reader.number()
        if kept:
            step = reader.number()
            shift += step >> 1 if not step & 1 else -(step + 1 >> 1)
        source = chunk + shift
        if kept > count - chunk or (kept and not 0 <= source <= old_count - kept):
            raise PayloadMapError(
                f"{_WHAT}: old chunks {source}+{kept} at chunk {chunk}, of {count} new and {old_count} old; refused"
            )
        for number in range(source, source + kept):
            yield old_hash(number)
        chunk += kept
        changed = reader.number()
        if changed > count - chunk or not kept + changed:
            raise PayloadMapError(
                f"{_WHAT}: {changed} changed chunks after {kept} kept ones at chunk {chunk} of {count}; refused"
            )
        for _ in range(changed):
            yield reader.take(HASH_BYTES)
        chunk += changed
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
