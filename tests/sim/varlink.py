"""A running Varlink service on a real socket, for tests of services and clients."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tidewaiter_core.varlink import Handler, Peer, Server


class StopFlag:
    """What Server.run needs from workers.Stop."""

    def __init__(self) -> None:
        self.event = threading.Event()


class Serving:
    """The service under test, its thread, and what its `run` ended with."""

    def __init__(self, path: Path, server: Server) -> None:
        self.path = path
        self.server = server
        self.stop = StopFlag()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="serving")

    def _run(self) -> None:
        try:
            self.server.run(self.stop)
        except BaseException as err:
            self.failure = err

    def raw(self, timeout_s: float = 3.0) -> socket.socket:
        """A plain connection for a peer that does not behave."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(self.path))
        except OSError:
            connection.close()
            raise
        return connection


def allow_all(peer: Peer, method: str) -> None:
    """Every peer may call everything."""


@contextmanager
def serving(
    folder: Path, interfaces: Mapping[str, Mapping[str, Handler]], **options: Any
) -> Iterator[Serving]:
    """Serve `interfaces` at `folder`/s until the block ends."""
    path = folder / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    options = {"authorize": allow_all, "name": "test", **options}
    world = Serving(path, Server(listener, interfaces, **options))
    world.thread.start()
    try:
        yield world
    finally:
        world.stop.event.set()
        with (
            suppress(OSError),
            world.raw(),
        ):  # wakes the accept loop, so that a hundred tests do not wait for it
            pass
        world.thread.join(3.0)
        path.unlink()
