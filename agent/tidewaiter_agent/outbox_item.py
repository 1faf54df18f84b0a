"""One message of the outbox: its values, its budget class and its file. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tidewaiter_core import strictjson
from tidewaiter_core.errors import StateError

from tidewaiter_agent.errors import OutboxFullError

SCHEMA = 1
ITEM_LIMIT_BYTES = 64 * 1024


class ItemClass(StrEnum):
    """Kinds of items, in the order they are sent."""

    FEEDBACK = "feedback"
    TELEMETRY = "telemetry"


@dataclass(frozen=True, slots=True)
class Budget:
    """Room of one class."""

    items: int
    bytes: int


BUDGETS: Mapping[ItemClass, Budget] = {
    ItemClass.FEEDBACK: Budget(256, 1024 * 1024),
    ItemClass.TELEMETRY: Budget(4096, 8 * 1024 * 1024),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One message to the server."""

    id: str
    """Idempotency key."""
    kind: ItemClass
    rel: str
    """Which link of the base poll it goes to."""
    path_args: Mapping[str, str]
    body: Mapping[str, Any]
    method: str = "POST"
    group: str = ""
    """A newer item of the same group replaces an older one that is still waiting (progress of one action)."""
    final: bool = False
    """Never dropped, and its id is remembered after delivery."""
    stamp: Mapping[str, Any] | None = None
    """When it was made: created_utc, boot_id, boottime_ms, clock_state."""


def encode(item: Item) -> bytes:
    """The file of `item`; OutboxFullError when it is too large to be sent."""
    document = {
        "schema": SCHEMA,
        "id": item.id,
        "class": item.kind,
        "method": item.method,
        "rel": item.rel,
        "path_args": dict(item.path_args),
        "body": dict(item.body),
        "group": item.group,
        "final": item.final,
        **(item.stamp or {}),
    }
    data = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
    if len(data) > ITEM_LIMIT_BYTES:
        raise OutboxFullError(
            f"outbox item {item.id}: {len(data)} bytes, the limit is {ITEM_LIMIT_BYTES}; not queued",
            code="outbox.item-too-large",
            retryable=False,
        )
    return data


def decode(data: bytes, kind: ItemClass) -> Item:
    """Read a file back.

    Raises:
        ValueError: Torn or foreign.
        StateError: Written by a newer program; it is left alone.
    """
    document = strictjson.loads(data, limit_bytes=2 * ITEM_LIMIT_BYTES, depth=16)
    if not isinstance(document, dict) or type(document.get("schema")) is not int:
        raise ValueError("not an item")
    if document["schema"] > SCHEMA:
        raise StateError(f"written by a newer program (schema {document['schema']})")
    try:
        stamp = {
            k: document[k] for k in ("created_utc", "boot_id", "boottime_ms", "clock_state") if k in document
        }
        item = Item(
            id=_text(document["id"]),
            kind=ItemClass(document["class"]),
            rel=_text(document["rel"]),
            path_args={_text(k): _text(v) for k, v in document["path_args"].items()},
            body=dict(document["body"]),
            method=_text(document["method"]),
            group=_text(document["group"]),
            final=document["final"] is True,
            stamp=stamp,
        )
    except (KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"a member is missing or wrong: {err}") from err
    if item.kind is kind:
        return item
    raise ValueError(f"class {item.kind} in the folder of {kind}")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {type(value).__name__}")
    return value
