"""Finding the cause inside what requests and urllib3 wrapped around it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

_E = TypeVar("_E", bound=BaseException)


def _chain(err: BaseException) -> Iterator[BaseException]:
    """An exception and everything requests and urllib3 wrapped into it."""
    seen: set[int] = set()
    pending: list[BaseException] = [err]
    while pending:
        item = pending.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        yield item
        inner = [*item.args, getattr(item, "reason", None), item.__cause__, item.__context__]
        pending.extend(entry for entry in inner if isinstance(entry, BaseException))


def cause(err: BaseException, *kinds: type[_E]) -> _E | None:
    """The first exception of one of these kinds in the whole chain."""
    return next((item for item in _chain(err) if isinstance(item, kinds)), None)


def innermost_text(err: BaseException) -> str:
    """The innermost message: the outer ones carry object addresses and pool names."""
    innermost = list(_chain(err))[-1]
    return f"{type(innermost).__name__}: {innermost}"[:200]
