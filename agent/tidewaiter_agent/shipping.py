"""Ships the raw lines of the audit chains: no copy is made, a cursor per chain says what the server has.

A fork (the server holds another line under one number) freezes the chain's shipping: both versions are evidence, and neither side
may overwrite the other's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tidewaiter_core import strictjson
from tidewaiter_core.audit import read_records
from tidewaiter_core.durable import load_document, save_document
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_agent.exchange import Reply, Transport

logger = logging.getLogger(__name__)

SCHEMA = 1
BATCH_BYTES = 1024 * 1024
BATCH_RECORDS = 2000
ANSWER_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far one chain was shipped."""

    next_seq: int = 0
    state: str = "ok"
    """ok, fork or unreadable."""


class Shipper:
    """Takes turns over the chains; one batch per call."""

    def __init__(
        self,
        chains: Mapping[str, Path],
        *,
        state_file: Path,
        transport: Transport,
        on_finding: Callable[[str, str], None],
    ) -> None:
        """Load the cursors; StateError leaves the file alone."""
        self._chains = dict(chains)
        self._state_file = state_file
        self._transport = transport
        self._on_finding = on_finding
        self._order = list(chains)
        document = load_document(state_file, schema=SCHEMA) or {}
        stored = document.get("cursors", {})
        self._cursors = {
            name: Cursor(
                next_seq=int(stored.get(name, {}).get("next_seq", 0)),
                state=str(stored.get(name, {}).get("state", "ok")),
            )
            for name in chains
        }

    def cursors(self) -> Mapping[str, Cursor]:
        """How far each chain was shipped."""
        return dict(self._cursors)

    def ship_next(self, base_path: str) -> Reply | None:
        """Send one batch of the first chain that has something new; None when the server has everything."""
        for component in tuple(self._order):
            cursor = self._cursors[component]
            if cursor.state == "fork":
                continue
            lines = list(_batch(self._lines(component, cursor.next_seq)))
            if not lines:
                continue
            reply = self._transport.request(
                "POST",
                f"{base_path}/{component}?from={cursor.next_seq}",
                body=b"".join(line + b"\n" for line in lines),
                content_type="application/x-ndjson",
                limit_bytes=ANSWER_LIMIT_BYTES,
            )
            self._take(component, cursor, len(lines), reply)
            if self._cursors[component] == cursor:
                # Refused or not answered: the other chains have their turn first, one bad record holds up one chain only.
                self._order.remove(component)
                self._order.append(component)
            return reply
        return None

    def _lines(self, component: str, from_seq: int) -> Iterator[bytes]:
        try:
            yield from read_records(self._chains[component], from_seq=from_seq, limit=BATCH_RECORDS)
        except (OSError, TidewaiterError) as err:
            # Another component's folder may not exist yet or not be readable for us; its own daemon reports that.
            logger.debug("audit chain not readable component=%s: %s", component, err)

    def _take(self, component: str, cursor: Cursor, sent: int, reply: Reply) -> None:
        answer = _answer(reply)
        next_seq = answer.get("next_seq")
        if reply.status == 200 and isinstance(next_seq, int) and next_seq >= 0:
            self._move(component, Cursor(next_seq=next_seq))
        elif reply.status == 200:
            self._move(component, Cursor(next_seq=cursor.next_seq + sent))
        elif (
            reply.status == 409
            and answer.get("code") == "audit.gap"
            and isinstance(next_seq, int)
            and next_seq >= 0
        ):
            # The server lost records, or this device was restored: it says where it wants to go on.
            self._move(component, Cursor(next_seq=next_seq))
        elif reply.status == 409:
            self._move(component, Cursor(next_seq=cursor.next_seq, state="fork"))
            self._on_finding(
                "audit.fork",
                f"chain {component}: the server holds other records from number {cursor.next_seq} on; shipping is frozen, "
                "both versions are kept",
            )

    def _move(self, component: str, cursor: Cursor) -> None:
        if cursor == self._cursors[component]:
            return
        self._cursors[component] = cursor
        document = {
            "cursors": {name: {"next_seq": c.next_seq, "state": c.state} for name, c in self._cursors.items()}
        }
        save_document(self._state_file, document, schema=SCHEMA)


def _batch(lines: Iterator[bytes]) -> Iterator[bytes]:
    size = 0
    for line in lines:
        size += len(line) + 1
        if size > BATCH_BYTES:
            return
        yield line


def _answer(reply: Reply) -> dict[str, object]:
    try:
        value = strictjson.loads(reply.body, limit_bytes=ANSWER_LIMIT_BYTES, depth=8)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
