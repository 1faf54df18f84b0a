"""Puts a kernel image onto the EFI system partition piece by piece, so that it can be cut at any byte and go on later.

Invariants:
1. Neither name nor length of a file says what it holds: each piece is read from the medium and hashed, and kept where it is what
   the signed release names. So a torn tail or a flipped bit costs its piece and no more.
2. Pieces are written in order and are on storage every 4 MiB: a cut costs those and the one that was on its way. FAT has no
   holes; in this order none is ever filled with zeros first.
3. The file has its final name from the first byte on. On FAT a rename may leave neither name, and with it nothing to go on from;
   what makes the image complete is its hash, which is read again before ARM shows it to the loader.
4. A file that may share its clusters with another (the rename of ARM was cut) is not written to, but moved aside.

Source: update-engine.md sections 7 and 8, docs/adr/0017.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from tidewaiter_core.payload.components import UkiPiece
from tidewaiter_core.payload.errors import PayloadChunkError

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.esp import PRIVATE, Esp
from tidewaiter_updater.boot.staged import StagedUki, clear, removable

SYNC_BYTES: Final = 4 * 1024 * 1024
_ASIDE: Final = "aside-"


class Staging:
    """One attempt to stage an image; it begins with a look at what earlier ones left.

    Attributes:
        missing: The pieces that the medium does not hold.
        spoiled_bytes: Those of them that the file is long enough for: torn by a cut, or not kept by the medium.
        is_complete: The image is there, whole; nothing is left to be done.
    """

    def __init__(
        self,
        esp: Esp,
        uki: StagedUki,
        pieces: Sequence[UkiPiece],
        *,
        step: Callable[[], None] = lambda: None,
        sync_bytes: int = SYNC_BYTES,
    ) -> None:
        """
        Args:
            pieces: All of the image, in order.
            step: Called between two pieces; may raise to end the attempt.

        Raises:
            BootEnvError: The partition cannot be listed, or refuses to let go of what is in the way.
        """
        self._esp = esp
        self._uki = uki
        self._pieces = pieces
        self._step = step
        self._sync_bytes = sync_bytes
        self._length = sum(piece.length for piece in pieces)
        clear(esp, uki.slot, keep=(uki.file_name,))
        self.missing, found = self._look()
        self.is_complete = found == uki.sha256
        there = esp.files(PRIVATE).get(uki.file_name)
        self._is_shared = there is not None and uki.file_name not in removable(esp, uki.slot)
        if self._is_shared and not self.is_complete:
            self.missing, there = tuple(pieces), 0
        self._there_bytes = there or 0
        self.spoiled_bytes = sum(
            piece.length for piece in self.missing if piece.offset + piece.length <= self._there_bytes
        )

    @property
    def missing_bytes(self) -> int:
        return sum(piece.length for piece in self.missing)

    @property
    def kept_bytes(self) -> int:
        """What is right on the medium."""
        return self._length - self.missing_bytes

    def require_room(self) -> None:
        """Refuse, before anything is fetched, an image that does not fit beside the copy that COMMIT makes.

        Raises:
            BootEnvError: update.no-space.
        """
        there = min(self._there_bytes, self._length)
        if (free := self._esp.free_bytes()) < 2 * self._length - there:
            raise BootEnvError(
                f"{self._esp.name}: {free} bytes are free, the kernel image for slot {self._uki.slot} needs {self._length} "
                f"twice, of which {there} are there; not staged",
                code="update.no-space",
            )

    def finish(self, obtain: Callable[[UkiPiece], bytes]) -> None:
        """Write what is missing, and prove the whole from the medium.

        Args:
            obtain: The bytes of a piece, proven; what it raises ends the attempt, and the pieces until then stay.

        Raises:
            BootEnvError: The medium refuses, or does not hold what was written; then the file is removed.
            PayloadChunkError: Every piece is as signed and the whole is not.
        """
        path = self._uki.path
        if self._is_shared:
            aside = self._esp.free_name(_ASIDE + self._uki.file_name)
            self._esp.rename(path, f"{PRIVATE}/{aside}")
            self._is_shared = False
        blocks = ((piece.offset, obtain(piece)) for piece in self.missing)
        self._esp.fill(path, blocks, length=self._length, sync_bytes=self._sync_bytes)
        wrong, found = self._look()
        if found == self._uki.sha256:
            self.missing, self.is_complete = (), True
            return
        with contextlib.suppress(BootEnvError):
            self._esp.remove(path)  # other clusters may keep what these did not
        if wrong:
            raise BootEnvError(
                f"{path}: {len(wrong)} of {len(self._pieces)} pieces are not what was written, the first at byte "
                f"{wrong[0].offset}; not staged, the file is removed"
            )
        raise PayloadChunkError(
            f"{path}: each of {len(self._pieces)} pieces is as signed, the whole has SHA-256 {found} where {self._uki.sha256} "
            "is signed; not staged, the release has to be built again"
        )

    def _look(self) -> tuple[tuple[UkiPiece, ...], str]:
        """The pieces that the medium does not hold, and the SHA-256 of the file; a piece that cannot be read is not there."""
        whole = hashlib.sha256()
        wrong = list(self._pieces)
        kept = bytearray()
        if self._uki.file_name not in self._esp.files(PRIVATE):
            return tuple(wrong), ""
        with (
            contextlib.suppress(BootEnvError),
            contextlib.closing(self._esp.pieces(self._uki.path)) as stream,
        ):
            for piece in self._pieces:
                self._step()
                while len(kept) < piece.length and (more := next(stream, b"")):
                    whole.update(more)
                    kept += more
                if hashlib.sha256(kept[: piece.length]).hexdigest() == piece.sha256:
                    wrong.remove(piece)
                del kept[: piece.length]
            for more in stream:
                whole.update(more)
            return tuple(wrong), whole.hexdigest()
        return tuple(wrong), ""
