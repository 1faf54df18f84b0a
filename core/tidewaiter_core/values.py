"""Turn a TOML value into the type a key declares, or say what is wrong with it. Knows types, not files."""

from __future__ import annotations

import dataclasses
import json
import types
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, get_args, get_origin, get_type_hints

from tidewaiter_core.keys import Key

_STRING_LIMIT: Final = 4096
_LIST_LIMIT: Final = 256
_TOML_NAMES: Final = {
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "a list",
    dict: "a table",
}


class ValueProblem(Exception):
    """Why a value does not fit its key; continues `KEY = VALUE` and never leaves `config`."""


def show(value: Any) -> str:
    """`value` in TOML notation on one line, safe to print."""
    if value is None:
        return '""'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(show(item) for item in value) + "]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {show(item)}" for name, item in value.items()) + "}"
    return json.dumps(str(value), ensure_ascii=True)


def convert(value: Any, kind: Any, key: Key) -> Any:
    """`value` as `kind`, held against the bounds of `key`.

    Raises:
        ValueProblem: It does not fit; the text continues `KEY = VALUE`.
    """
    if get_origin(kind) is tuple:
        return _tuple(value, get_args(kind)[0], key)
    if get_origin(kind) in (types.UnionType,) or kind == (Path | None):
        return None if value == "" else _path(value)
    if kind is Path:
        return _path(value)
    if dataclasses.is_dataclass(kind):
        return _record(value, kind, key)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _choice(value, kind)
    # bool is an int in Python; in a configuration `retries = true` is a mistake.
    if type(value) is not kind:
        raise ValueProblem(f"is expected to be {_TOML_NAMES[kind]}, found {_name(value)}")
    if kind is int:
        _check_bounds(value, key)
    if kind is str:
        _check_text(value, key)
    return value


def _name(value: Any) -> str:
    return _TOML_NAMES.get(type(value), "a date or time")


def _tuple(value: Any, item_kind: Any, key: Key) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise ValueProblem(f"is expected to be a list, found {_name(value)}")
    if len(value) > _LIST_LIMIT:
        raise ValueProblem(f"has {len(value)} items, the maximum is {_LIST_LIMIT}")
    items = tuple(convert(item, item_kind, key) for item in value)
    if len(set(items)) != len(items):
        raise ValueProblem("contains an item twice")
    return items


def _path(value: Any) -> Path:
    if not isinstance(value, str):
        raise ValueProblem(f"is expected to be an absolute path, found {_name(value)}")
    if not value.startswith("/") or "\0" in value or len(value) > _STRING_LIMIT:
        raise ValueProblem("is expected to be an absolute path")
    if ".." in Path(value).parts:
        raise ValueProblem('is expected to be a path without ".."')
    return Path(value)


def _record(value: Any, kind: Any, key: Key) -> Any:
    hints = get_type_hints(kind)
    if not isinstance(value, dict) or value.keys() != hints.keys():
        raise ValueProblem(f"is expected to have tables with the keys {', '.join(hints)} and no others")
    return kind(**{name: convert(value[name], hint, key) for name, hint in hints.items()})


def _choice(value: Any, kind: type[StrEnum]) -> StrEnum:
    try:
        return kind(value)
    except ValueError as err:
        raise ValueProblem("is expected to be one of " + ", ".join(f'"{member}"' for member in kind)) from err


def _check_bounds(value: int, key: Key) -> None:
    if key.low is not None and value < key.low:
        raise ValueProblem(f"is below the minimum of {key.low}")
    if key.high is not None and value > key.high:
        raise ValueProblem(f"is above the maximum of {key.high}")


def _check_text(value: str, key: Key) -> None:
    if len(value) > _STRING_LIMIT or not value.isprintable():
        raise ValueProblem(f"is expected to be printable and at most {_STRING_LIMIT} characters long")
    if key.pattern is None:
        if key.hint and not value.strip():
            raise ValueProblem("must not be empty")
    elif not key.pattern.fullmatch(value):
        raise ValueProblem(f"does not match; expected {key.expect or key.pattern.pattern}")
