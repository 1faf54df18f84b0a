"""A GRUB environment block with a head and a tail, so that a torn one shows: encode, decode, choose. Pure.

1024 bytes: GRUB's signature line | `tw_head=N` | our variables | those of others | `tw_pad=...` | `tw_tail=N` | `#` up to the
end. GRUB writes two sectors of 512 bytes and knows no checksum; head and our variables are in the first, the tail is in the
second, so a block of which only one sector arrived has two numbers and counts as no copy. N is 0..3, and the newer copy is one
ahead modulo 4: GRUB script has no arithmetic, four cases are a table. `save_env` replaces values of equal width in place, which
is why ours have fixed widths and why the tail stays where it is.

Source: update-engine.md section 8; GRUB lib/envblk.c (escapes: a backslash before a backslash or a line end).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from tidewaiter_updater.boot.layout import Copies, EnvCopy, Layout

BLOCK_BYTES: Final = 1024
SECTOR_BYTES: Final = 512
SIGNATURE: Final = b"# GRUB Environment Block\n"
NUMBERS: Final = 4
HEAD: Final = "tw_head"
TAIL: Final = "tw_tail"
PAD: Final = "tw_pad"
_OURS: Final = "tw_"
_FRAME: Final = frozenset({HEAD, TAIL, PAD})
_LINE: Final = re.compile(rb"((?:[^\\\n]|\\.)*+)\n", re.DOTALL)
_ESCAPED: Final = re.compile(rb"\\(.)", re.DOTALL)
_TAIL_BYTES: Final = len(f"{TAIL}=0\n")


def decode(raw: bytes) -> EnvCopy | None:
    """The copy in `raw`, None when empty, torn or not GRUB's."""
    if len(raw) != BLOCK_BYTES or not raw.startswith(SIGNATURE):
        return None
    found: dict[str, str] = {}
    for line in _lines(raw[len(SIGNATURE) :]):
        name, separator, value = line.partition("=")
        if separator and not name.startswith("#"):
            found[name] = value
    number = found.get(HEAD, "")
    if number != found.get(TAIL) or number not in {str(one) for one in range(NUMBERS)}:
        return None
    variables = {name: value for name, value in found.items() if name not in _FRAME}
    return EnvCopy(int(number), MappingProxyType(variables))


def _lines(body: bytes) -> Iterator[str]:
    """Unescaped lines, without the filling, which has no line end."""
    for found in _LINE.finditer(body.rstrip(b"#")):
        line = found.group(1)
        yield (_ESCAPED.sub(rb"\1", line) if b"\\" in line else line).decode("latin-1")


def encode(variables: Mapping[str, str], *, number: int) -> bytes:
    """The 1024 bytes of one copy; ValueError when the variables do not fit or cannot be written."""
    ours = {name: value for name, value in variables.items() if name.startswith(_OURS)}
    others = {name: value for name, value in variables.items() if name not in ours}
    text = SIGNATURE + _entry(HEAD, str(number))
    text += b"".join(_entry(name, value) for name, value in ours.items() if name not in _FRAME)
    if len(text) > SECTOR_BYTES:
        raise ValueError(
            f"our variables need {len(text)} of {SECTOR_BYTES} bytes; the environment is left as it is"
        )
    text += b"".join(_entry(name, value) for name, value in others.items())
    text += _entry(PAD, "#" * max(0, SECTOR_BYTES - len(text) - len(_entry(PAD, ""))))
    if len(text) + _TAIL_BYTES > BLOCK_BYTES:
        raise ValueError(
            f"environment needs {len(text) + _TAIL_BYTES} of {BLOCK_BYTES} bytes; it is left as it is"
        )
    return (text + _entry(TAIL, str(number))).ljust(BLOCK_BYTES, b"#")


def _entry(name: str, value: str) -> bytes:
    if not name or any(one in name for one in "=\n\\#"):
        raise ValueError(f"environment variable {name!r} cannot be stored; the environment is left as it is")
    return f"{name}={value.replace(chr(92), chr(92) * 2).replace(chr(10), chr(92) + chr(10))}\n".encode(
        "latin-1"
    )


def newest(copies: Copies) -> int | None:
    """Index of the copy in force, None when neither is valid. Numbers that do not follow each other: the first, as the script."""
    first, second = copies
    if first is None or second is None:
        return None if first is second else int(first is None)
    return int((second.flag - first.flag) % NUMBERS == 1)


def _encode(variables: Mapping[str, str], number: int) -> bytes:
    return encode(variables, number=number)


LAYOUT: Final = Layout(decode=decode, encode=_encode, newest=newest, numbers=NUMBERS)
