"""The medium that comes with a call: an open directory in place of a path.

Why a descriptor: the updater lives in its own view of mounts and under its own user. A path may mean another directory there, or
none; an open directory means the same to both, and only the one who can reach a directory can send it. Files below it are opened
with the updater's own rights and are never handed out: they are only compared with signed hashes.

Who may: the peers of the local socket, which are operators. The agent's socket takes no descriptors at all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from tidewaiter_core.model import Sha256
from tidewaiter_core.varlink import Call, VarlinkError

from tidewaiter_updater.directory_source import DirectorySource
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.media_bay import MediaBay
from tidewaiter_updater.model import DIRECTORY_PREFIX, RELAY, is_medium
from tidewaiter_updater.sources import hashed_path

INVALID = "org.varlink.service.InvalidParameter"


class GivenMedia:
    """Puts the medium of a call into the bay while it is needed."""

    def __init__(self, engine: Engine, bay: MediaBay | None) -> None:
        """
        Args:
            bay: None where media are not accepted: the agent's socket.
        """
        self._engine = engine
        self._bay = bay

    @contextmanager
    def source(self, call: Call, *, holding: Sha256 | None = None) -> Iterator[str]:
        """The source that the call names; its medium stays afterwards only for a release that is installed from it.

        Args:
            holding: A release that Check has stored and that the medium must have.

        Raises:
            VarlinkError: InvalidParameter, for a source this socket does not serve or a medium that is no directory.
            SourceError: source.vanished, there is no repository in the directory, or not this release. What is in hand, and
                where it comes from, stays.
        """
        source = str(call.parameters["source"])
        if source == RELAY and call.parameters["medium"] is None:
            yield source
            return
        if self._bay is None or not is_medium(source):
            raise VarlinkError(INVALID, {"parameter": "source"})
        medium = _opened(call, source)
        medium.require_present()
        self._require_release(medium, holding)
        self._bay.insert(source, medium)
        try:
            yield source
        finally:
            self._give_back(self._bay, source)

    def _require_release(self, medium: DirectorySource, digest: Sha256 | None) -> None:
        transaction = self._engine.transaction
        release = transaction.load_release(digest) if digest is not None else None
        data = transaction.journal.release_bytes(digest) if digest is not None else None
        if release is None or data is None:
            return  # what Check has not stored, Install refuses
        if not medium.has_target(hashed_path(release.path, release.digest), len(data)):
            raise SourceError(
                f"release {release.version} ({release.digest[:16]}) is not on this medium; nothing was changed",
                code="source.vanished",
            )

    def _give_back(self, bay: MediaBay, source: str) -> None:
        transaction = self._engine.transaction
        with transaction.lock:
            entry = transaction.entry
            is_used = entry is not None and not entry.closed and entry.source == source
        if not is_used:
            bay.eject(source)


def _opened(call: Call, source: str) -> DirectorySource:
    number = call.parameters["medium"]
    if not isinstance(number, int) or not 0 <= number < len(call.descriptors):
        raise VarlinkError(INVALID, {"parameter": "medium"})
    descriptor = call.descriptors[number]
    if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
        raise VarlinkError(INVALID, {"parameter": "medium"})
    return DirectorySource(os.dup(descriptor), name=source.removeprefix(DIRECTORY_PREFIX))
