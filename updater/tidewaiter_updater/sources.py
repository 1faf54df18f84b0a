"""Where the updater's bytes come from, and how little the way is believed.

Invariants:
1. A span is either exactly the bytes asked for, or an error: a longer or shorter body, another offset, or a whole file
   where a range was asked is never passed on.
2. Every wait ends: idle time, rate and total time of a span are bounded, tries are counted.
3. 403 and 404 are final for the attempt; asking again would loop for ever (rauc-hawkbit-updater #158).
4. Nothing here decides what is genuine. Hashes from signed metadata do that, later.

Source: update-engine.md section 6.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tidewaiter_core.backoff import Backoff
from tidewaiter_core.clock import Clock
from tidewaiter_core.model import Sha256
from tidewaiter_core.varlink import Client, NotReachable, RawReader, VarlinkError

from tidewaiter_updater.errors import InstallCancelledError, SourceError, SourceRefusedError

SPAN_LIMIT_BYTES: Final = 4 * 1024 * 1024
_PATH: Final = re.compile(r"[A-Za-z0-9._+/-]{1,200}", re.ASCII)
_READ_BYTES: Final = 64 * 1024


class Source(Protocol):
    """A repository that bytes can be read from. Any thread may call; each call stands alone."""

    cost_class: str
    """"metered" for the network, "free" for a medium in the device."""

    @property
    def received_bytes(self) -> int:
        """All body bytes that arrived so far, including those of failed tries."""

    def metadata(self, path: str, limit: int) -> Iterator[bytes]:
        """The whole of a metadata file, at most one piece more than `limit` bytes (the caller refuses the excess).

        Raises:
            SourceError: Not reachable, too slow, not what was asked for.
            SourceRefusedError: There is no such file, or it may not be read.
        """

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        """Exactly `length` (at most 4 MiB) bytes of a target file from `offset`; errors as for `metadata`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a relay may take. `Patience()` is the product's; tests are less patient."""

    idle_s: float = 30.0
    min_bytes_per_s: int = 1024
    rate_window_s: float = 60.0
    base_s: float = 30.0
    """A span may take this plus its length at the minimum rate."""
    tries: int = 5
    distrust_tries: int = 2
    """Tries when the answer itself is wrong or too slow: once more from the start of the span."""
    backoff_base_s: float = 1.0
    backoff_cap_s: float = 60.0


def checked_path(path: str) -> str:
    """`path` if it is a repository path that no file system or URL can read as something else.

    Raises:
        SourceError: `source.path`; never retryable.
    """
    if _PATH.fullmatch(path) and not any(part == "" or part.startswith(".") for part in path.split("/")):
        return path
    raise SourceError(
        f"repository path {path[:80]!r}: expected up to 200 of A-Z a-z 0-9 . _ + / -, no empty segment and none that "
        "starts with a dot; not fetched",
        code="source.path",
        retryable=False,
    )


def hashed_path(path: str, sha256: str) -> str:
    """The name under which a consistent-snapshot repository serves a target."""
    folder, slash, name = checked_path(path).rpartition("/")
    return f"{folder}{slash}{Sha256.parse(sha256)}.{name}"


