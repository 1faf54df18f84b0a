"""One writer thread with group commit, a few readers, and the lock that makes this the only process on the file.

Invariants:
1. A write is durable (`synchronous=FULL`, committed) before its caller gets the result.
2. Jobs that are waiting share one commit; a job that raises is undone alone (savepoint) and leaves no trace.
3. Nothing here runs on the event loop: callers await futures.
4. pysqlite's own lazy, deferred transactions are off (`isolation_level = None`): the writer says BEGIN IMMEDIATE, so a
   read-then-write can never end in SQLITE_BUSY regardless of the time-out.
"""

import asyncio
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.pool import QueuePool
from tidewaiter_core.durable import InstanceLock
from tidewaiter_core.errors import StateError

from tidewaiter_server import schema
from tidewaiter_server.errors import Refusal, ServerError

logger = logging.getLogger(__name__)

T = TypeVar("T")
_GROUP_LIMIT: Final = 500
_READERS: Final = 4
_QUEUE_LIMIT: Final = 4096
_FILE: Final = "tidewaiter.db"
_Job = tuple[Callable[[Connection], Any], "Future[Any]"]


def create(data_dir: Path) -> None:
    """A new, empty database of the present schema in `data_dir`; refuses one that exists."""
    path = data_dir / _FILE
    if path.exists():
        raise ServerError(f"{path}: exists already; `init` never touches a database, nothing was changed")
    engine = _engine(path)
    with engine.connect() as connection:
        connection.execute(text("BEGIN IMMEDIATE"))
        schema.metadata.create_all(connection, checkfirst=False)
        for table in schema.APPEND_ONLY:
            for verb in ("UPDATE", "DELETE"):
                connection.execute(
                    text(
                        f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table} "
                        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
                    )
                )
        connection.execute(text(f"PRAGMA user_version = {schema.VERSION}"))
        connection.execute(text("COMMIT"))
    engine.dispose()
    path.chmod(0o600)


