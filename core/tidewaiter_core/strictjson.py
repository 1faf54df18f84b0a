"""JSON from outside, read strictly: one spelling rule for IPC messages, poll answers and audit lines.

The standard parser is too kind for input that an attacker or a proxy may have written. It keeps the last of
two equal keys (two readers then disagree about one document), accepts NaN, returns infinity for 1e999, and
lets half a surrogate pair through that later fails to encode in a log line. All of this is refused here, and
so is nesting deeper than the reader expects.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn


class StrictJsonError(ValueError):
    """The bytes are not the kind of JSON this product reads; the text says what was found."""


def loads(data: bytes, *, limit_bytes: int, depth: int) -> Any:
    """Parse `data`; refuse more than `limit_bytes`, nesting beyond `depth`, duplicate keys and values JSON
    cannot carry.

    Raises:
        StrictJsonError: Always this one, also for what the parser reports as RecursionError.
    """
    if len(data) > limit_bytes:
        raise StrictJsonError(f"{len(data)} bytes, the limit is {limit_bytes}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as err:
        raise StrictJsonError(f"not UTF-8 at byte {err.start}") from err
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError as err:
        raise StrictJsonError(f"nested deeper than {depth} levels") from err
    except StrictJsonError:
        raise
    except json.JSONDecodeError as err:
        raise StrictJsonError(f"not JSON at character {err.pos}: {err.msg}") from err
    except ValueError as err:  # an integer with more digits than the interpreter converts
        raise StrictJsonError(f"not usable JSON: {err}") from err
    check(value, depth=depth)
    return value


def check(value: Any, *, depth: int) -> None:
    """Refuse what parsed (or what is about to be sent) but has no single meaning: deep nesting, infinity,
    lone surrogates.

    Iterative on purpose: the value may be as deep as an attacker likes.
    """
    pending = [(value, 1)]
    while pending:
        item, level = pending.pop()
        if isinstance(item, str):
            _check_text(item)
        elif isinstance(item, float):
            if not math.isfinite(item):
                raise StrictJsonError("a number that is not finite")
        elif isinstance(item, dict | list):
            if level > depth:
                raise StrictJsonError(f"nested deeper than {depth} levels")
            if isinstance(item, dict):
                for key in item:
                    _check_text(key)
                pending.extend((child, level + 1) for child in item.values())
            else:
                pending.extend((child, level + 1) for child in item)


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise StrictJsonError("text with half a surrogate pair") from err


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise StrictJsonError(f"key {key[:64]!r} stands twice in one object")
        result[key] = value
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise StrictJsonError(f"{name} is not JSON")
