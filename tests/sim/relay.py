"""The agent's relay socket, honest or not: speaks the wire by hand, so that it can lie in every byte.

A `Lie` sees each request and may answer it itself; whatever it leaves alone is served from the folder.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Ask:
    """One Fetch as it arrived."""

    path: str
    offset: int
    max_bytes: int
    number: int
    """How many were asked before it."""


@dataclass
class Answer:
    """What goes over the wire: the reply's parameters and the bytes behind it."""

    status: str = "ok"
    offset: int = 0
    total: int = -1
    length: int = 0
    body: bytes = b""
    detail: str = ""
    hold: threading.Event | None = None
    """Wait for this before the body."""
    drip: threading.Semaphore | None = None
    """Send one byte for each permit."""
    raw: bytes | None = None
    """Instead of everything else."""


Lie = Callable[[Ask, Answer], Answer | None]


@dataclass
class Relay:
    """A relay over a repository folder (with `metadata/` and `targets/`)."""

    folder: Path
    socket_path: Path
    lie: Lie = lambda ask, honest: None
    asks: list[Ask] = field(default_factory=list)

    def honest(self, ask: Ask) -> Answer:
        """What a good agent would answer."""
        file = self.folder / ask.path
        if not file.is_file():
            return Answer(status="not-found", detail="404")
        data = file.read_bytes()
        body = data[ask.offset : ask.offset + ask.max_bytes]
        return Answer(offset=ask.offset, total=len(data), length=len(body), body=body)

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            message = b""
            while not message.endswith(b"\0"):
                piece = connection.recv(65536)
                if not piece:
                    return
                message += piece
            parameters: dict[str, Any] = json.loads(message[:-1])["parameters"]
            ask = Ask(parameters["path"], parameters["offset"], parameters["max_bytes"], len(self.asks))
            self.asks.append(ask)
            honest = self.honest(ask)
            answer = self.lie(ask, honest) or honest
            if answer.raw is not None:
                connection.sendall(answer.raw)
                return
            reply = {
                "status": answer.status,
                "detail": answer.detail,
                "offset": answer.offset,
                "total": answer.total,
                "length": answer.length,
            }
            connection.sendall(json.dumps({"parameters": reply}).encode() + b"\0")
            if answer.hold is not None:
                answer.hold.wait(10)
            if answer.drip is None:
                connection.sendall(answer.body)
                return
            for at in range(len(answer.body)):
                answer.drip.acquire(timeout=10)
                connection.sendall(answer.body[at : at + 1])


@contextlib.contextmanager
def relaying(folder: Path, socket_path: Path) -> Iterator[Relay]:
    """Serve `folder` at `socket_path` until the block ends."""
    relay = Relay(folder, socket_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(socket_path))
    listener.listen(16)
    workers: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            workers.append(threading.Thread(target=relay.serve, args=(connection,)))
            workers[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield relay
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        acceptor.join()
        listener.close()
        for worker in workers:
            worker.join()
        socket_path.unlink(missing_ok=True)