class Database:
    """The open database of one server process."""

    def __init__(self, data_dir: Path) -> None:
        """Take the lock, check the schema, start the writer.

        Raises:
            SecondInstanceError: Another process owns this data directory.
            StateError: No database, or one of another schema; it is left as found.
        """
        self._path = data_dir / _FILE
        if not self._path.is_file():
            raise StateError(
                f"{self._path}: expected the database that `tidewaiter-server init` makes, found none; not started"
            )
        self._lock = InstanceLock(data_dir / "lock")
        self._lock.__enter__()
        self._engine = _engine(self._path)
        try:
            self._check_schema()
        except BaseException:
            self._engine.dispose()
            self._lock.__exit__(None, None, None)
            raise
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="db-read")
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_QUEUE_LIMIT)
        self._writer = threading.Thread(target=self._run_writer, name="db-write", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Finish what is queued, stop the writer, give up the lock."""
        self._jobs.put(None)
        self._writer.join()
        self._readers.shutdown()
        self._engine.dispose()
        self._lock.__exit__(None, None, None)

    async def write(self, job: Callable[[Connection], T]) -> T:
        """Run `job` in the writer's transaction; returns after the commit."""
        return await asyncio.wrap_future(self._submit(job))

    def write_now(self, job: Callable[[Connection], T]) -> T:
        """As `write`, for callers without a loop (the command line)."""
        return self._submit(job).result()

    async def read(self, job: Callable[[Connection], T]) -> T:
        """Run `job` on a reader's snapshot; it must not write."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, job)

    def read_now(self, job: Callable[[Connection], T]) -> T:
        """As `read`, in the calling thread."""
        with self._engine.connect() as connection:
            connection.execute(text("BEGIN"))
            try:
                return job(connection)
            finally:
                connection.execute(text("ROLLBACK"))

    def _submit(self, job: Callable[[Connection], T]) -> "Future[T]":
        future: Future[T] = Future()
        try:
            self._jobs.put_nowait((job, future))
        except queue.Full as error:
            raise Refusal(
                503,
                "db.busy",
                f"database: {_QUEUE_LIMIT} writes are waiting; this one was not accepted, try again",
                headers={"Retry-After": "5"},
            ) from error
        return future

    def _check_schema(self) -> None:
        try:
            with self._engine.connect() as connection:
                found = int(connection.execute(text("PRAGMA user_version")).scalar_one())
        except SQLAlchemyError as error:
            raise StateError(
                f"{self._path}: expected an SQLite database, found {error}; left as it is"
            ) from error
        if found != schema.VERSION:
            newer = "a newer server wrote it" if found > schema.VERSION else "it was never finished"
            raise StateError(
                f"{self._path}: expected schema {schema.VERSION}, found {found} ({newer}); left as it is, not started"
            )

    def _run_writer(self) -> None:
        try:
            self._write_loop()
        except BaseException:
            # Without a writer every request would wait for ever; the service manager starts us again.
            logger.critical("the database writer failed, the server ends", exc_info=True)
            os._exit(70)

    def _write_loop(self) -> None:
        with self._engine.connect() as connection:
            while (first := self._jobs.get()) is not None:
                batch, last = self._gather(first)
                self._commit(connection, batch)
                if last:
                    return

    def _gather(self, first: _Job) -> tuple[list[_Job], bool]:
        """What waits right now shares the commit of `first`; nobody waits for company."""
        batch = [first]
        while len(batch) < _GROUP_LIMIT:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return batch, True
            batch.append(job)
        return batch, False

    def _commit(self, connection: Connection, batch: list[_Job]) -> None:
        done: list[tuple[Future[Any], Any]] = []
        try:
            connection.execute(text("BEGIN IMMEDIATE"))
            for job, future in batch:
                if not future.set_running_or_notify_cancel():
                    continue
                connection.execute(text("SAVEPOINT job"))
                try:
                    result = job(connection)
                except BaseException as error:  # the job's error belongs to its caller
                    if isinstance(error, OperationalError) and not _in_transaction(connection):
                        raise  # disk full: SQLite has undone the whole transaction, not only this job
                    connection.execute(text("ROLLBACK TO job"))
                    connection.execute(text("RELEASE job"))
                    _fail(future, _busy(error) if isinstance(error, OperationalError) else error)
                else:
                    connection.execute(text("RELEASE job"))
                    done.append((future, result))
            connection.execute(text("COMMIT"))
        except SQLAlchemyError as error:
            # Full disk, I/O error: nothing of this batch is durable and every caller must hear so.
            if _in_transaction(connection):
                _raw(connection).rollback()
            logger.warning(
                "a commit of %d writes failed, none is stored: %s", len(batch), error.__cause__ or error
            )
            for _, future in batch:
                _fail(future, _busy(error))
            return
        for future, result in done:
            future.set_result(result)


def _raw(connection: Connection) -> sqlite3.Connection:
    raw = connection.connection.driver_connection
    if not isinstance(raw, sqlite3.Connection):
        raise TypeError(f"expected an SQLite connection, found {type(raw).__name__}")
    return raw


def _in_transaction(connection: Connection) -> bool:
    return _raw(connection).in_transaction


def _busy(error: SQLAlchemyError) -> Refusal:
    reason = error.__cause__ or error
    return Refusal(
        503,
        "db.busy",
        f"database: refused the write ({reason}); nothing was stored, try again",
        headers={"Retry-After": "5"},
    )


def _fail(future: "Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        isolation_level="AUTOCOMMIT",
        poolclass=QueuePool,
        pool_size=_READERS + 2,
        max_overflow=4,
        connect_args={"check_same_thread": False, "timeout": 5.0},
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "foreign_keys=ON",
            "busy_timeout=5000",
            "trusted_schema=OFF",
            "synchronous=FULL",
        ):
            connection.execute(f"PRAGMA {pragma}")

    return engine
