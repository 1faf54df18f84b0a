"""What the state directory of a powered-off device says, read without the product."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.faults.crash_explorer.watch import Facts
from tests.sim.storage import Content


def document(content: Content, folder: Path, name: str) -> Mapping[str, Any]:
    """A state document, empty when absent or damaged: then it is a lost hint."""
    return _parsed(content.get(("file", f"{folder}/{name}.json"), b"{}"))


def remembered(content: Content, folder: Path) -> Facts:
    """The promises that storage holds when a device is switched on."""
    floors = document(content, folder, "floor")
    return Facts(
        floor_sequence=_number(floors.get("sequence")),
        floor_epoch=_number(floors.get("security_epoch")),
        quarantined=frozenset(document(content, folder, "quarantine").get("order", ())),
    )


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


@lru_cache(maxsize=4096)
def _parsed(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
