"""A repository over HTTP, for the conformance suite only: the product reads relays and directories, never a socket of its own."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, urlsplit

from tidewaiter_updater.errors import SourceError, SourceRefusedError

_TIMEOUT_S: Final = 30
_PIECE_BYTES: Final = 64 * 1024


class LoopbackSource:
    """Port Source over two base URLs, of which each has to be on this machine."""

    cost_class = "free"

    def __init__(self, metadata_url: str, target_url: str) -> None:
        self._metadata_url = _checked(metadata_url)
        self._target_url = _checked(target_url) if target_url else ""
        self.received_bytes = 0

    def metadata(self, path: str, limit: int) -> Iterator[bytes]:
        # Role names may hold anything, and are one segment of the URL.
        yield from self._get(f"{self._metadata_url}{quote(path, safe='')}", limit + 1)

    def span(self, path: str, offset: int, length: int) -> Iterator[bytes]:
        if offset:
            raise ValueError(f"{path}: the suite serves whole files, byte {offset} was asked for")
        data = b"".join(self._get(f"{self._target_url}{path}", length + 1))
        if len(data) != length:
            raise SourceError(
                f"{path}: expected {length} bytes, found {'more' if len(data) > length else len(data)}; not used",
                code="source.bad-range",
            )
        yield data

    def _get(self, url: str, limit: int) -> Iterator[bytes]:
        try:
            with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
                while limit > 0 and (piece := answer.read(min(_PIECE_BYTES, limit))):
                    limit -= len(piece)
                    self.received_bytes += len(piece)
                    yield piece
        except urllib.error.HTTPError as err:
            with err:
                raise SourceRefusedError(f"{url}: {err.code} {err.reason}", status=err.code) from err
        except OSError as err:
            raise SourceError(f"{url}: {err}; not used") from err


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname not in ("127.0.0.1", "localhost", "::1"):
        raise SourceError(
            f"{url}: expected http on this machine; the conformance client goes nowhere else", retryable=False
        )
    return url.rstrip("/") + "/"
