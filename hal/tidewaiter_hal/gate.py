"""The only place that turns a request into bytes for the port (hal-and-hil.md 5, layer 2). Pure.

Invariants: a frame leaves only if its command is a row of the driver's table, its permit is of the row's kind,
and the bytes, parsed again, are that row and carry only that row's keys. A driver bug cannot get past this.
"""

from collections.abc import Callable

from tidewaiter_hal.errors import GateRefusedError
from tidewaiter_hal.injector import CommandKind, CommandTable, FrameCodec, LineSettings, Request


class Gate:
    """Checks and writes. `write` is the port's write; nobody else holds it."""

    def __init__(
        self, table: CommandTable, codec: FrameCodec, line: LineSettings, *, write: Callable[[bytes], None]
    ) -> None:
        self._table = table
        self._codec = codec
        self._line = line
        self._write = write

    def emit(self, request: Request) -> bytes:
        """Send `request`; returns the bytes that were handed to the port.

        Raises:
            GateRefusedError: The request is not allowed. Nothing was sent.
            PortLostError: From the port's write.
        """
        row = self._table.find(request.command)
        if row is None:
            raise GateRefusedError(f"gate: {request.command!r} is not in the command table; nothing was sent")
        if row.kind is not CommandKind.MONITOR and (
            request.permit is None or request.permit.kind is not row.kind
        ):
            raise GateRefusedError(
                f"gate: {row.name} needs a {row.kind} permit, there is none; nothing was sent"
            )
        frame = self._codec.encode(row, request)
        rule, body = self._codec.classify(frame)
        if tuple(rule) != tuple(row.rule):
            raise GateRefusedError(
                f"gate: {row.name} must be {tuple(row.rule)}, the frame says {tuple(rule)}; nothing was sent"
            )
        for key, value in body.items():
            expected = row.body_keys.get(key)
            if expected is None or type(value) is not expected:
                raise GateRefusedError(f"gate: {row.name} must not carry key {key!r}; nothing was sent")
        self._write(frame)
        return frame

    def resync(self) -> None:
        """Send the bytes that end a half line at the peer; they mean nothing else in this protocol."""
        self._write(self._line.resync)
