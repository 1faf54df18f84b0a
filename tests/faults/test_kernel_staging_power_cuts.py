"""A cut at any storage operation while a kernel image is staged: what is right afterwards, and what it costs again."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tidewaiter_core.model import Sha256, SlotName
from tidewaiter_core.payload.components import UKI_PIECE_BYTES, UkiPiece
from tidewaiter_updater.boot.esp import ENTRIES, PRIVATE, Esp
from tidewaiter_updater.boot.staged import StagedUki, is_staged
from tidewaiter_updater.boot.staging import SYNC_BYTES, Staging

from tests.faults.crash_explorer.cuts import images
from tests.sim.boot.sdboot import ESP
from tests.sim.boot.staging import cut
from tests.sim.storage import Content, SimDisk, Storage

PIECE = 16
"""Stands for 1 MiB."""
SYNC_PIECES = SYNC_BYTES // UKI_PIECE_BYTES
KERNEL = random.Random(4).randbytes(13 * PIECE + 5)
PIECES = cut(KERNEL, PIECE)
UKI = StagedUki(txn="00112233445566aa", sha256=Sha256.of(KERNEL), version="2.0", slot=SlotName.B)
OLD = StagedUki(txn="ff112233445566aa", sha256=Sha256.of(b"old"), version="1.5", slot=SlotName.B)
MOST_AGAIN = 16
"""Pieces, 16 MiB."""

EMPTY: Content = {
    ("directory", str(ESP)): b"",
    ("directory", f"{ESP}/EFI"): b"",
    ("directory", f"{ESP}/{ENTRIES}"): b"",
    ("directory", f"{ESP}/{PRIVATE}"): b"",
}
STARTS: dict[str, Content] = {
    "empty": EMPTY,
    "another release": {**EMPTY, ("file", f"{ESP}/{OLD.path}"): KERNEL[:100]},
    "longer": {**EMPTY, ("file", f"{ESP}/{UKI.path}"): bytes(20 * PIECE)},
    "spoiled": {**EMPTY, ("file", f"{ESP}/{UKI.path}"): KERNEL[:40] + b"!" + KERNEL[41:]},
}


class Attempt:
    """Staging on one content of the partition."""

    def __init__(self, content: Content) -> None:
        self.obtained = 0
        self.storage = Storage(content, facts=lambda: self.obtained)
        self.esp = Esp(ESP, disk=SimDisk(self.storage, fat=ESP))
        self.staging = Staging(self.esp, UKI, PIECES, sync_bytes=SYNC_PIECES * PIECE)
        self.kept = len(PIECES) - len(self.staging.missing)

    def run(self) -> None:
        if not self.staging.is_complete:
            self.staging.finish(self._obtain)
        assert is_staged(self.esp, UKI)

    def _obtain(self, piece: UkiPiece) -> bytes:
        self.obtained += 1
        return KERNEL[piece.offset : piece.offset + piece.length]

    def cuts(self) -> Iterator[tuple[Content, int]]:
        """Each content that a cut may leave, and how many pieces were right or fetched until then."""
        for point in self.storage.points:
            for content in images(point):
                yield content, self.kept + point.facts


@pytest.mark.parametrize("start", STARTS)
def test_a_power_cut_while_a_kernel_image_is_staged_costs_a_few_pieces_also_twice(start: str) -> None:
    first = Attempt(STARTS[start])
    first.run()
    rng = random.Random(7)
    count = worst = 0
    for content, had in first.cuts():
        again = Attempt(content)
        again.run()
        assert again.obtained == len(PIECES) - again.kept
        worst = max(worst, had - again.kept)
        count += 1
        if rng.random() < 0.05:
            for later, then_had in again.cuts():
                third = Attempt(later)
                third.run()
                worst = max(worst, then_had - third.kept)
    assert count > (5 if start == "spoiled" else 100)
    assert worst <= SYNC_PIECES + 1 <= MOST_AGAIN
