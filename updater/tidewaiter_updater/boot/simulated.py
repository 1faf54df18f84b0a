"""The simulated boot loader's environment: one file with U-Boot's redundant layout.

Invariants kept here: the record in force is never overwritten in place (the older copy is), the other owners' variables
are preserved, and a write counts only after it was read back from the medium and both the record and the choice of copy
are as intended.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from tidewaiter_core.model import SlotName

from tidewaiter_updater.boot import BootEnvError, SlotMismatchError
from tidewaiter_updater.boot.envcopy import (
    COPY_BYTES,
    COPY_OFFSETS,
    EnvCopy,
    decode,
    encode,
    from_variables,
    newest,
    to_variables,
)
from tidewaiter_updater.model import BootEnv

logger = logging.getLogger(__name__)


class EnvMedium(Protocol):
    """The bytes of an environment partition or file."""

    name: str

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from the medium itself, not from a cache that a power cut would lose; BootEnvError."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data` and return only once it is on storage."""


class SimulatedBoot:
    """BootControl over an EnvMedium. `cmdline` returns the kernel command line, which names the booted slot."""

    def __init__(self, medium: EnvMedium, *, cmdline: Callable[[], str]) -> None:
        self._medium = medium
        self._cmdline = cmdline

    def read(self) -> BootEnv | None:
        copies = self._copies()
        index = newest(copies)
        copy = copies[index] if index is not None else None
        return from_variables(copy.variables) if copy else None

    def booted(self) -> SlotName:
        named = [
            word.partition("=")[2] for word in self._cmdline().split() if word.startswith("tidewaiter.slot=")
        ]
        if len(named) != 1 or named[0] not in ("A", "B"):
            raise SlotMismatchError(
                f"kernel command line: expected exactly one tidewaiter.slot=A or =B, found {named or 'none'}; "
                "the booted slot is unknown, nothing is written"
            )
        return SlotName(named[0])

    def write(self, env: BootEnv) -> None:
        copies = self._copies()
        index = newest(copies)
        current = copies[index] if index is not None else None
        target = 0 if index is None else 1 - index
        variables = dict(current.variables) if current else {}
        variables.update(to_variables(env))
        flag = (current.flag + 1) % 256 if current else 1
        try:
            raw = encode(variables, flag=flag)
        except ValueError as err:
            raise BootEnvError(f"{self._medium.name}: {err}") from err
        self._medium.write(COPY_OFFSETS[target], raw)
        self._prove(env, raw, target)

    def _prove(self, env: BootEnv, raw: bytes, target: int) -> None:
        if self._raw(target) != raw or self.read() != env:
            raise BootEnvError(
                f"{self._medium.name}: copy {target} does not read back as written; "
                "the decision is not in force, the earlier record still decides"
            )

    def _copies(self) -> tuple[EnvCopy | None, EnvCopy | None]:
        return decode(self._raw(0)), decode(self._raw(1))

    def _raw(self, index: int) -> bytes:
        """The bytes of a copy; none if they cannot be read.

        A sector that was being written when the power went may be an I/O error until it is written again. The other copy decides,
        as it does for the boot loader, and the next write repairs this one.
        """
        try:
            return self._medium.read(COPY_OFFSETS[index], COPY_BYTES)
        except BootEnvError as err:
            logger.warning("copy %d of the boot environment counts as torn: %s", index, err)
            return b""
