"""Applies a patch chunk by chunk with one segment and one prefix in memory: on the device and in `tidewaiter-release apply`.

The caller owns every descriptor, thread and decision; this module owns the memory: one mapping for the prefix, given back to the
system while nobody needs it, and one decoder (which gives its copy back in a process that uses `tidewaiter_core.heap`). Literals
are used in the order in which they are decoded, so they are decoded as they are used and never kept. Traps this avoids
(update-engine.md section 7): a variable that still names the previous decoder keeps its prefix and window (12 MiB); a joined list
of regions doubles the prefix; a decoder that is fed the whole segment at once keeps a copy of what it has not consumed.

What comes out is unproven: a wrong old image or prefix gives garbage of the right length. The caller hashes each chunk.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from tidewaiter_core.payload.errors import PayloadFrameError, PayloadLimitError
from tidewaiter_core.payload.frame import Codec, check_frame_header, decode_frame, in_pieces
from tidewaiter_core.payload.patch import PatchReader
from tidewaiter_core.payload.patchfile import Segment
from tidewaiter_core.payload.patchmap import Kind, Run


class BlockSource(Protocol):
    """An image that blocks are read from."""

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer`, whose length is a multiple of the block size, from byte `offset`."""


class OldSource(BlockSource, Protocol):
    """The old image: regions of it are read many at a time."""

    def read_many(self, parts: Sequence[tuple[memoryview, int]]) -> None:
        """Fill each buffer from its offset; none is touched any more when this returns or raises."""


