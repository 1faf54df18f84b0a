"""The simulated boot loader's environment: one file with U-Boot's redundant layout. What is written when is `copies`' matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tidewaiter_core.model import SlotName

from tidewaiter_updater.boot.booted import slot_of_cmdline
from tidewaiter_updater.boot.copies import TwoCopies
from tidewaiter_updater.boot.envcopy import COPY_BYTES, COPY_OFFSETS, LAYOUT, from_variables, to_variables
from tidewaiter_updater.model import BootEnv


class EnvMedium(Protocol):
    """The bytes of an environment partition or file."""

    name: str

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from the medium itself, not from a cache that a power cut would lose; BootEnvError."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of `data` and return only once it is on storage."""


class PlacedCopies:
    """CopyStore over an EnvMedium: the copies at their two offsets."""

    def __init__(self, medium: EnvMedium) -> None:
        self.name = medium.name
        self._medium = medium

    def read(self, index: int) -> bytes:
        return self._medium.read(COPY_OFFSETS[index], COPY_BYTES)

    def write(self, index: int, data: bytes) -> None:
        self._medium.write(COPY_OFFSETS[index], data)


class SimulatedBoot:
    """BootControl over an EnvMedium. `cmdline` returns the kernel command line, which names the booted slot."""

    def __init__(self, medium: EnvMedium, *, cmdline: Callable[[], str]) -> None:
        self._copies = TwoCopies(PlacedCopies(medium), LAYOUT)
        self._cmdline = cmdline

    def read(self) -> BootEnv | None:
        copy = self._copies.read()
        return from_variables(copy.variables) if copy else None

    def booted(self) -> SlotName:
        return slot_of_cmdline(self._cmdline())

    def write(self, env: BootEnv) -> None:
        self._copies.write(to_variables(env))
