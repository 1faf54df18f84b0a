"""A TCP and CONNECT proxy that delays, cuts after n bytes, drops, or answers nonsense. Real sockets, no
product code.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from dataclasses import dataclass
from types import TracebackType


@dataclass
class Weather:
    """How the line behaves; may be changed while it runs, for connections opened afterwards."""

    delay_s: float = 0.0
    """Before each piece of either direction."""
    cut_down_after: int | None = None
    """The connection breaks after so many bytes from the server."""
    cut_up_after: int | None = None
    drop: bool = False
    """Accepts and says nothing, like a firewall that swallows."""
    refuse: bool = False
    """Closes at once."""
    connect_answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n"
    """What a CONNECT gets; anything but 200 is followed by the end of the connection."""


class LossyProxy:
    """Forwards to `target`, or, when `target` is None, to whatever CONNECT asks for."""

    def __init__(self, target: tuple[str, int] | None = None) -> None:
        self.weather = Weather()
        self.connects: list[str] = []
        """Request lines and headers of the CONNECTs."""
        self.connections = 0
        self.bytes_down = 0
        self.bytes_up = 0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._stopping = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> LossyProxy:
        self._listener.settimeout(0.05)
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        self.hang_up()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def hang_up(self) -> None:
        """Break every open connection now."""
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            connection.settimeout(None)
            self._open.append(connection)
            self._spawn(self._serve, connection, Weather(**vars(self.weather)))

    def _serve(self, client: socket.socket, weather: Weather) -> None:
        with contextlib.suppress(OSError), client:
            if weather.refuse:
                return
            if weather.drop:
                self._stopping.wait(60)
                return
            target = self._target or self._read_connect(client)
            if target is None:
                return
            if self._target is None:
                client.sendall(weather.connect_answer)
                if b" 200 " not in weather.connect_answer.split(b"\r\n")[0] + b" ":
                    return
            with socket.create_connection(target, timeout=10) as server:
                server.settimeout(None)
                self._open.append(server)
                self._spawn(self._pump, client, server, weather, "up")
                self._pump(server, client, weather, "down")

    def _read_connect(self, client: socket.socket) -> tuple[str, int] | None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = client.recv(1)
            if not piece:
                return None
            head += piece
        self.connects.append(head.decode("latin-1"))
        host, _, port = head.split(b" ")[1].decode("ascii").rpartition(":")
        return host.strip("[]"), int(port)

    def _pump(self, source: socket.socket, sink: socket.socket, weather: Weather, direction: str) -> None:
        left = weather.cut_down_after if direction == "down" else weather.cut_up_after
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                if weather.delay_s and self._stopping.wait(weather.delay_s):
                    break
                if left is not None:
                    piece = piece[:left]
                    left -= len(piece)
                sink.sendall(piece)
                if direction == "down":
                    self.bytes_down += len(piece)
                else:
                    self.bytes_up += len(piece)
                if left == 0:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