class Room:
    """Page-aligned memory that is used again and again, and given back in between."""

    def __init__(self, size_bytes: int) -> None:
        # Private: pages of a shared mapping would not return to the system.
        self._map = mmap.mmap(-1, max(size_bytes, mmap.PAGESIZE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._map)

    def view(self, length: int) -> memoryview:
        return self._view[:length]

    def give_back(self) -> None:
        """Forget the content: the pages return to the system."""
        self._map.madvise(mmap.MADV_DONTNEED)


class Literals:
    """The literal blocks of one segment, decoded as they are taken."""

    def __init__(self, pieces: Iterator[bytes], literal_bytes: int) -> None:
        self._pieces = pieces
        self._literal_bytes = literal_bytes
        self._piece = b""
        self._at = 0
        """Where the piece in hand begins."""

    def take(self, out: memoryview, offset: int) -> None:
        """Fill `out` from byte `offset` of the segment; offsets never go back.

        Raises:
            PayloadFrameError: The segment is no frame of its length.
        """
        done = 0
        while done < len(out):
            start = offset + done - self._at
            if start >= len(self._piece):
                self._at += len(self._piece)
                self._piece = self._following()
                continue
            part = self._piece[start : start + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
        if offset + done == self._literal_bytes:
            next(self._pieces, None)  # looks at the end of the frame

    def _following(self) -> bytes:
        piece = next(self._pieces, None)
        if piece is None:
            raise PayloadFrameError(
                f"patch: a literal behind the {self._literal_bytes} bytes of its segment, or after it failed; not used"
            )
        return piece


class SegmentDecoder:
    """Turns stored segments into literal blocks, one segment at a time."""

    def __init__(self, reader: PatchReader, codec: Codec, old: OldSource) -> None:
        self._reader = reader
        self._codec = codec
        self._old = old
        self._prefix = Room(1 << reader.limits.prefix_log)

    def decode(self, segment: Segment, stored: bytes | memoryview, *, what: str) -> Literals:
        """The literals of a segment. Drop those of the segment before it first: they hold its decoder.

        Args:
            stored: Its bytes, whose hash was proven.

        Raises:
            PayloadError: The segment is no frame of its length. A wrong prefix raises nothing.
            Exception: Whatever `old` raises.
        """
        check_frame_header(stored[:18], raw_bytes=segment.literal_bytes, what=what)
        prefix = self._gathered(segment)
        decoder = self._codec.decompressor(window_log_max=self._reader.limits.window_log, prefix=prefix)
        self._prefix.give_back()  # the decoder has a copy of its own
        pieces = decode_frame(
            decoder, in_pieces(stored), raw_bytes=segment.literal_bytes, error=self._codec.error, what=what
        )
        return Literals(pieces, segment.literal_bytes)

    def _gathered(self, segment: Segment) -> memoryview | None:
        """The regions of the old image, one behind the other."""
        size = self._reader.limits.region_bytes
        view = self._prefix.view(segment.region_count * size)
        parts: list[tuple[memoryview, int]] = []
        at = 0
        for run in self._reader.regions(segment):
            end = at + run.regions * size
            parts.append((view[at:end], run.first * size))
            at = end
        self._old.read_many(parts)
        return view if parts else None


class ChunkAssembler:
    """Makes chunks of the new image, in ascending order; chunks nobody asks for cost neither reads nor segments."""

    def __init__(
        self,
        reader: PatchReader,
        runs: Iterator[Run],
        *,
        old: BlockSource,
        new: BlockSource,
        literals: Callable[[int], Literals],
    ) -> None:
        """
        Args:
            runs: `reader.runs(...)`, from the beginning.
            new: The new image as far as it was assembled: read only at blocks before the chunk in hand.
            literals: Those of a segment by its number; asked in ascending order, after those before were dropped.
        """
        self._reader = reader
        self._block = reader.limits.block_bytes
        self._runs = runs
        self._old = old
        self._new = new
        self._load = literals
        self._run = Run(Kind.ZERO, 0, 0, 0)
        self._segment = -1
        self._segment_start = self._segment_end = 0
        self._literals: Literals | None = None
        self.took_literals = False
        """Whether the latest chunk has blocks that the old image does not have."""

    def assemble(self, chunk: int, out: memoryview) -> bool:
        """Fill `out` with a chunk that was not passed yet. False: all its blocks are zero by the map, `out` is untouched.

        Raises:
            PayloadError: The map or a segment breaks a rule.
            Exception: Whatever the ports raise.
        """
        first = chunk * self._reader.header.chunk_bytes // self._block
        end = first + len(out) // self._block
        is_zero = True
        self.took_literals = False
        for run in self._within(first, end):
            at = (run.target - first) * self._block
            part = out[at : at + run.blocks * self._block]
            if run.kind == Kind.ZERO and is_zero:
                continue
            if is_zero:
                out[:at] = bytes(at)
                is_zero = False
            if run.kind == Kind.ZERO:
                part[:] = bytes(len(part))
            elif run.kind == Kind.OLD:
                self._old.read_into(part, run.source * self._block)
            elif run.kind == Kind.LITERAL:
                self.took_literals = True
                self._copy_literals(part, run.source)
            else:
                self._repeat(run, first, out)
        return not is_zero

    def _within(self, first: int, end: int) -> Iterator[Run]:
        """The parts of runs that make the blocks `first` to `end`."""
        block = first
        while block < end:
            run = self._run
            while run.target + run.blocks <= block:
                following = next(self._runs, None)
                if following is None:
                    raise PayloadLimitError(f"patch: block {block} is behind the end of the map")
                run = self._run = following
            if run.target > block:
                raise ValueError(f"block {block} was passed already; chunks are assembled in ascending order")
            skipped = block - run.target
            count = min(run.blocks - skipped, end - block)
            source = run.source + skipped if run.kind != Kind.ZERO else 0
            yield Run(run.kind, block, count, source)
            block += count

    def _repeat(self, run: Run, first: int, out: memoryview) -> None:
        """Copy earlier blocks of the new image: from the chunk in hand where they are in it."""
        target, source, left = run.target, run.source, run.blocks
        distance = target - source
        while left:
            count = min(left, distance)  # no further than what is made already
            at = (target - first) * self._block
            if source < first:
                count = min(count, first - source)
                self._new.read_into(out[at : at + count * self._block], source * self._block)
            else:
                begin = (source - first) * self._block
                out[at : at + count * self._block] = out[begin : begin + count * self._block]
            target, source, left = target + count, source + count, left - count

    def _copy_literals(self, out: memoryview, literal: int) -> None:
        while out:
            segment = self._segment_with(literal)
            count = min(len(out) // self._block, self._segment_end - literal)
            segment.take(out[: count * self._block], (literal - self._segment_start) * self._block)
            out, literal = out[count * self._block :], literal + count

    def _segment_with(self, literal: int) -> Literals:
        """The segment that holds a literal block; those before it are passed without being loaded."""
        while literal >= self._segment_end:
            self._segment += 1
            self._literals = None
            self._segment_start = self._segment_end
            length = self._reader.segment(self._segment).literal_bytes
            self._segment_end += length // self._block
        if self._literals is None:
            self._literals = self._load(self._segment)
        return self._literals


def needed_segments(
    reader: PatchReader, runs: Iterable[Run], is_wanted: Callable[[int], bool]
) -> Iterator[int]:
    """The segments that wanted chunks take literals from, ascending.

    Args:
        is_wanted: Whether a chunk has to be made.
    """
    per_chunk = reader.header.chunk_bytes // reader.limits.block_bytes
    number, end, is_needed = -1, 0, True
    for run in runs:
        if run.kind != Kind.LITERAL:
            continue
        block, literal, stop = run.target, run.source, run.source + run.blocks
        while literal < stop:
            if literal >= end:
                number += 1
                end += reader.segment(number).literal_bytes // reader.limits.block_bytes
                is_needed = False
            chunk = block // per_chunk
            if not is_needed and is_wanted(chunk):
                is_needed = True
                yield number
            count = min(stop, end, literal + (chunk + 1) * per_chunk - block) - literal
            block, literal = block + count, literal + count
