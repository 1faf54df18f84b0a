"""Names of unified kernel images on the EFI system partition, and the order in which systemd-boot takes them. Pure.

`EFI/Linux/tidewaiter-<version>.<slot>[+<left>[-<done>]].efi`: with a counter the entry is counted down by systemd-boot at each
boot, at `+0` it sorts last; without one it is good. systemd-boot renames `+3` to `+2-1` before it starts the image.

Source: update-engine.md section 8; UAPI specifications "Boot loader" (boot counting, sorting) and "Version format".
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

from tidewaiter_core.model import SlotName

_DIGITS: Final = frozenset(string.digits)
_LETTERS: Final = frozenset(string.ascii_letters)
"""ASCII only, as the specification says: `str.isdigit` is true for a superscript three, which is no number."""
_SIGNIFICANT: Final = _DIGITS | _LETTERS | frozenset("~-^.")
_NAME: Final = re.compile(
    r"tidewaiter-(?P<version>[0-9A-Za-z.+-]{1,64})\.(?P<slot>[AB])"
    r"(?:\+(?P<left>[0-9]{1,3})(?:-(?P<done>[0-9]{1,3}))?)?\.efi",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UkiName:
    """One entry."""

    version: str
    slot: SlotName
    left: int | None = None
    """Boots that systemd-boot still allows; None for an entry that is not counted."""
    done: int = 0
    """Boots that it has counted."""

    @classmethod
    def parse(cls, name: str) -> UkiName | None:
        """None for a name that is not ours."""
        found = _NAME.fullmatch(name)
        if found is None:
            return None
        left = found["left"]
        return cls(
            version=found["version"],
            slot=SlotName(found["slot"]),
            left=int(left) if left is not None else None,
            done=int(found["done"] or 0),
        )

    @property
    def stem(self) -> str:
        """What the names of one image have in common; systemd-boot's id of the entry."""
        return f"tidewaiter-{self.version}.{self.slot}"

    def __str__(self) -> str:
        if self.left is None:
            return f"{self.stem}.efi"
        done = f"-{self.done}" if self.done else ""
        return f"{self.stem}+{self.left}{done}.efi"

    def is_good(self) -> bool:
        """Whether it boots without being counted."""
        return self.left is None

    def good(self) -> UkiName:
        """The same image without a counter."""
        return replace(self, left=None, done=0)

    def counted(self, left: int, *, done: int) -> UkiName:
        """The same image with a counter."""
        return replace(self, left=left, done=done)


def is_before(first: UkiName, second: UkiName) -> bool:
    """Whether systemd-boot takes `first` when both are there, given that os-release in each says the same version as its name."""
    if (first.left == 0) is not (second.left == 0):
        return second.left == 0
    order = compare_versions(first.version, second.version) or compare_versions(first.stem, second.stem)
    if order == 0 and first.left is not None and second.left is not None:
        return (first.left, -first.done) > (second.left, -second.done)
    return order > 0


def compare_versions(first: str, second: str) -> int:
    """Below, at or above zero as `first` is older than, as old as, or newer than `second`.

    Source: UAPI "Version format specification".
    """
    a, b = first, second
    while a or b:
        a, b = _from_significant(a), _from_significant(b)
        order, a, b = _compare_mark("~", a, b)
        if order or not a or not b:
            # Past a pre-release mark the longer one is the newer.
            return order or bool(a) - bool(b)
        for mark in "-^.":
            order, a, b = _compare_mark(mark, a, b)
            if order:
                return order
        order, a, b = _compare_part(a, b)
        if order:
            return order
    return 0


def _compare_mark(mark: str, a: str, b: str) -> tuple[int, str, str]:
    """The one with a mark is older; if both have it, it is passed over."""
    if a[:1] != mark and b[:1] != mark:
        return 0, a, b
    if a[:1] == b[:1]:
        return 0, a[1:], b[1:]
    return (-1 if a[:1] == mark else 1), a, b


def _from_significant(text: str) -> str:
    """Without leading characters that count for nothing."""
    at = sum(1 for _ in takewhile(lambda one: one not in _SIGNIFICANT, text))
    return text[at:]


def _compare_part(a: str, b: str) -> tuple[int, str, str]:
    """Compare one run of digits or of letters; the order, and what is left of both."""
    digits = a[:1] in _DIGITS or b[:1] in _DIGITS
    first, second = _run(a, digits=digits), _run(b, digits=digits)
    rest = a[len(first) :], b[len(second) :]
    if digits:
        # No number at all is older than any.
        keys = [(len(run) > 0, int(run or "0")) for run in (first, second)]
        return (keys[0] > keys[1]) - (keys[0] < keys[1]), *rest
    return (first > second) - (first < second), *rest


def _run(text: str, *, digits: bool) -> str:
    wanted = _DIGITS if digits else _LETTERS
    return "".join(takewhile(lambda one: one in wanted, text))
