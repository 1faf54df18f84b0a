"""Two copies of a record, of which one is in force: the write rule that all boot loaders with an environment share.

Invariants:
1. The copy in force is never written; the other one is, whole.
2. Variables of other owners are carried from the copy in force into the new one.
3. A write counts only after it was read back from the medium, and after the choice of copy was made again and fell on it.
4. A copy that cannot be read is a torn one: the other decides, and the next write repairs it.

Source: update-engine.md section 8.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

from tidewaiter_updater.boot import BootEnvError
from tidewaiter_updater.boot.layout import Copies, EnvCopy, Layout

logger = logging.getLogger(__name__)


class CopyStore(Protocol):
    """Where the two copies are."""

    name: str

    def read(self, index: int) -> bytes:
        """Copy `index` from the medium itself, not from a cache that a power cut would lose; BootEnvError."""

    def write(self, index: int, data: bytes) -> None:
        """Write all of `data` and return only once it is on storage; BootEnvError."""


class TwoCopies:
    """The record behind a boot environment."""

    def __init__(self, store: CopyStore, layout: Layout) -> None:
        self._store = store
        self._layout = layout

    def read(self) -> EnvCopy | None:
        """The copy in force, None when neither is valid."""
        copies = self._copies()
        index = self._layout.newest(copies)
        return copies[index] if index is not None else None

    def write(self, changed: Mapping[str, str]) -> None:
        """Put the record with `changed` in force.

        Raises:
            BootEnvError: It is not in force; the earlier record still decides.
        """
        copies = self._copies()
        index = self._layout.newest(copies)
        current = copies[index] if index is not None else None
        target = 0 if index is None else 1 - index
        variables = {**current.variables, **changed} if current else dict(changed)
        number = (current.flag + 1) % self._layout.numbers if current else 1
        try:
            raw = self._layout.encode(variables, number)
        except ValueError as err:
            raise BootEnvError(f"{self._store.name}: {err}") from err
        self._store.write(target, raw)
        self._prove(EnvCopy(number, variables), raw, target)

    def _prove(self, expected: EnvCopy, raw: bytes, target: int) -> None:
        found = self.read() if self._raw(target) == raw else None
        if found is None or found.flag != expected.flag or dict(found.variables) != dict(expected.variables):
            raise BootEnvError(
                f"{self._store.name}: copy {target} does not read back as written; "
                "the decision is not in force, the earlier record still decides"
            )

    def _copies(self) -> Copies:
        return self._layout.decode(self._raw(0)), self._layout.decode(self._raw(1))

    def _raw(self, index: int) -> bytes:
        try:
            return self._store.read(index)
        except BootEnvError as err:
            logger.warning("copy %d of the boot environment counts as torn: %s", index, err)
            return b""
