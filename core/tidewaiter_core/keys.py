"""How a configuration key is declared: one line per key, read like a table.

`settings` is written with it, `config` reads it. A key is a dataclass field; its type is the annotation, everything
else (default, scope, bounds, text) is an argument of `key`.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MISSING: Final = dataclasses.MISSING
_METADATA: Final = "tidewaiter.key"


class Scope(StrEnum):
    """Who may set a key."""

    IMAGE = "image"
    """Only the signed image: what it names is part of the device's security."""
    SITE = "site"
    """The hospital too, in /etc."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is known about one key besides its name and type."""

    scope: Scope
    doc: str
    default: Any = MISSING
    """MISSING: the image file has to set it."""
    hint: str = ""
    """For a key without default: what to set it to."""
    low: float | None = None
    high: float | None = None
    pattern: re.Pattern[str] | None = None
    """What a string, or each string of a list, has to look like as a whole."""
    expect: str = ""
    """The pattern in words."""
    only_restricts: bool = False
    """A site file can switch it off but not on again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A key whose value does not go together with another one."""

    key: str
    """`section.name` of the key to blame."""
    text: str
    """Continues `KEY = VALUE`, for example `is below the minimum of 60`."""


def _declare(scope: Scope, default: Any, doc: str, rest: dict[str, Any]) -> Any:
    pattern = rest.pop("pattern", None)
    described = Key(
        scope=scope,
        default=default,
        doc=doc,
        pattern=re.compile(pattern, re.ASCII) if pattern else None,
        **rest,
    )
    # mypy takes the annotated type from the field; dataclasses needs a field() with or without a default.
    if default is MISSING:
        return dataclasses.field(metadata={_METADATA: described})
    return dataclasses.field(default=default, metadata={_METADATA: described})


def image(default: Any, doc: str, **rest: Any) -> Any:
    """A key that only the image sets."""
    return _declare(Scope.IMAGE, default, doc, rest)


def required(doc: str, *, hint: str, **rest: Any) -> Any:
    """A key that the image has to set because there is no sensible default."""
    return _declare(Scope.IMAGE, MISSING, doc, {**rest, "hint": hint})


def site(default: Any, doc: str, **rest: Any) -> Any:
    """A key that a site file can set as well."""
    return _declare(Scope.SITE, default, doc, rest)


def describe(field: dataclasses.Field[Any]) -> Key:
    """What `field` was declared with."""
    found = field.metadata[_METADATA]
    assert isinstance(found, Key)  # noqa: S101 - only this module writes the metadata
    return found
