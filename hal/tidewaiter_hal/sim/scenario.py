"""Scenario files: what happens to the simulated injector and when.

[[step]]
at_ms = 2000          # after the start
do = "load"           # or: set = { power = 3 }, or: fault = { name = "wrong_seq", count = "3" }, or: line = "unplug"
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_KINDS = ("do", "set", "fault", "line")


class ScenarioError(ValueError):
    """The file is no scenario; nothing was started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that happens."""

    at_s: float
    kind: str
    name: str
    values: Mapping[str, str]
    on: bool = True


def load(path: Path) -> list[Step]:
    """All steps in order of time. Raises ScenarioError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ScenarioError(f"{path}: {err}") from err
    if set(document) - {"step"}:
        raise ScenarioError(
            f"{path}: only [[step]] is known, found {', '.join(sorted(set(document) - {'step'}))}"
        )
    steps = [_step(path, number, raw) for number, raw in enumerate(document.get("step", []), start=1)]
    return sorted(steps, key=_time)


def _time(step: Step) -> float:
    return step.at_s


def _step(path: Path, number: int, raw: Any) -> Step:
    where = f"{path}: step {number}"
    kinds = [kind for kind in _KINDS if isinstance(raw, dict) and kind in raw]
    if len(kinds) != 1 or set(raw) - {"at_ms", *_KINDS}:
        raise ScenarioError(f"{where}: at_ms and exactly one of {', '.join(_KINDS)} were expected")
    at_ms = raw.get("at_ms")
    if isinstance(at_ms, bool) or not isinstance(at_ms, int) or at_ms < 0:
        raise ScenarioError(f"{where}: at_ms must be a number of milliseconds, found {at_ms!r}")
    kind, value = kinds[0], raw[kinds[0]]
    if kind in ("do", "line"):
        if not isinstance(value, str):
            raise ScenarioError(f"{where}: {kind} must be a text")
        return Step(at_s=at_ms / 1000, kind=kind, name=value, values={})
    if not isinstance(value, dict):
        raise ScenarioError(f"{where}: {kind} must be a table")
    if kind == "set":
        texts = {key: item if item == "reset" else json.dumps(item) for key, item in value.items()}
        return Step(at_s=at_ms / 1000, kind=kind, name="", values=texts)
    texts = {key: str(item) for key, item in value.items() if key not in ("name", "on")}
    return Step(
        at_s=at_ms / 1000,
        kind=kind,
        name=str(value.get("name", "")),
        values=texts,
        on=bool(value.get("on", True)),
    )
