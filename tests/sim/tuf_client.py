"""A device as any TUF tool is one: python-tuf's own client over a directory, with the root that an image carries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

_PIECE_BYTES = 64 * 1024


class DirectoryFetcher(FetcherInterface):
    """Serves `tw:///metadata/...` and `tw:///targets/...` from a repository directory; absent is 404, as over HTTP."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self.fetched: list[str] = []
        """Every path that was asked for."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = unquote(urlsplit(url).path).lstrip("/")
        self.fetched.append(path)
        file = self._repository / path
        if not file.is_file():
            raise DownloadHTTPError(f"{path}: not found", 404)
        return self._pieces(file)

    def _pieces(self, file: Path) -> Iterator[bytes]:
        with file.open("rb") as reader:
            while piece := reader.read(_PIECE_BYTES):
                yield piece


class TufDevice:
    """Keeps its metadata between sessions, as a device does."""

    def __init__(self, directory: Path, *, repository: Path, root: Path) -> None:
        self._directory = directory
        self._repository = repository
        self._root = root.read_bytes()
        (directory / "metadata").mkdir(parents=True)
        (directory / "targets").mkdir()

    def session(self) -> Updater:
        """A refreshed client.

        Raises:
            tuf.api.exceptions.RepositoryError: The repository is not to be trusted.
        """
        updater = Updater(
            str(self._directory / "metadata"),
            "tw:///metadata/",
            target_dir=str(self._directory / "targets"),
            target_base_url="tw:///targets/",
            fetcher=DirectoryFetcher(self._repository),
            bootstrap=self._root,
        )
        updater.refresh()
        return updater

    def fetch(self, target: str) -> bytes:
        """A verified target.

        Raises:
            KeyError: No role signs it.
        """
        updater = self.session()
        info = updater.get_targetinfo(target)
        if info is None:
            raise KeyError(target)
        return Path(updater.download_target(info, str(self._directory / "targets" / "file"))).read_bytes()
