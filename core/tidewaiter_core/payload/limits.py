"""The numbers of the payload formats, in one value, so that a test world can use toy sizes without patching.

Source: update-engine.md section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from tidewaiter_core.payload.errors import PayloadLimitError

U64_MAX = 2**64 - 1
U32_MAX = 2**32 - 1
U16_MAX = 2**16 - 1
MAGIC_TAIL = b"\r\n\x1a"
"""Follows the four letters of each magic: a transfer that rewrites line ends shows at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an image and its chunks may measure. `STANDARD` is the format, others exist only in tests."""

    block_bytes: int = 4096
    """An image is a whole number of these."""
    min_chunk_bytes: int = 64 * 1024
    max_chunk_bytes: int = 1024 * 1024
    max_chunks: int = 262_144
    max_image_bytes: int = 256 * 1024**3
    region_bytes: int = 4096
    """The prefix of a patch segment consists of these, whole: small, so that it has what is like the segment and nothing else."""
    segment_log: int = 22
    """A patch segment decodes to at most 2 to this power bytes."""
    prefix_log: int = 23
    window_log: int = 22
    """Bounds the memory that a frame of a patch may ask for."""
    max_segments: int = 65_536
    max_head_bytes: int = 64 * 1024**2
    max_map_bytes: int = 64 * 1024**2
    """Of the decoded map."""

    @property
    def segment_bytes(self) -> int:
        return 1 << self.segment_log

    @property
    def max_stored_segment_bytes(self) -> int:
        """A segment that does not compress costs a little more than its content."""
        return self.segment_bytes + 64 * 1024

    @property
    def max_regions(self) -> int:
        """Of one segment."""
        return (1 << self.prefix_log) // self.region_bytes

    def check_image_bytes(self, image_bytes: int, *, what: str) -> None:
        """Refuse an image size the format cannot hold.

        Raises:
            PayloadLimitError: Not a whole number of blocks, empty, or too large.
        """
        if not 0 < image_bytes <= self.max_image_bytes or image_bytes % self.block_bytes:
            raise PayloadLimitError(
                f"{what}: image_bytes = {image_bytes} is not a multiple of {self.block_bytes} "
                f"in {self.block_bytes}..{self.max_image_bytes}; the release cannot be installed"
            )

    def chunk_bytes_for(self, image_bytes: int) -> int:
        """The one chunk size for an image: the smallest power of two that keeps the chunk count in bounds."""
        chunk_bytes = self.min_chunk_bytes
        while chunk_bytes < self.max_chunk_bytes and chunk_count(image_bytes, chunk_bytes) > self.max_chunks:
            chunk_bytes *= 2
        return chunk_bytes

    def padded(self, image_bytes: int) -> int:
        """The image size after the builder has filled the last block with zeros."""
        return -(-image_bytes // self.block_bytes) * self.block_bytes


STANDARD = Limits()


def chunk_count(image_bytes: int, chunk_bytes: int) -> int:
    """How many chunks an image has; the last one may be short."""
    return -(-image_bytes // chunk_bytes)


def end_of(offset: int, length: int, *, limit: int, what: str) -> int:
    """The end of a span, checked to lie within `limit` before anything uses it.

    Python integers do not wrap, but other readers of these formats do: a span whose end leaves u64 is refused
    even if `limit` would allow it (CVE-2026-34155 was such a wrap in a length check).

    Raises:
        PayloadLimitError: The span ends outside.
    """
    end = offset + length
    if offset < 0 or length < 0 or end > U64_MAX or end > limit:
        raise PayloadLimitError(
            f"{what}: bytes {offset}+{length} end outside the {limit} bytes available; refused"
        )
    return end
