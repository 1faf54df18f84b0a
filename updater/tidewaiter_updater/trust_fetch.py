"""Gives python-tuf its metadata from a `Source`. Child only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from tuf.api import exceptions
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface

from tidewaiter_updater.errors import SourceError, SourceRefusedError
from tidewaiter_updater.sources import Source

METADATA_URL: Final = "tw:///metadata/"


class SourceFetcher(FetcherInterface):
    """Remembers what it got, for the explanation of a fault."""

    def __init__(self, source: Source, config: UpdaterConfig) -> None:
        self._source = source
        self._limits = {
            "root": config.root_max_length,
            "timestamp": config.timestamp_max_length,
            "snapshot": config.snapshot_max_length,
        }
        self._other_limit = config.targets_max_length
        self.failure: SourceError | None = None
        self.last = b""
        """The last metadata file fetched, as far as it came."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = unquote(url.removeprefix(METADATA_URL))
        role = name.removesuffix(".json").rpartition(".")[2]
        self.last = b""
        # The library does not wrap what a generator raises after its first byte, so all of it is mapped here.
        try:
            for piece in self._source.metadata(name, self._limits.get(role, self._other_limit)):
                self.last += piece
                yield piece
        except SourceRefusedError as err:
            raise exceptions.DownloadHTTPError(str(err), err.status) from err
        except SourceError as err:
            self.failure = err
            if err.code == "source.slow":
                raise exceptions.SlowRetrievalError(str(err)) from err
            raise exceptions.DownloadError(str(err)) from err
