"""Refusals and accidents at the outer edge of both applications, against a real database."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from starlette.types import Receive, Scope, Send
from tidewaiter_server import db
from tidewaiter_server.boundary import Boundary, from_starlette, render_problem
from tidewaiter_server.db import Database
from tidewaiter_server.errors import Denial, Refusal
from tidewaiter_server.schema import server_audit

from tests.sim.clock import FakeClock


class Edge:
    """A boundary around an application that refuses everything."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = FakeClock()
        self.actor = "address:192.0.2.7"
        self.boundary = Boundary(
            self._refuse, database=database, clock=self.clock, render=render_problem, translate=from_starlette
        )

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        denial = Denial(kind="login.failed", actor=self.actor, object=scope["path"])
        raise Refusal(401, "login.failed", "unknown token", denial=denial)

    def ask(self, count: int = 1) -> list[int]:
        return [asyncio.run(self._ask()) for _ in range(count)]

    async def _ask(self) -> int:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.boundary({"type": "http", "path": "/x", "method": "GET", "headers": []}, receive, send)
        return int(sent[0]["status"])

    def records(self) -> list[dict[str, Any]]:
        found = self.database.read_now(lambda c: c.execute(select(server_audit)).mappings().all())
        return [json.loads(row["fields"]) for row in found]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    db.create(tmp_path)
    database = Database(tmp_path)
    yield Edge(database)
    database.close()


def test_each_denial_of_an_honest_caller_leaves_one_record(edge: Edge) -> None:
    assert edge.ask(10) == [401] * 10
    assert len(edge.records()) == 10


def test_a_flood_of_denials_does_not_grow_the_audit_chain(edge: Edge) -> None:
    answers = edge.ask(300)
    assert answers[-1] == 429
    assert len(edge.records()) <= 60


def test_denials_that_were_not_recorded_are_counted_in_the_next_record(edge: Edge) -> None:
    answers = edge.ask(100)
    edge.clock.advance(60)
    edge.ask()
    assert edge.records()[-1]["unrecorded"] == answers.count(429)


def test_a_flood_from_many_addresses_is_bounded_too(edge: Edge) -> None:
    for number in range(400):
        edge.actor = f"address:2001:db8::{number:x}"
        edge.ask()
    assert len(edge.records()) <= 320