class RelaySource:
    """The repository as the agent serves it over its relay socket, one connection per span."""

    cost_class = "metered"

    def __init__(
        self,
        socket_path: Path,
        *,
        clock: Clock,
        patience: Patience | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            cancelled: Asked about once a second while waiting for the next try.
            waiting: Called as often; the beat of the thread that waits.
        """
        self._socket_path = socket_path
        self._clock = clock
        self._patience = patience or Patience()
        self._cancelled = cancelled
        self._waiting = waiting
        self._received_bytes = 0
        self._count_lock = threading.Lock()

    @property
    def received_bytes(self) -> int:
        return self._received_bytes

    def metadata(self, path: str, limit: int) -> Iterator[bytes]:
        full = f"metadata/{checked_path(path)}"
        offset = 0
        while True:
            asked = min(SPAN_LIMIT_BYTES, limit + 1 - offset)
            pieces, total = self._tries(full, offset, asked, exact=False)
            got = sum(map(len, pieces))
            offset += got
            yield from pieces
            # A server that does not say the total has sent all of it when it sent less than was asked.
            if offset > limit or got < asked or offset == total:
                return

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        if not 0 < length <= SPAN_LIMIT_BYTES or offset < 0:
            raise ValueError(f"a span is 1..{SPAN_LIMIT_BYTES} bytes from 0 on, not {length} from {offset}")
        pieces, _ = self._tries(f"targets/{checked_path(path)}", offset, length, exact=True)
        yield from pieces

    def _tries(self, path: str, offset: int, length: int, *, exact: bool) -> tuple[list[bytes], int]:
        backoff = Backoff(base_s=self._patience.backoff_base_s, cap_s=self._patience.backoff_cap_s)
        failures = 0
        distrusted = 0
        while True:
            try:
                return self._once(path, offset, length, exact=exact)
            except SourceRefusedError:
                raise
            except SourceError as err:
                failures += 1
                distrusted += err.code in ("source.bad-range", "source.slow")
                if failures >= self._patience.tries or distrusted >= self._patience.distrust_tries:
                    raise SourceError(f"{err}; given up after {failures} tries", code=err.code) from err
            self._pause(backoff.next_s())

    def _pause(self, seconds: float) -> None:
        never = threading.Event()
        end_s = self._clock.boottime_s() + seconds
        while (left_s := end_s - self._clock.boottime_s()) > 0:
            if self._cancelled():
                raise InstallCancelledError("the transfer was canceled while it waited for the relay")
            self._waiting()
            self._clock.wait(never, min(1.0, left_s))

    def _once(self, path: str, offset: int, length: int, *, exact: bool) -> tuple[list[bytes], int]:
        what = f"{path} bytes {offset}+{length}"
        try:
            with Client(self._socket_path, timeout_s=self._patience.idle_s) as client:
                reply, body = client.upgrade(
                    "io.tidewaiter.Relay.Fetch", {"path": path, "offset": offset, "max_bytes": length}
                )
                with body:
                    promised, total = _judge(reply, what=what, offset=offset, length=length, exact=exact)
                    return self._receive(body, promised, what=what), total
        except (NotReachable, VarlinkError) as err:
            if isinstance(err.__cause__, TimeoutError):
                raise SourceError(
                    f"{what}: nothing arrived for {self._patience.idle_s:g} s; the span is not used",
                    code="source.slow",
                ) from err
            raise SourceError(f"{what}: the relay did not deliver: {err}; the span is not used") from err

    def _receive(self, body: RawReader, promised: int, *, what: str) -> list[bytes]:
        """All pieces of a body, handed on only when the last one is known to be the last."""
        pieces: list[bytes] = []
        got = 0
        pace = _Pace(self._clock, self._patience, promised, what=what)
        while got < promised:
            piece = body.recv(min(_READ_BYTES, promised - got))
            if not piece:
                raise SourceError(
                    f"{what}: body ended at {got} of {promised} bytes; the span is not used",
                    code="source.bad-range",
                )
            pieces.append(piece)
            got += len(piece)
            with self._count_lock:
                self._received_bytes += len(piece)
            pace.check(got)
        if body.recv(1):
            raise SourceError(
                f"{what}: body is longer than the {promised} bytes promised", code="source.bad-range"
            )
        return pieces


class _Pace:
    """Is a body still coming fast enough?"""

    def __init__(self, clock: Clock, patience: Patience, length: int, *, what: str) -> None:
        self._clock = clock
        self._patience = patience
        self._what = what
        self._window_start_s = clock.boottime_s()
        self._window_start_bytes = 0
        self._end_s = self._window_start_s + patience.base_s + length / patience.min_bytes_per_s

    def check(self, got: int) -> None:
        now_s = self._clock.boottime_s()
        elapsed_s = now_s - self._window_start_s
        if now_s > self._end_s:
            raise self._slow(
                f"took longer than its {self._patience.base_s:g} s + {self._patience.min_bytes_per_s} B/s"
            )
        if elapsed_s >= self._patience.rate_window_s:
            if got - self._window_start_bytes < self._patience.min_bytes_per_s * elapsed_s:
                raise self._slow(f"{got - self._window_start_bytes} bytes in {elapsed_s:.0f} s")
            self._window_start_s = now_s
            self._window_start_bytes = got

    def _slow(self, finding: str) -> SourceError:
        return SourceError(
            f"{self._what}: expected at least {self._patience.min_bytes_per_s} B/s, found: {finding}; the span is not used",
            code="source.slow",
        )


_STATUS_CODE: Final = {
    "unavailable": "source.unavailable",
    "bad-range": "source.bad-range",
    "too-slow": "source.slow",
}
_STATUS_HTTP: Final = {"not-found": 404, "forbidden": 403}


def _judge(reply: dict[str, Any], *, what: str, offset: int, length: int, exact: bool) -> tuple[int, int]:
    """Length and total of a reply that answers what was asked."""
    status, detail = reply.get("status"), str(reply.get("detail", ""))[:200]
    if status in _STATUS_HTTP:
        raise SourceRefusedError(
            f"{what}: {status} ({detail}); final for this attempt", status=_STATUS_HTTP[status]
        )
    if status != "ok":
        code = _STATUS_CODE.get(str(status), "source.unavailable")
        raise SourceError(f"{what}: relay says {str(status)[:40]!r} ({detail})", code=code)
    got_offset, total, promised = reply.get("offset"), reply.get("total"), reply.get("length")
    sound = (
        type(promised) is int
        and type(total) is int
        and got_offset == offset
        and (promised == length if exact else 0 <= promised <= length)
        and (total == -1 or total >= offset + promised)
    )
    if not sound or type(promised) is not int or type(total) is not int:
        raise SourceError(
            f"{what}: reply is for bytes {got_offset}+{promised} of {total}; a wrong range is never used",
            code="source.bad-range",
        )
    return promised, total
