"""The map of a patch: where each block of the new image comes from, as a stream of runs, both ways.

Items are unsigned LEB128 numbers `(count << 2) | kind`; OLD is followed by the zigzag distance of its source from the end of
the OLD run before it, NEW by the distance back to its source. Numbers have one spelling only: no padding bytes, at most five.
Invariants of `decode_runs`, whatever the bytes are: no run leaves the old image, the new image or the literal stream; a NEW run
reads only blocks before the one it makes; the runs fill the new image and use up the literals, exactly.

Source: update-engine.md section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import NamedTuple

from tidewaiter_core.payload.errors import PayloadMapError

_MAX_SHIFT = 28
"""Five bytes: 35 bits. The largest image has 2**26 blocks, so its longest item has 29."""


class Kind(IntEnum):
    """Where the blocks of a run come from."""

    ZERO = 0
    OLD = 1
    NEW = 2
    """Earlier blocks of the new image, block by block: source and target may overlap."""
    LITERAL = 3


class Run(NamedTuple):
    """Consecutive blocks of the new image."""

    kind: int
    target: int
    """First block in the new image."""
    blocks: int
    source: int
    """First block in the old image, in the new image, or in the literal stream; 0 for ZERO."""


def encode_number(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_numbers(pieces: Iterable[bytes], *, what: str) -> Iterator[int]:
    """The LEB128 numbers in a stream of bytes.

    Raises:
        PayloadMapError: A number is cut off, padded or longer than five bytes.
    """
    value = shift = 0
    for piece in pieces:
        for byte in piece:
            value |= (byte & 0x7F) << shift
            if byte & 0x80:
                shift += 7
                if shift > _MAX_SHIFT:
                    raise PayloadMapError(f"{what}: a number is longer than five bytes; refused")
            else:
                if not byte and shift:
                    raise PayloadMapError(f"{what}: a number is padded; refused")
                yield value
                value = shift = 0
    if shift:
        raise PayloadMapError(f"{what}: ends inside a number; refused")


class MapEncoder:
    """Builds the raw map from one block after the other."""

    def __init__(self) -> None:
        self._out = bytearray()
        self._kind: Kind | None = None
        self._count = 0
        self._source = 0
        self._target = 0
        self._old_end = 0
        self.literal_blocks = 0

    @property
    def blocks(self) -> int:
        """Blocks added so far."""
        return self._target + self._count

    def add(self, kind: Kind, source: int = 0) -> None:
        """Say where the next block comes from.

        Args:
            source: Block of the old image (OLD) or of the new one (NEW); without meaning for the others.
        """
        if kind is Kind.LITERAL:
            self.literal_blocks += 1
        continues = kind is self._kind and (
            kind in (Kind.ZERO, Kind.LITERAL) or source == self._source + self._count
        )
        if not continues:
            self._flush()
            self._kind, self._source = kind, source
        self._count += 1

    def finish(self) -> bytes:
        """The raw map."""
        self._flush()
        return bytes(self._out)

    def _flush(self) -> None:
        if self._kind is None:
            return
        self._out += encode_number(self._count << 2 | self._kind)
        if self._kind is Kind.OLD:
            step = self._source - self._old_end
            self._out += encode_number(step << 1 if step >= 0 else (-step << 1) - 1)
            self._old_end = self._source + self._count
        elif self._kind is Kind.NEW:
            self._out += encode_number(self._target - self._source)
        self._target += self._count
        self._count = 0


def decode_runs(
    pieces: Iterable[bytes], *, old_blocks: int, new_blocks: int, literal_blocks: int
) -> Iterator[Run]:
    """The runs of a raw map, each checked before it is given out; what they add up to, at the end.

    Raises:
        PayloadMapError: A run breaks an invariant of this module.
    """
    numbers = decode_numbers(pieces, what="patch: map")
    target = literals = old_end = 0
    for item in numbers:
        kind, count = item & 3, item >> 2
        if not 0 < count <= new_blocks - target:
            raise PayloadMapError(
                f"patch: map: run of {count} blocks at block {target} of {new_blocks}; the release is refused"
            )
        source = 0
        if kind == Kind.OLD:
            step = _operand(numbers)
            source = old_end + (step >> 1 if not step & 1 else -(step + 1 >> 1))
            if not 0 <= source <= old_blocks - count:
                raise PayloadMapError(
                    f"patch: map: old blocks {source}+{count} of {old_blocks}; the release is refused"
                )
            old_end = source + count
        elif kind == Kind.NEW:
            distance = _operand(numbers)
            if not 1 <= distance <= target:
                raise PayloadMapError(
                    f"patch: map: block {target} is to repeat the one {distance} before it; the release is refused"
                )
            source = target - distance
        elif kind == Kind.LITERAL:
            source = literals
            literals += count
            if literals > literal_blocks:
                raise PayloadMapError(
                    f"patch: map: {literals} literal blocks at block {target}, the segments have {literal_blocks}; refused"
                )
        yield Run(kind, target, count, source)
        target += count
    if (target, literals) != (new_blocks, literal_blocks):
        raise PayloadMapError(
            f"patch: map: gives {target} blocks with {literals} literals, expected {new_blocks} with {literal_blocks}; refused"
        )


def _operand(numbers: Iterator[int]) -> int:
    value = next(numbers, None)
    if value is None:
        raise PayloadMapError("patch: map: ends inside a run; the release is refused")
    return value
