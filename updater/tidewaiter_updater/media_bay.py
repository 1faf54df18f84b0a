"""The medium that an operator has given to this process: at most one, known by the name it was given under.

It is here as long as it is needed: a held directory keeps the medium from being unmounted. A restart of the process forgets it;
the transaction then waits (`source.vanished`) until somebody gives it again or the network brings the release.

Source names: "relay", or "directory:" and where the operator says the directory is. The name is for people, the journal and the
audit log; nothing is opened by it.
"""

from __future__ import annotations

import threading
from typing import Final

from tidewaiter_updater.directory_source import DirectorySource
from tidewaiter_updater.errors import SourceError

RELAY: Final = "relay"
PREFIX: Final = "directory:"
NAME_CHARS: Final = 200


def source_name(place: str) -> str:
    """The source name of a directory that its operator calls `place`."""
    return PREFIX + place[:NAME_CHARS]


def is_medium(source: str) -> bool:
    """Whether a source name means a directory."""
    return source.startswith(PREFIX)


class MediaBay:
    """Where the engine and the trust session find the medium behind a source name. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._source: DirectorySource | None = None
        self._name = ""

    def insert(self, name: str, source: DirectorySource) -> None:
        """Use this medium from now on, in place of an earlier one."""
        with self._lock:
            self._name, self._source = name, source

    def eject(self) -> None:
        """Let go of the medium; whoever still reads from it finishes first."""
        with self._lock:
            self._name, self._source = "", None

    def medium(self, name: str) -> DirectorySource:
        """The medium that was given as `name`.

        Raises:
            SourceError: source.vanished, it is not here (any more).
        """
        with self._lock:
            if self._source is not None and self._name == name:
                return self._source
        raise SourceError(
            f"{name.removeprefix(PREFIX)}: this medium is not with the updater (any more); the update waits for it",
            code="source.vanished",
        )
