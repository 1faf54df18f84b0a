"""The redundant environment of U-Boot on a block device: encode, decode, choose. Pure.

One copy is 16,384 bytes: crc32 of the body (little-endian) | flag | `k=v\\0...\\0\\0` padded with zeros. The newer of two
valid copies has the flag one ahead modulo 256, so 0 follows 255. Variables of other owners survive our writes.

Source: update-engine.md section 8; U-Boot env/common.c (`env_import_redund`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from types import MappingProxyType

from tidewaiter_core.model import SlotName

from tidewaiter_updater.boot.layout import Copies, EnvCopy, Layout
from tidewaiter_updater.model import NO_BOOT, NO_TXN, TXN_CHARS, BootEnv

__all__ = [
    "COPY_BYTES",
    "COPY_OFFSETS",
    "LAYOUT",
    "EnvCopy",
    "decode",
    "encode",
    "from_variables",
    "newest",
    "to_variables",
]

COPY_BYTES = 16_384
COPY_OFFSETS = (0, 512 * 1024)
_HEADER = struct.Struct("<IB")
_BODY_BYTES = COPY_BYTES - _HEADER.size
_HEX = frozenset("0123456789abcdef")


def decode(raw: bytes) -> EnvCopy | None:
    """The copy in `raw`, None when torn, empty or not an environment."""
    if len(raw) != COPY_BYTES:
        return None
    crc, flag = _HEADER.unpack_from(raw)
    body = raw[_HEADER.size :]
    if zlib.crc32(body) != crc:
        return None
    end = body.find(b"\0\0")
    if end < 0:
        return None
    variables: dict[str, str] = {}
    for entry in body[:end].split(b"\0") if end else ():
        name, separator, value = entry.partition(b"=")
        if not separator or not name:
            return None
        variables[name.decode("latin-1")] = value.decode("latin-1")
    return EnvCopy(flag, MappingProxyType(variables))


def encode(variables: Mapping[str, str], *, flag: int) -> bytes:
    """The 16,384 bytes of one copy; ValueError when the variables do not fit or cannot be written."""
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(
                f"environment variable {name!r} cannot be stored; the environment is left as it is"
            )
    text = "".join(f"{name}={value}\0" for name, value in variables.items())
    body = (text + "\0").encode("latin-1")
    if not variables:
        body = b"\0\0"
    if len(body) > _BODY_BYTES:
        raise ValueError(
            f"environment needs {len(body)} of {_BODY_BYTES} bytes; the environment is left as it is"
        )
    body = body.ljust(_BODY_BYTES, b"\0")
    return _HEADER.pack(zlib.crc32(body), flag % 256) + body


def newest(copies: Copies) -> int | None:
    """Index of the copy in force, None when neither is valid. Equal flags: the first, as U-Boot decides."""
    first, second = copies
    if first is None or second is None:
        return None if first is second else int(first is None)
    if {first.flag, second.flag} == {0, 255}:
        return int(second.flag == 0)
    return int(second.flag > first.flag)


def _encode(variables: Mapping[str, str], number: int) -> bytes:
    return encode(variables, flag=number)


LAYOUT = Layout(decode=decode, encode=_encode, newest=newest, numbers=256)


def to_variables(env: BootEnv) -> dict[str, str]:
    """Our variables, each of fixed width: `-` or zeros stand for none."""
    return {
        "tw_committed": env.committed.value,
        "tw_ok_a": "1" if env.ok_a else "0",
        "tw_ok_b": "1" if env.ok_b else "0",
        "tw_trial": env.trial.value if env.trial else "-",
        "tw_left": str(env.left),
        "tw_refunds": str(env.refunds),
        "tw_txn": env.txn,
        "tw_armboot": env.armboot,
        "tw_epoch": f"{env.epoch:05d}",
    }


def from_variables(variables: Mapping[str, str]) -> BootEnv | None:
    """Our record, None when one of its variables is missing or not what we write."""
    slots: dict[str, SlotName | None] = {"A": SlotName.A, "B": SlotName.B, "-": None}
    try:
        committed = slots[variables["tw_committed"]]
        trial = slots[variables["tw_trial"]]
        env = BootEnv(
            committed=committed or SlotName.A,
            ok_a=_digit(variables["tw_ok_a"], 1) == 1,
            ok_b=_digit(variables["tw_ok_b"], 1) == 1,
            trial=trial,
            left=_digit(variables["tw_left"], 9),
            refunds=_digit(variables["tw_refunds"], 5),
            txn=_hex(variables.get("tw_txn", NO_TXN), TXN_CHARS),
            armboot=_hex(variables.get("tw_armboot", NO_BOOT), len(NO_BOOT)),
            epoch=_number(variables["tw_epoch"]),
        )
    except (KeyError, ValueError):
        return None
    return env if committed is not None else None


def _digit(text: str, highest: int) -> int:
    if len(text) != 1 or not "0" <= text <= str(highest):
        raise ValueError(text)
    return int(text)


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise ValueError(text)
    return int(text)


def _hex(text: str, length: int) -> str:
    if len(text) != length or not _HEX.issuperset(text):
        raise ValueError(text)
    return text
