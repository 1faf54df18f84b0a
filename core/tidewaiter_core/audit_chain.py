"""The state of an audit log after some records: next number, last hash and the frontier of the RFC 6962
tree. Pure.

`prev_sha256` gives a cheap local order; the tree lets old segments be pruned without losing proofs, and its
root is what a checkpoint signs. Both advance together, one line at a time. Source: security-and-audit.md
section 4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from tidewaiter_core import strictjson
from tidewaiter_core.audit_record import GENESIS, RecordError, canonical, parse_line, sha256

_EMPTY_ROOT = hashlib.sha256(b"").digest()
_HEIGHT_LIMIT = 64


class ChainError(ValueError):
    """A well-formed record that does not continue this log; the text says how it differs."""


class Frontier:
    """Roots of the complete subtrees, largest first: all that is needed to add leaves and to know the
    root.
    """

    def __init__(self, nodes: list[tuple[int, bytes]] | None = None) -> None:
        self.nodes = list(nodes or [])

    def add(self, line: bytes) -> None:
        """Append the leaf of `line`."""
        height, node = 0, hashlib.sha256(b"\0" + line).digest()
        while self.nodes and self.nodes[-1][0] == height:
            _, left = self.nodes.pop()
            height, node = height + 1, hashlib.sha256(b"\1" + left + node).digest()
        self.nodes.append((height, node))

    @property
    def size(self) -> int:
        return sum(1 << height for height, _ in self.nodes)

    def root(self) -> bytes:
        """The tree head over all leaves so far."""
        if not self.nodes:
            return _EMPTY_ROOT
        root = self.nodes[-1][1]
        for _, left in reversed(self.nodes[:-1]):
            root = hashlib.sha256(b"\1" + left + root).digest()
        return root


class Chain:
    """One log's state. `component` is what every record must say."""

    def __init__(
        self,
        component: str,
        *,
        next_seq: int = 0,
        prev_sha256: str = GENESIS,
        frontier: Frontier | None = None,
        utc_last: str = "",
    ) -> None:
        self.component = component
        self.next_seq = next_seq
        self.prev_sha256 = prev_sha256
        self.frontier = frontier or Frontier()
        self.utc_last = utc_last

    def accept(self, line: bytes) -> dict[str, Any]:
        """Check that `line` is the next record, and advance.

        Raises:
            RecordError: Not a record at all.
            ChainError: A record, but not the next one of this log.
        """
        record = parse_line(line)
        if record["seq"] != self.next_seq:
            raise ChainError(f"seq is {record['seq']}, expected {self.next_seq}")
        if record["prev_sha256"] != self.prev_sha256:
            raise ChainError(f"prev_sha256 is not the hash of the record before (seq {record['seq']})")
        if record["component"] != self.component:
            raise ChainError(f"component is {record['component']}, expected {self.component}")
        self.advance(line, utc=record["utc"])
        return record

    def advance(self, line: bytes, *, utc: str) -> None:
        """Count `line`, which this program wrote itself."""
        self.next_seq += 1
        self.prev_sha256 = sha256(line)
        self.frontier.add(line)
        self.utc_last = utc

    def end_document(self) -> bytes:
        """The content of a segment's `.end` file."""
        nodes = [[height, node.hex()] for height, node in self.frontier.nodes]
        return (
            canonical(
                {
                    "schema": 1,
                    "size": self.next_seq,
                    "prev_sha256": self.prev_sha256,
                    "frontier": nodes,
                    "utc_last": self.utc_last,
                }
            )
            + b"\n"
        )

    @classmethod
    def from_end_document(cls, component: str, data: bytes) -> Chain:
        """The state that `end_document` wrote; RecordError if it is damaged or contradicts itself."""
        try:
            document = strictjson.loads(data, limit_bytes=16 * 1024, depth=4)
        except strictjson.StrictJsonError as err:
            raise RecordError(f"end file: {err}") from err
        if not isinstance(document, dict):
            raise RecordError("end file: not a JSON object")
        try:
            chain = cls(
                component,
                next_seq=_number(document["size"]),
                prev_sha256=bytes.fromhex(document["prev_sha256"]).hex(),
                frontier=Frontier([_node(height, text) for height, text in document["frontier"]]),
                utc_last=str(document["utc_last"]),
            )
        except (KeyError, TypeError, ValueError) as err:
            raise RecordError(f"end file: a field is missing or out of range: {err}") from err
        heights = [height for height, _ in chain.frontier.nodes]
        if chain.frontier.size != chain.next_seq or heights != sorted(set(heights), reverse=True):
            raise RecordError(f"end file: its tree does not have the {chain.next_seq} records it claims")
        return chain


def origin_of(record: Mapping[str, Any]) -> str:
    """The log identity that an audit.opened record states; empty for any other record."""
    origin = record["fields"].get("origin") if record["kind"] == "audit.opened" else None
    return origin if isinstance(origin, str) else ""


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a count")
    return value


def _node(height: Any, text: Any) -> tuple[int, bytes]:
    digest = bytes.fromhex(text)
    if _number(height) >= _HEIGHT_LIMIT or len(digest) != 32:
        raise ValueError("not a tree node")
    return height, digest
