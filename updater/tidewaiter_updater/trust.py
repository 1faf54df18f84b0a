"""One trust session, as a process of its own: `python -I -m tidewaiter_updater.trust`, request on stdin, reply on stdout.

Only this module and the `trust_*` ones below it import tuf. It runs as a child because tuf and its cryptography would stay in
the service's memory during the transfer, and because hostile metadata is parsed here: what falls over is this process, under
its own memory limit.

A medium is read through the directory descriptor that the parent opened and hands over, so that both read the same directory.
To a relay the child connects itself, once per span, with the same RelaySource as the service. The design also allows a
connected descriptor; but a Varlink upgrade ends its connection, so that would need a second protocol for the parent to serve
spans, and it would gain nothing: both processes have the same user, and the relay checks exactly that user.
"""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path
from typing import Final

from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_updater.directory_source import DirectorySource
from tidewaiter_updater.sources import RelaySource
from tidewaiter_updater.trust_session import verify
from tidewaiter_updater.trust_tuf import TufSession
from tidewaiter_updater.trust_wire import REQUEST_LIMIT_BYTES, Fault, Request, Verified

DATA_LIMIT_BYTES: Final = 128 * 1024 * 1024
LIFETIME_S: Final = 310
"""Ten seconds more than the parent waits: an orphan ends by itself."""


def answer(data: bytes) -> Verified | Fault:
    """The reply to one request."""
    try:
        request = Request.decode(data)
        root = Path(request.root_file).read_bytes()
    except (ValueError, OSError) as err:
        return Fault(code="trust.child", message=f"trust request: {err}", retryable=False)
    directory = None
    if request.directory_fd is not None:
        directory = DirectorySource(request.directory_fd, name="medium")
    session = TufSession(
        directory or RelaySource(Path(request.relay_socket), clock=SystemClock()),
        metadata_dir=Path(request.metadata_dir),
        root=root,
        trusted_now=request.trusted_now,
        floors=request.floors,
    )
    try:
        if directory is None:
            return verify(session, request.subject, request.what)
        return verify(session, request.subject, request.what, holds=directory.has_target)
    except TidewaiterError as err:
        return Fault(code=err.code, message=str(err), retryable=err.retryable)


def main() -> int:
    """Entry point of the child."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT_BYTES, DATA_LIMIT_BYTES))
    signal.alarm(LIFETIME_S)
    reply = answer(sys.stdin.buffer.read(REQUEST_LIMIT_BYTES + 1))
    sys.stdout.buffer.write(reply.encode())
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
