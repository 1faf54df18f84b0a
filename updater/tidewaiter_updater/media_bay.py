"""The media that operators have given to this process, known by the source names they were given under.

It is here as long as it is needed: a held directory keeps the medium from being unmounted. A restart of the process forgets it;
the transaction then waits (`source.vanished`) until somebody gives it again or the network brings the release.
"""

from __future__ import annotations

import threading

from tidewaiter_updater.directory_source import DirectorySource
from tidewaiter_updater.errors import SourceError


class MediaBay:
    """Where the engine and the trust session find the medium behind a source name. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._media: dict[str, DirectorySource] = {}

    def insert(self, name: str, source: DirectorySource) -> None:
        """Use this medium from now on, in place of an earlier one of that name; who reads from that one goes on."""
        with self._lock:
            self._media[name] = source

    def eject(self, name: str) -> None:
        """Let go of a medium."""
        with self._lock:
            medium = self._media.pop(name, None)
        if medium is not None:
            medium.close()

    def eject_all(self) -> None:
        """Let go of every medium."""
        with self._lock:
            names = list(self._media)
        for name in names:
            self.eject(name)

    def medium(self, name: str) -> DirectorySource:
        """The medium that was given as `name`.

        Raises:
            SourceError: source.vanished, it is not here (any more).
        """
        with self._lock:
            if name in self._media:
                return self._media[name]
        raise SourceError(
            f"{name}: this medium is not with the updater (any more); the update waits for it",
            code="source.vanished",
        )
