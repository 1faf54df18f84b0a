"""Values of the options of `build`, as a person writes them; anything else is an argparse.ArgumentTypeError."""

from __future__ import annotations

import argparse
import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

from tidewaiter_core.clock import parse_utc
from tidewaiter_core.model import SlotName

_NOTE = re.compile(r"([A-Za-z]{2,3}(?:-[A-Za-z0-9]{2,8})*)=(.+)", re.DOTALL)


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE."""
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, found {text!r}")
    return name, value


def firmware_file(text: str) -> tuple[str, Path, str | None]:
    """BOARD=FILE[@VERSION]."""
    board, value = pair(text)
    file, found, version = value.rpartition("@")
    return (board, Path(file), version) if found else (board, Path(value), None)


def firmware_range(text: str) -> tuple[str, tuple[str, str]]:
    """BOARD=MIN..MAX."""
    board, value = pair(text)
    low, found, high = value.partition("..")
    if not (low and found and high):
        raise argparse.ArgumentTypeError(f"expected BOARD=MIN..MAX, found {text!r}")
    return board, (low, high)


def verity(text: str) -> dict[str, Any]:
    """ROOT_HASH:SALT:DATA_BYTES:HASH_OFFSET."""
    try:
        root_hash, salt, data_bytes, hash_offset = text.split(":")
        return {
            "root_hash": root_hash.lower(),
            "salt": "" if salt == "-" else salt.lower(),
            "data_bytes": int(data_bytes),
            "hash_offset": int(hash_offset),
        }
    except ValueError as err:
        raise argparse.ArgumentTypeError(
            f"expected ROOT_HASH:SALT:DATA_BYTES:HASH_OFFSET, found {text!r}"
        ) from err


def percent(text: str) -> int:
    """0..100 with at most two decimals, in hundredths."""
    match = re.fullmatch(r"([0-9]{1,3})(?:\.([0-9]{1,2}))?", text, re.ASCII)
    hundredths = int(match.group(1)) * 100 + int((match.group(2) or "").ljust(2, "0")) if match else -1
    if not 0 <= hundredths <= 10_000:
        raise argparse.ArgumentTypeError(f"expected 0..100 with at most two decimals, found {text!r}")
    return hundredths


def salt(text: str) -> str:
    """32 hexadecimal digits."""
    if not re.fullmatch(r"[0-9a-f]{32}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected 32 hexadecimal digits, found {text!r}")
    return text


def own_field(text: str) -> tuple[str, Any]:
    """x_NAME=JSON."""
    name, value = pair(text)
    if not name.startswith("x_"):
        raise argparse.ArgumentTypeError(f"expected a name that begins with x_, found {name!r}")
    try:
        return name, json.loads(value)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"{name}: no JSON: {err}") from err


def names(text: str) -> tuple[str, ...]:
    """A,B."""
    return tuple(name for name in text.split(",") if name)


def schema_range(text: str) -> tuple[int, int]:
    """MIN-MAX, or one number for both."""
    low, _, high = text.partition("-")
    try:
        return int(low), int(high or low)
    except ValueError as err:
        raise argparse.ArgumentTypeError(f"expected MIN-MAX, found {text!r}") from err


def uki_file(text: str) -> tuple[SlotName, Path]:
    """A=FILE or B=FILE."""
    slot, equals, path = text.partition("=")
    if slot not in ("A", "B") or not equals or not path:
        raise argparse.ArgumentTypeError(f"expected A=FILE or B=FILE, found {text!r}")
    return SlotName(slot), Path(path)


def note(text: str) -> tuple[str, str]:
    """LANG=TEXT."""
    match = _NOTE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected LANG=TEXT, found {text!r}")
    return match.group(1), match.group(2)


def utc(text: str) -> datetime:
    """A time of RFC 3339 in UTC."""
    try:
        return parse_utc(text)
    except ValueError as err:
        raise argparse.ArgumentTypeError(str(err)) from err
