"""One copy of a boot environment, and how a boot loader lays it out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnvCopy:
    """One valid copy."""

    flag: int
    """Its number; which of two copies is the newer one is the loader's rule."""
    variables: Mapping[str, str]


Copies = tuple[EnvCopy | None, EnvCopy | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a boot loader writes one copy, and which of two it takes. All functions are pure."""

    decode: Callable[[bytes], EnvCopy | None]
    """None when torn, empty or not a copy at all."""
    encode: Callable[[Mapping[str, str], int], bytes]
    """Variables and number to bytes; ValueError when they do not fit."""
    newest: Callable[[Copies], int | None]
    """Index of the copy in force, None when neither is valid."""
    numbers: int
    """Copies are numbered modulo this."""
