"""What a handler is given and what it may return. Handlers see no socket."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tidewaiter_core.varlink.peer import Peer


def _never(wait_s: float) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call that passed authorization and the interface file."""

    parameters: dict[str, Any]
    """Every field of the interface is present; an absent optional one is None."""
    peer: Peer
    more: bool = False
    upgrade: bool = False
    oneway: bool = False
    descriptors: tuple[int, ...] = ()
    """Open files that came with the call; closed when it is over, so a handler duplicates what it keeps."""
    hung_up: Callable[[float], bool] = field(default=_never, repr=False)
    """Waits up to so many seconds for the client to hang up."""

    def closed(self) -> bool:
        """The client hung up, or the service is stopping: a stream ends now. Costs one system call."""
        return self.hung_up(0.0)

    def wait_closed(self, timeout_s: float) -> bool:
        """Block until `closed()` or the time is over; for handlers whose whole job is to notice the end of
        the client.
        """
        return self.hung_up(timeout_s)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Reply with `parameters`, then send `body` as raw bytes, then close the connection."""

    parameters: dict[str, Any]
    body: Iterable[bytes]


Handler = Callable[[Call], dict[str, Any] | Iterator[dict[str, Any]] | Upgrade | None]
"""A dict is the reply, None the empty one. An iterator is a stream for `more`: each item is sent at once
with `continues`; what a generator returns is the last reply, and if it returns None the last item is
repeated as the last reply. Without `more` only the first item is sent. The iterator is closed when the
client hangs up.
"""
