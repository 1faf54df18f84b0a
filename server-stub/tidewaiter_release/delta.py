"""`tidewaiter-release delta`: a patch from one image to another, small to fetch and cheap to apply.

Memory does not grow with the literals: segments in flight are bounded, finished ones go to disk. What stays is about 30 bytes
per block of the old image, the region index and the head. Segments compress in threads, because zstd, numpy and hashlib release
the interpreter lock; they are written in order, so the same images, level and zstd version give the same bytes.

Source: update-engine.md section 4.4.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload import STANDARD, Limits, PatchHeader, PatchReader
from tidewaiter_core.payload.errors import PayloadLimitError
from tidewaiter_core.payload.patch import build_head
from tidewaiter_core.payload.patchfile import Segment
from tidewaiter_core.payload.patchhashes import encode_hashes
from tidewaiter_core.payload.patchregions import RegionRun, encode_regions, region_runs

from tidewaiter_release import zstd
from tidewaiter_release.apply import prove_patch
from tidewaiter_release.delta_blocks import BlockPlan, block_keys, plan_blocks
from tidewaiter_release.delta_regions import RegionIndex, index_regions
from tidewaiter_release.errors import InputError
from tidewaiter_release.image import ImageFile, ImageHashes
from tidewaiter_release.outfile import replacing
from tidewaiter_release.progress import Progress

_MAP_WINDOW_LOG = 18
"""The map is decoded beside a segment: its window is extra memory on the device."""
_LEAST_VOTES = 1.0
"""More than this for a region, in a full segment: all that have a vote would be three times as many reads for a device
(docs/adr/0013)."""
_LEAST_VOTES_AROUND = 5.0
"""More than this for 64 KiB, of which then everything comes along; fewer bring nothing (docs/adr/0013)."""
_IN_FLIGHT_PER_WORKER = 2
_COPY_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPatch:
    """A patch that was written and proven to give the new image."""

    header: PatchHeader
    length: int
    sha256: Sha256
    head_sha256: Sha256
    literal_bytes: int
    """What the old image does not have, before compression."""
    segment_bytes: int
    """The same, compressed."""

    @property
    def head_bytes(self) -> int:
        return self.header.data_offset


def make_patch(
    old: Path,
    new: Path,
    out: Path,
    *,
    level: int = zstd.PUBLISH_LEVEL,
    workers: int | None = None,
    limits: Limits = STANDARD,
    stream: TextIO | None = None,
) -> BuiltPatch:
    """Write the patch from `old` to `new` to `out`; an older file is replaced only by a proven patch.

    Raises:
        InputError: An image cannot be read, their chunk sizes differ, or `out` is one of them or cannot be written.
        PayloadError: The patch would break a bound of the format; none is written.
    """
    with ImageFile(old, limits=limits) as old_image, ImageFile(new, limits=limits) as new_image:
        if old_image.chunk_bytes != new_image.chunk_bytes:
            raise InputError(
                f"{old.name} has chunks of {old_image.chunk_bytes} bytes, {new.name} of {new_image.chunk_bytes}; "
                "no patch can join them, devices take the pack"
            )
        encoder = _Encoder(
            old_image, new_image, level=level, workers=workers or os.cpu_count() or 1, stream=stream
        )
        with (
            replacing(out, inputs=(old, new), consequence="there is no new patch") as temporary,
            temporary.open("w+b") as file,
        ):
            built = encoder.write(file)
            file.flush()
            os.fsync(file.fileno())
            prove_patch(old_image, temporary, new_image, name=out.name, stream=stream)
    return built


@dataclass(frozen=True, slots=True)
class _Frame:
    """A compressed segment."""

    data: bytes
    regions: tuple[RegionRun, ...]


class _Encoder:
    def __init__(
        self, old: ImageFile, new: ImageFile, *, level: int, workers: int, stream: TextIO | None
    ) -> None:
        self._old = old
        self._new = new
        self._level = level
        self._workers = workers
        self._stream = stream
        self._limits = new.limits
        self._segments: list[Segment] = []
        self._regions = bytearray()
        self._stored_bytes = 0

    def write(self, file: BinaryIO) -> BuiltPatch:
        old, new, plan, index = self._survey()
        segments_path = Path(f"{file.name}.segments")
        try:
            with segments_path.open("w+b") as segments:
                self._compress(plan, index, segments)
                head = self._head(old, new, plan)
                digest = self._join(file, head, segments)
        finally:
            segments_path.unlink(missing_ok=True)
        header = PatchReader(
            lambda offset, length: head[offset : offset + length], len(head), limits=self._limits
        ).header
        return BuiltPatch(
            header=header,
            length=header.patch_bytes,
            sha256=digest,
            head_sha256=Sha256.of(head),
            literal_bytes=len(plan.literals) * self._limits.block_bytes,
            segment_bytes=self._stored_bytes,
        )

    def _survey(self) -> tuple[ImageHashes, ImageHashes, BlockPlan, RegionIndex]:
        """All that is known before anything is compressed."""
        old_bytes, new_bytes = self._old.image_bytes, self._new.image_bytes
        progress = Progress(
            f"comparing {self._old.name} and {self._new.name}", 2 * old_bytes + new_bytes, stream=self._stream
        )
        old = block_keys(self._old, progress=progress.update)
        new = block_keys(self._new, progress=lambda done: progress.update(old_bytes + done))
        plan = plan_blocks(self._old, self._new, old.keys, new.keys)
        index = index_regions(self._old, progress=lambda done: progress.update(old_bytes + new_bytes + done))
        progress.finish()
        return old.hashes, new.hashes, plan, index

    def _compress(self, plan: BlockPlan, index: RegionIndex, out: BinaryIO) -> None:
        literals = plan.literals
        per_segment = self._limits.segment_bytes // self._limits.block_bytes
        progress = Progress("compressing", len(literals) * self._limits.block_bytes, stream=self._stream)
        waiting: deque[tuple[array[int], Future[_Frame]]] = deque()
        done = 0
        with ThreadPoolExecutor(self._workers, thread_name_prefix="compress") as pool:
            for first in range(0, len(literals), per_segment):
                blocks = literals[first : first + per_segment]
                last = first + per_segment
                guesses = plan.after[first:last] + plan.before[first:last]
                waiting.append((blocks, pool.submit(self._frame, blocks, guesses, index)))
                if len(waiting) >= self._workers * _IN_FLIGHT_PER_WORKER:
                    done += self._append(*waiting.popleft(), out)
                    progress.update(done)
            while waiting:
                done += self._append(*waiting.popleft(), out)
                progress.update(done)
        progress.finish()

    def _frame(self, blocks: array[int], guesses: array[int], index: RegionIndex) -> _Frame:
        data = self._gather(blocks)
        size = self._limits.region_bytes
        per_region = size // self._limits.block_bytes
        likely = [block // per_region for block in guesses]
        # In proportion: a segment of one block has a dozen votes in all.
        share = len(data) / self._limits.segment_bytes
        regions = index.best(
            data,
            likely,
            most=self._limits.max_regions,
            least=_LEAST_VOTES * share,
            least_around=_LEAST_VOTES_AROUND * share,
        )
        runs = tuple(region_runs(regions))
        prefix = b"".join(self._old.read(run.first * size, run.regions * size) for run in runs)
        frame = zstd.compress_behind(data, prefix, level=self._level, window_log=self._limits.window_log)
        return _Frame(frame, runs)

    def _gather(self, blocks: array[int]) -> bytes:
        """The content of blocks of the new image, neighbors read together."""
        size = self._limits.block_bytes
        parts: list[bytes] = []
        first = 0
        for number in range(1, len(blocks) + 1):
            if number < len(blocks) and blocks[number] == blocks[number - 1] + 1:
                continue
            parts.append(self._new.read(blocks[first] * size, (number - first) * size))
            first = number
        return b"".join(parts)

    def _append(self, blocks: array[int], frame: Future[_Frame], out: BinaryIO) -> int:
        """Take a finished segment; returns its literal bytes."""
        result = frame.result()
        if len(result.data) > self._limits.max_stored_segment_bytes:
            raise PayloadLimitError(
                f"segment {len(self._segments)}: {len(result.data)} bytes stored, at most "
                f"{self._limits.max_stored_segment_bytes} are allowed; no patch is written"
            )
        literal_bytes = len(blocks) * self._limits.block_bytes
        out.write(result.data)
        regions = encode_regions(result.regions)
        self._segments.append(
            Segment(
                offset=self._stored_bytes,
                stored_bytes=len(result.data),
                literal_bytes=literal_bytes,
                first_block=blocks[0],
                region_first=len(self._regions),
                region_count=sum(run.regions for run in result.regions),
                region_stored_bytes=len(regions),
                sha256=hashlib.sha256(result.data).digest(),
            )
        )
        self._regions += regions
        self._stored_bytes += len(result.data)
        return literal_bytes

    def _head(self, old: ImageHashes, new: ImageHashes, plan: BlockPlan) -> bytes:
        frame = zstd.compress_behind(plan.map, b"", level=self._level, window_log=_MAP_WINDOW_LOG)
        return build_head(
            old_bytes=self._old.image_bytes,
            new_bytes=self._new.image_bytes,
            old_root=old.root,
            new_root=new.root,
            new_sha256=new.sha256,
            map_frame=frame,
            map_bytes=len(plan.map),
            regions=bytes(self._regions),
            hashes=encode_hashes(old.chunks, new.chunks),
            segments=self._segments,
            limits=self._limits,
        )

    def _join(self, file: BinaryIO, head: bytes, segments: BinaryIO) -> Sha256:
        """Head and segments in one file; returns its hash."""
        digest = hashlib.sha256(head)
        file.write(head)
        segments.seek(0)
        while piece := segments.read(_COPY_BYTES):
            digest.update(piece)
            file.write(piece)
        return Sha256(digest.hexdigest())
