"""Stages a kernel image that is at hand, as a transfer does with one that it fetches."""

from __future__ import annotations

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.components import UkiPiece
from tidewaiter_updater.boot.esp import Esp
from tidewaiter_updater.boot.staged import StagedUki
from tidewaiter_updater.boot.staging import Staging


def cut(data: bytes, piece_bytes: int) -> tuple[UkiPiece, ...]:
    """The pieces of an image, of another size than the product's."""
    return tuple(
        UkiPiece(offset, len(piece), Sha256.of(piece))
        for offset in range(0, len(data), piece_bytes)
        for piece in (data[offset : offset + piece_bytes],)
    )


def stage_whole(esp: Esp, uki: StagedUki, data: bytes, *, pieces: int = 2) -> None:
    """Stage `data` in `pieces` pieces."""
    staging = Staging(esp, uki, cut(data, -(-len(data) // pieces)))
    if not staging.is_complete:
        staging.require_room()
        staging.finish(lambda piece: data[piece.offset : piece.offset + piece.length])
