"""The body of one answer: read piece by piece, bounded in bytes, time and minimum rate."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator

import urllib3
from tidewaiter_core.clock import Clock, Deadline
from tidewaiter_core.errors import DeadlineError
from urllib3.response import HTTPResponse

from tidewaiter_agent.errors import NetError
from tidewaiter_agent.limits import RateFloor, TokenBucket

PIECE_BYTES = 64 * 1024


class Body:
    """Implements `exchange.Stream` over one urllib3 response."""

    def __init__(
        self,
        raw: HTTPResponse,
        *,
        what: str,
        clock: Clock,
        bucket: TokenBucket,
        explain: Callable[[BaseException, str], NetError],
    ) -> None:
        self._raw = raw
        self._what = what
        self._clock = clock
        self._bucket = bucket
        self._explain = explain
        self.status = raw.status
        self.headers = {name.lower(): value for name, value in raw.headers.items()}
        self.complete = False

    def check(self) -> None:
        """Refuse what is never followed or decoded."""
        if 300 <= self.status < 400 and self.status != 304:
            raise NetError(
                f"{self._what}: expected an answer, found a redirect ({self.status}) to another place; it "
                "is not followed",
                code="net.redirect",
                retryable=True,
            )
        coding = self.headers.get("content-encoding", "identity").strip().lower()
        if coding not in ("", "identity"):
            raise NetError(
                f"{self._what}: expected an uncoded body, found {coding[:40]!r}; a proxy on the way "
                "rewrites answers; refused",
                code="net.coded-body",
            )

    def chunks(self, *, limit_bytes: int, deadline_s: float) -> Iterator[bytes]:
        deadline = Deadline(self._clock, deadline_s)
        floor = RateFloor(self._what)
        announced = self.headers.get("content-length", "")
        if announced.isdigit() and int(announced[:18]) > limit_bytes:
            raise self._too_large(limit_bytes, f"{announced[:18]} announced")
        total = 0
        while True:
            started_s = self._clock.boottime_s()
            piece = self._read(deadline)
            if not piece:
                break
            floor.add(len(piece), self._clock.boottime_s() - started_s)
            total += len(piece)
            if total > limit_bytes:
                raise self._too_large(limit_bytes, "more")
            self._bucket.take(len(piece))
            yield piece
        self.complete = True

    def _read(self, deadline: Deadline) -> bytes:
        try:
            deadline.check(self._what)
            return self._raw.read1(PIECE_BYTES, decode_content=False) or b""
        except DeadlineError as err:
            raise NetError(
                f"{self._what}: the body did not end in time; dropped ({err})", code="net.slow"
            ) from err
        except (urllib3.exceptions.HTTPError, OSError, http.client.HTTPException) as err:
            raise self._explain(err, self._what) from err

    def _too_large(self, limit_bytes: int, found: str) -> NetError:
        return NetError(
            f"{self._what}: expected a body of at most {limit_bytes} bytes, found {found}; dropped",
            code="net.too-large",
        )
