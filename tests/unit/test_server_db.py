"""The writer: durable before the answer, one job's error is its own, one process per directory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, text
from tidewaiter_core.errors import SecondInstanceError, StateError
from tidewaiter_server import audit, db
from tidewaiter_server.errors import Refusal, ServerError
from tidewaiter_server.schema import api_tokens, server_audit

from tests.sim.clock import FakeClock


def token(connection: Connection, name: str) -> str:
    connection.execute(insert(api_tokens).values(sha256=name, name=name, permissions="[]", created_utc=""))
    return name


def names(database: db.Database) -> list[str]:
    query = select(api_tokens.c.name).order_by(api_tokens.c.name)
    return list(database.read_now(lambda connection: connection.execute(query).scalars().all()))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    db.create(tmp_path)
    return tmp_path


def test_a_failing_job_is_undone_alone(directory: Path) -> None:
    database = db.Database(directory)

    def fail(connection: Connection) -> None:
        token(connection, "undone")
        raise ServerError("on purpose")

    async def together() -> list[object]:
        answers = await asyncio.gather(
            database.write(lambda c: token(c, "a")),
            database.write(fail),
            database.write(lambda c: token(c, "b")),
            return_exceptions=True,
        )
        return list(answers)

    first, failed, last = asyncio.run(together())
    assert (first, last) == ("a", "b")
    assert isinstance(failed, ServerError)
    assert names(database) == ["a", "b"]
    database.close()


def test_a_thousand_writes_at_once_keep_the_chain_whole(directory: Path) -> None:
    database, clock = db.Database(directory), FakeClock()

    async def together() -> list[int]:
        jobs = [
            database.write(lambda c, n=n: audit.append(c, clock, "test", actor="t", object=str(n)))  # type: ignore[misc]
            for n in range(1000)
        ]
        return await asyncio.gather(*jobs)

    assert sorted(asyncio.run(together())) == list(range(1000))
    assert database.read_now(audit.verify) == []
    database.close()


def test_a_second_process_is_refused(directory: Path) -> None:
    database = db.Database(directory)
    with pytest.raises(SecondInstanceError):
        db.Database(directory)
    database.close()
    db.Database(directory).close()


def test_a_missing_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="init"):
        db.Database(tmp_path)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "tidewaiter.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match="left as it is"):
        db.Database(tmp_path)
    assert (tmp_path / "tidewaiter.db").read_bytes() == b"not a database" * 100


def test_a_database_of_another_schema_is_refused(directory: Path) -> None:
    database = db.Database(directory)
    database.write_now(lambda c: c.execute(text("PRAGMA user_version = 2")) and None)
    database.close()
    with pytest.raises(StateError, match="newer server"):
        db.Database(directory)


def test_an_answered_write_survives_without_a_clean_close(directory: Path) -> None:
    database = db.Database(directory)
    database.write_now(lambda c: token(c, "kept"))
    other = db._engine(directory / "tidewaiter.db")
    with other.connect() as connection:
        assert connection.execute(select(func.count()).select_from(api_tokens)).scalar_one() == 1
        assert connection.execute(text("PRAGMA synchronous")).scalar_one() == 2
    other.dispose()
    database.close()


def test_a_records_fields_are_bounded(directory: Path) -> None:
    database, clock = db.Database(directory), FakeClock()
    database.write_now(
        lambda c: audit.append(c, clock, "k", actor="a", object="o" * 999, fields={"x": "y" * 999})
    )
    row = database.read_now(lambda c: c.execute(select(server_audit)).one())
    assert len(row.object) == 256
    assert len(row.fields) < 300
    database.close()


def test_a_full_disk_is_503_stores_nothing_and_heals(directory: Path) -> None:
    database = db.Database(directory)
    limit = text("PRAGMA max_page_count = 1")  # SQLite then says what it says on a full disk
    database.write_now(lambda c: c.execute(limit) and None)

    def much(connection: Connection) -> None:
        for number in range(500):
            token(connection, f"{number:0200d}")

    with pytest.raises(Refusal) as refused:
        database.write_now(much)
    assert (refused.value.status, refused.value.code) == (503, "db.busy")
    assert "full" in str(refused.value)
    assert names(database) == []
    database.write_now(lambda c: c.execute(text("PRAGMA max_page_count = 1000000")) and None)
    database.write_now(much)
    assert len(names(database)) == 500
    database.close()
