"""Reads one object of a signed JSON document: every field typed and bounded, every other key refused.

`Fields` remembers where it is, so that an error names the place (`components[0].index.length`), and which
keys were asked for, so that `finish` can refuse the rest. Keys that start with `x_` are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from tidewaiter_core.model import Sha256
from tidewaiter_core.payload.errors import ReleaseSchemaError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
"""Products, boards, health checks, components."""
TEXT_LIMIT = 256
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*", re.ASCII)
_PATH_LIMIT = 200
_UTC = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?Z", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROL_BUT_NEWLINE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029]")

_Choice = TypeVar("_Choice", bound=StrEnum)
_ABSENT: Any = object()


def shown(value: object) -> str:
    """A value for an error message: escaped, on one line, short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def is_target_path(text: str) -> bool:
    """Whether `text` is a repository path: plain characters, no segment empty or with a dot first."""
    return len(text) <= _PATH_LIMIT and _PATH.fullmatch(text) is not None


class Fields:
    """One JSON object being read."""

    def __init__(self, value: object, *, where: str) -> None:
        if not isinstance(value, dict):
            raise ReleaseSchemaError(
                f"release.json: {where or 'top'}: expected an object, found {shown(value)}; refused"
            )
        self._values: Mapping[str, Any] = value
        self._where = where
        self._asked: set[str] = set()

    def finish(self) -> None:
        """Refuse every key nobody asked for: this program would ignore what the signer meant."""
        unknown = sorted(key for key in self._values if key not in self._asked and not key.startswith("x_"))
        if unknown:
            self._refuse(unknown[0], "unknown key; only keys that start with x_ may be added")

    def has(self, key: str) -> bool:
        """Whether an optional field is there."""
        self._asked.add(key)
        return key in self._values

    def integer(self, key: str, *, low: int, high: int) -> int:
        value = self._take(key)
        if type(value) is not int or not low <= value <= high:
            self._refuse(key, f"expected an integer in {low}..{high}, found {shown(value)}")
        return value

    def boolean(self, key: str) -> bool:
        value = self._take(key)
        if type(value) is not bool:
            self._refuse(key, f"expected true or false, found {shown(value)}")
        return value

    def text(
        self,
        key: str,
        *,
        pattern: re.Pattern[str] | None = None,
        low: int = 1,
        high: int = TEXT_LIMIT,
        lines: bool = False,
    ) -> str:
        """A string of `low`..`high` characters without control characters; `lines` allows line feeds."""
        value = self._take(key)
        if not isinstance(value, str) or not low <= len(value) <= high:
            self._refuse(key, f"expected {low}..{high} characters, found {shown(value)}")
        if (_CONTROL_BUT_NEWLINE if lines else _CONTROL).search(value):
            self._refuse(key, f"control character in {shown(value)}")
        if pattern is not None and not pattern.fullmatch(value):
            self._refuse(key, f"expected text of the form {pattern.pattern}, found {shown(value)}")
        return value

    def choice(self, key: str, kind: type[_Choice]) -> _Choice:
        value = self._take(key)
        if not isinstance(value, str) or value not in {str(member) for member in kind}:
            self._refuse(key, f"expected one of {', '.join(kind)}; found {shown(value)}")
        return kind(value)

    def digest(self, key: str) -> Sha256:
        return Sha256(self.text(key, pattern=_DIGEST))

    def digests(self, key: str, *, count: int) -> tuple[Sha256, ...]:
        """Exactly `count` digests; equal ones are allowed."""
        items = self._list(key, low=count, high=count)
        one_by_one = Fields({str(number): item for number, item in enumerate(items)}, where=self._place(key))
        return tuple(one_by_one.digest(str(number)) for number in range(count))

    def path(self, key: str) -> str:
        value = self.text(key, high=_PATH_LIMIT)
        if not is_target_path(value):
            self._refuse(
                key, f"{shown(value)} is no repository path (no dot first, no empty part, [A-Za-z0-9._+/-])"
            )
        return value

    def utc(self, key: str) -> datetime:
        """An RFC 3339 time that ends in Z."""
        value = self.text(key, high=32)
        match = _UTC.fullmatch(value)
        if match is None:
            self._refuse(key, f"expected a UTC time like 2026-01-31T12:00:00Z, found {shown(value)}")
        year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
        microsecond = int((match.group(7) or "").ljust(6, "0"))
        try:
            return datetime(year, month, day, hour, minute, second, microsecond, tzinfo=UTC)
        except ValueError as err:
            raise ReleaseSchemaError(
                f"release.json: {self._place(key)}: {shown(value)} is no date: {err}; the release is refused"
            ) from err

    def object(self, key: str) -> Fields:
        return Fields(self._take(key), where=self._place(key))

    def nothing(self, key: str) -> bool:
        """Whether a required field that may be null is null."""
        return self._take(key) is None

    def objects(self, key: str, *, low: int, high: int) -> list[Fields]:
        return [
            Fields(item, where=f"{self._place(key)}[{number}]")
            for number, item in enumerate(self._list(key, low=low, high=high))
        ]

    def texts(
        self, key: str, *, low: int, high: int, pattern: re.Pattern[str] | None = None
    ) -> tuple[str, ...]:
        """A list of different strings."""
        items = self._list(key, low=low, high=high)
        one_by_one = Fields({str(number): item for number, item in enumerate(items)}, where=self._place(key))
        result = tuple(one_by_one.text(str(number), pattern=pattern) for number in range(len(items)))
        if len(set(result)) != len(result):
            self._refuse(key, f"an entry occurs twice in {shown(list(result))}")
        return result

    def keys(self, key: str, *, high: int, pattern: re.Pattern[str]) -> tuple[Fields, tuple[str, ...]]:
        """An object whose keys are data: itself and its keys, each of the form `pattern`."""
        inner = self.object(key)
        names = tuple(name for name in inner._values if not name.startswith("x_"))
        if len(names) > high:
            self._refuse(key, f"{len(names)} entries, at most {high} are allowed")
        for name in names:
            if not pattern.fullmatch(name):
                self._refuse(key, f"expected keys of the form {pattern.pattern}, found {shown(name)}")
        return inner, names

    def refuse(self, key: str, finding: str) -> NoReturn:
        """Raise for a rule that spans fields."""
        self._refuse(key, finding)

    def _list(self, key: str, *, low: int, high: int) -> list[Any]:
        value = self._take(key)
        if not isinstance(value, list) or not low <= len(value) <= high:
            self._refuse(key, f"expected a list of {low}..{high} entries, found {shown(value)}")
        return value

    def _take(self, key: str) -> Any:
        self._asked.add(key)
        value = self._values.get(key, _ABSENT)
        if value is _ABSENT:
            self._refuse(key, "missing")
        return value

    def _place(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def _refuse(self, key: str, finding: str) -> NoReturn:
        raise ReleaseSchemaError(
            f"release.json: {shown(self._place(key))[1:-1]}: {finding}; the release is refused"
        )
