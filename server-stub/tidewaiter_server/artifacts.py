"""Serves repository and artifact files: one range, strong validators, nothing outside the folder.

Own handler instead of StaticFiles: multi-range handling has a history (CVE-2025-62727), and a device wants exactly one
range with If-Range. The validator is the SHA-256 of the content, computed once per file state and then remembered, so a
thousand ranges of one file cost a thousand reads, not a thousand hashes.
"""

import asyncio
import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tidewaiter_server.errors import Refusal, malformed, not_found

_PIECE_BYTES: Final = 256 * 1024
_RANGE_HEADER_LIMIT: Final = 1024
_SEGMENT: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,254}", re.ASCII)
_ONE_RANGE: Final = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)
IMMUTABLE: Final = "public, max-age=31536000, immutable"
NO_STORE: Final = "no-store"

_FileState = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first`..`last` inclusive."""

    first: int
    last: int

    @property
    def length(self) -> int:
        return self.last - self.first + 1


def choose_span(header: str | None, size: int) -> Span | None:
    """The one range asked for; None: the whole file. Several ranges get the whole file too, as RFC 9110 allows.

    Raises:
        Refusal: 416 for a range outside the file, 400 for a header beyond 1 KiB.
    """
    if header is None:
        return None
    if len(header) > _RANGE_HEADER_LIMIT:
        raise malformed("Range", f"at most {_RANGE_HEADER_LIMIT} characters", f"{len(header)} characters")
    match = _ONE_RANGE.fullmatch(header.replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        count = int(match[2])
        first, last = max(0, size - count), size - 1
        unsatisfiable = count == 0 or size == 0
    else:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return None
        unsatisfiable = first >= size
    if unsatisfiable:
        raise Refusal(
            416,
            "artifact.range",
            f"Range {header[:64]}: outside the {size} bytes of the file",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return Span(first, last)


class Files:
    """Answers GET and HEAD for files below a folder."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="files")
        self._tags: dict[_FileState, str] = {}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def serve(
        self,
        root: Path,
        relative: str,
        headers: Mapping[str, str],
        *,
        method: str,
        cache_control: str,
        media_type: str = "application/octet-stream",
        still_allowed: Callable[[], bool] = lambda: True,
    ) -> Response:
        """The file `relative` below `root`, or the part asked for.

        Args:
            still_allowed: Asked before every piece; False ends the transfer (the device was revoked meanwhile).
        """
        loop = asyncio.get_running_loop()
        descriptor, size, tag = await loop.run_in_executor(self._pool, self._open, root, relative)
        try:
            base = {
                "ETag": tag,
                "Accept-Ranges": "bytes",
                "Cache-Control": cache_control,
                "Content-Type": media_type,
            }
            _must_match(relative, headers, tag)
            if _matches(headers.get("if-none-match"), tag, weak=True):
                os.close(descriptor)
                return Response(
                    status_code=304, headers={name: base[name] for name in ("ETag", "Cache-Control")}
                )
            wanted = headers.get("range")
            if "if-range" in headers and headers["if-range"].strip() != tag:
                wanted = None
            span = choose_span(wanted, size)
        except BaseException:
            os.close(descriptor)
            raise
        part = span or Span(0, size - 1)
        base["Content-Length"] = str(part.length)
        if span:
            base["Content-Range"] = f"bytes {span.first}-{span.last}/{size}"
        status = 206 if span else 200
        if method == "HEAD":
            os.close(descriptor)
            return Response(status_code=status, headers=base)
        return _FileResponse(
            self._pieces(descriptor, part, still_allowed), descriptor, status_code=status, headers=base
        )

    async def _pieces(
        self, descriptor: int, part: Span, still_allowed: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        offset, end = part.first, part.last + 1
        while offset < end:
            if not still_allowed():
                raise ConnectionAbortedError("the device was revoked during a transfer")
            piece = await loop.run_in_executor(
                self._pool, os.pread, descriptor, min(_PIECE_BYTES, end - offset), offset
            )
            if not piece:
                raise ConnectionAbortedError("the file became shorter during a transfer")
            offset += len(piece)
            yield piece

    def _open(self, root: Path, relative: str) -> tuple[int, int, str]:
        descriptor = open_below(root, relative)
        try:
            found = os.fstat(descriptor)
            state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
            tag = self._tags.get(state)
            if tag is None:
                if len(self._tags) > 10_000:
                    self._tags.clear()
                tag = self._tags[state] = f'"{_sha256(descriptor)}"'
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor, found.st_size, tag


class _FileResponse(StreamingResponse):
    """Closes its file when the answer is over, also when it was never begun."""

    def __init__(
        self, content: AsyncIterator[bytes], descriptor: int, *, status_code: int, headers: Mapping[str, str]
    ) -> None:
        super().__init__(content, status_code=status_code, headers=headers)
        self._descriptor = descriptor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            os.close(self._descriptor)


def open_below(root: Path, relative: str) -> int:
    """A descriptor of the regular file `relative` below `root`; 404 for anything else.

    Each segment is opened from the one before without following links, so neither `..` nor a planted link leads out.
    The root itself may be a link: publishing swaps it.
    """
    segments = relative.split("/")
    if len(segments) > 16 or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise not_found("file")
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise not_found("file") from error
    try:
        for segment in segments[:-1]:
            following = os.open(
                segment, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder
            )
            os.close(folder)
            folder = following
        descriptor = os.open(
            segments[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder
        )
    except OSError as error:
        raise not_found("file") from error
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_found("file")
    return descriptor


def _sha256(descriptor: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while piece := os.pread(descriptor, 1024 * 1024, offset):
        digest.update(piece)
        offset += len(piece)
    return digest.hexdigest()


def _must_match(relative: str, headers: Mapping[str, str], tag: str) -> None:
    if "if-match" in headers and not _matches(headers["if-match"], tag, weak=False):
        raise Refusal(
            412,
            "artifact.changed",
            f"{relative}: has another ETag than If-Match names; nothing was sent",
            headers={"ETag": tag},
        )


def _matches(header: str | None, tag: str, *, weak: bool) -> bool:
    if header is None:
        return False
    listed = [one.strip() for one in header.split(",")]
    if weak:
        listed = [one.removeprefix("W/") for one in listed]
    return "*" in listed or tag in listed
