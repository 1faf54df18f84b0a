"""Runs a trust session in a child process and believes only a whole, sound answer.

The service itself never imports tuf, cryptography, ssl or requests (update-engine.md section 2). Limits: request 64 KiB, reply
256 KiB, 300 s; the child limits its own memory.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tidewaiter_core.clock import Clock, Deadline
from tidewaiter_core.durable import InstanceLock, make_directory

from tidewaiter_updater.errors import SourceError, TrustError
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.model import DIRECTORY_PREFIX, RELAY, is_medium
from tidewaiter_updater.trust_wire import (
    REPLY_LIMIT_BYTES,
    REQUEST_LIMIT_BYTES,
    Fault,
    Listed,
    Repository,
    Request,
    Subject,
    Verified,
    decode_reply,
    require_answers,
)

logger = logging.getLogger(__name__)

TIMEOUT_S: Final = 300.0
_POLL_S: Final = 0.5
_COMMAND: Final = (sys.executable, "-I", "-m", "tidewaiter_updater.trust")


def repository_of(source: str) -> Repository:
    """The repository that a source has to be: over the network the online one, in a directory the media one.

    Not a caller's choice: neither root may ever vouch for the other's metadata.

    Raises:
        SourceError: There is no such kind of source.
    """
    if source == RELAY:
        return Repository.ONLINE
    if is_medium(source):
        return Repository.MEDIA
    raise SourceError(
        f"source {source[:80]!r}: expected {RELAY} or {DIRECTORY_PREFIX}<place>; not fetched", retryable=False
    )


class TrustSession:
    """Signed metadata behind a source name, `relay` or `directory:<place>`; one session at a time."""

    def __init__(
        self,
        *,
        state_dir: Path,
        roots: Mapping[Repository, Path],
        relay_socket: Path,
        floors: FloorStore,
        clock: Clock,
        media: MediaBay | None = None,
        beat: Callable[[], None] = lambda: None,
        cancelled: Callable[[], bool] = lambda: False,
        timeout_s: float = TIMEOUT_S,
        command: Sequence[str] = _COMMAND,
    ) -> None:
        """
        Args:
            state_dir: The updater's own; metadata is cached below `tuf/<repository>`, the lock is `trust.lock`.
            roots: The roots in the read-only image, where every session starts; a repository without one is not used.
            media: Where the directory behind a source name is found.
            beat: Called about twice a second while the child works.
            cancelled: Ends the child, and with it the check.
        """
        self._state_dir = state_dir
        self._roots = roots
        self._relay_socket = relay_socket
        self._floors = floors
        self._clock = clock
        self._media = media or MediaBay()
        self._beat = beat
        self._cancelled = cancelled
        self._timeout_s = timeout_s
        self._command = command

    def check(self, source: str, release_path: str) -> bytes:
        """The bytes of the release document that the repository signs for `release_path`.

        The floors are raised, durably, before this returns; that holds for every method here.

        Raises:
            TrustError: The repository is at fault (or the child died); no floor has changed.
            SourceError: The way to it is.
            SecondInstanceError: Another session holds the lock.
            StateWriteError: The floors could not be made durable.
        """
        return self._verified(source, Subject.RELEASE, release_path).document

    def permit(self, source: str, permit_path: str) -> bytes | None:
        """The downgrade permit that the repository signs for `permit_path`, None if there is none; errors as for `check`."""
        return self._verified(source, Subject.PERMIT, permit_path).document or None

    def releases(self, source: str, product: str) -> tuple[Listed, ...]:
        """The release documents of `product` that the repository signs, and that are there if it is a directory.

        No order is implied: only `sequence` in the documents is one. Errors as for `check`.
        """
        return self._verified(source, Subject.LISTING, product).listing

    def _verified(self, source: str, subject: Subject, what: str) -> Verified:
        repository = repository_of(source)
        root_file = self._roots.get(repository)
        if root_file is None:
            raise SourceError(
                f"source {source[:80]!r}: this image has no root for the {repository.value} repository; not used",
                retryable=False,
            )
        metadata_dir = self._state_dir / "tuf" / repository.value
        make_directory(metadata_dir)
        with contextlib.ExitStack() as held:
            held.enter_context(
                InstanceLock(self._state_dir / "trust.lock")
            )  # python-tuf does not lock its own cache
            directory = None
            if repository is Repository.MEDIA:
                directory = self._media.medium(source)
                directory.require_present()
            request = Request(
                subject=subject,
                what=what,
                relay_socket=str(self._relay_socket) if directory is None else "",
                directory_fd=directory.descriptor if directory is not None else None,
                metadata_dir=str(metadata_dir),
                root_file=str(root_file),
                trusted_now=self._floors.trusted_now(self._clock),
                floors=self._floors.versions(repository.value),
            )
            verified = self._asked(request)
            self._floors.record_session(repository.value, verified.versions, proven_utc=verified.proven_utc)
        return verified

    def _asked(self, request: Request) -> Verified:
        data = request.encode()
        if len(data) > REQUEST_LIMIT_BYTES:
            raise TrustError(
                f"trust request of {len(data)} bytes; not started", code="trust.child", retryable=False
            )
        output = self._run(
            data,
            tmp=request.metadata_dir,
            inherited=() if request.directory_fd is None else (request.directory_fd,),
        )
        try:
            reply = decode_reply(output)
            if isinstance(reply, Verified):
                require_answers(reply, request.subject)
        except ValueError as err:
            raise TrustError(
                f"trust child: {len(output)} bytes are no whole reply ({err}); nothing was changed",
                code="trust.child",
            ) from err
        if isinstance(reply, Fault):
            kind = SourceError if reply.code.startswith("source.") else TrustError
            raise kind(reply.message, code=reply.code, retryable=reply.retryable)
        return reply

    def _run(self, data: bytes, *, tmp: str, inherited: Sequence[int]) -> bytes:
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "TMPDIR": tmp}
        try:
            child = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                cwd="/",
                pass_fds=inherited,
            )
        except OSError as err:
            raise TrustError(
                f"trust child cannot be started: {err}; nothing was changed", code="trust.child"
            ) from err
        try:
            assert child.stdin is not None and child.stdout is not None  # noqa: S101 - both are pipes
            with (
                contextlib.suppress(BrokenPipeError),
                child.stdin as stdin,
            ):  # it died; its silence says so below
                stdin.write(data)
            output = self._output(child.stdout.fileno())
        finally:
            child.kill()
            child.wait()
            if child.stdout is not None:
                child.stdout.close()
        return output

    def _output(self, fd: int) -> bytes:
        """Everything the child says until it closes its stdout, within the limits."""
        output = bytearray()
        deadline = Deadline(self._clock, self._timeout_s)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        while True:
            self._beat()
            if self._cancelled():
                raise SourceError("trust session: stopped on request; nothing was changed")
            if deadline.expired:
                raise SourceError(
                    f"trust session: not finished within {self._timeout_s:g} s; nothing was changed",
                    code="source.slow",
                )
            if not poller.poll(_POLL_S * 1000):
                continue
            piece = os.read(fd, 64 * 1024)
            if not piece:
                return bytes(output)
            output += piece
            if len(output) > REPLY_LIMIT_BYTES:
                raise TrustError(
                    f"trust child: reply is longer than {REPLY_LIMIT_BYTES} bytes; nothing was changed",
                    code="trust.child",
                )
