"""Fetches a kernel image piece by piece: each proven before it is passed on, and none beyond the byte budget.

A piece that does not come whole is asked for again by the source, up to five times; here that counts: a try is made only while
release and site allow the whole piece, so that a way that is cut again and again ends as a question to a person, not as a bill.

Source: update-engine.md section 6, docs/adr/0017.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from tidewaiter_core.payload.components import UkiComponent, UkiPiece

from tidewaiter_updater import stage
from tidewaiter_updater.errors import BudgetError, InstallCancelledError, SourceError
from tidewaiter_updater.ports import Control, Notice, Notify
from tidewaiter_updater.sources import Source, hashed_path
from tidewaiter_updater.supply import Meter


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProgress:
    """How far an image is, in bytes; all zero where there is none."""

    length: int = 0
    kept: int = 0
    """Were on the partition and right."""
    written: int = 0
    fetched: int = 0
    """Arrived, those of failed tries included."""
    expected: int = 0
    """Were planned to be fetched."""


class Thrift:
    """Control of a source that ends its own tries, too, when the budget has no room for another."""

    def __init__(self, inner: Control) -> None:
        self._inner = inner
        self.has_room: Callable[[], bool] = lambda: True

    def paused(self) -> bool:
        return self._inner.paused()

    def cancelled(self) -> bool:
        return self._inner.cancelled() or not self.has_room()

    @property
    def is_asked_to_stop(self) -> bool:
        return self._inner.cancelled()


class KernelFetch:
    """Brings single pieces of one image, proven and within the budget."""

    def __init__(
        self,
        part: UkiComponent,
        source: Source,
        *,
        meter: Meter,
        thrift: Thrift,
        step: stage.Step,
        notify: Notify,
        report: Callable[[KernelProgress], None],
        kept_bytes: int,
    ) -> None:
        self._part = part
        self._source = source
        self._target = hashed_path(part.path, part.sha256)
        self._meter = meter
        self._thrift = thrift
        self._step = step
        self._notify = notify
        self._report = report
        self._kept_bytes = kept_bytes
        self._written_bytes = 0

    def progress(self) -> KernelProgress:
        return KernelProgress(
            length=self._part.length,
            kept=self._kept_bytes,
            written=self._written_bytes,
            fetched=self._meter.fetched_bytes,
            expected=self._meter.expected_bytes,
        )

    def obtain(self, piece: UkiPiece) -> bytes:
        """A piece as it is signed; asked for a second time if other bytes arrive."""
        self._step()
        data, found = self._received(piece)
        if found != piece.sha256 and self._meter.has_room_for(piece.length):
            self._notify(
                Notice(
                    code="source.bad-bytes",
                    text=f"{self._what(piece)}: SHA-256 {found} where {piece.sha256} is signed; fetched again",
                )
            )
            data, found = self._received(piece)
        if found != piece.sha256:
            raise SourceError(
                f"{self._what(piece)}: expected SHA-256 {piece.sha256}, found {found}; they are not used, the kernel image "
                "is not staged",
                code="source.bad-bytes",
            )
        self._written_bytes += piece.length
        self._report(self.progress())
        return data

    def _received(self, piece: UkiPiece) -> tuple[bytes, str]:
        """A piece as it arrives, and its SHA-256."""
        self._thrift.has_room = lambda: self._meter.has_room_for(piece.length)
        self._require_budget(piece)
        try:
            data = b"".join(self._source.span(self._target, piece.offset, piece.length))
        except InstallCancelledError:
            if not self._thrift.is_asked_to_stop:
                self._require_budget(piece)  # the tries ended because nothing is left for another
            raise
        return data, hashlib.sha256(data).hexdigest()

    def _require_budget(self, piece: UkiPiece) -> None:
        if not self._thrift.has_room():
            raise BudgetError(
                f"{self._what(piece)}: {self._meter.fetched_bytes} bytes arrived where {self._meter.expected_bytes} were "
                "planned, and no more are allowed; stopped, what is staged stays and the next attempt plans anew"
            )

    def _what(self, piece: UkiPiece) -> str:
        return f"{self._target} bytes {piece.offset}+{piece.length}"
