"""Which links are followed, and where repository bytes come from: the two `server.*` settings turned into functions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from tidewaiter_core import ddi
from tidewaiter_core.settings import LinkPolicy, RepositorySource, Server

from tidewaiter_agent.errors import NetError
from tidewaiter_agent.origin import Origin

LinkRule = Callable[[str], str]
"""From an href to an origin-relative path; ddi.ForeignLinkError if it is not ours."""


def link_rule(server: Server, origin: Origin) -> LinkRule:
    """The rule of `server.links`: strict compares the origin, path-only drops it."""

    def follow(href: str) -> str:
        return ddi.check_link(
            href,
            origin=server.url,
            tenant_prefix=origin.tenant_path,
            path_only=server.links is LinkPolicy.PATH_ONLY,
        )

    return follow


class ArtifactTable:
    """Plain hawkBit has no repository: the files of the present deployment, by name (`server.repository = "artifacts"`)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, str] | None = None

    def replace(self, paths: Mapping[str, str]) -> None:
        """Take the artifacts of a deployment, already checked and origin-relative."""
        with self._lock:
            self._paths = dict(paths)

    def locate(self, repository_path: str) -> str | None:
        """The artifact named like the last element of the path, e.g. `3.root.json`.

        Raises:
            NetError: No deployment was seen since the start, so nothing is known.
        """
        with self._lock:
            if self._paths is None:
                raise NetError(
                    f"{repository_path}: no deployment was read since the start; tried again after the next poll"
                )
            return self._paths.get(repository_path.rpartition("/")[2])


def repository_map(
    source: RepositorySource, origin: Origin, artifacts: ArtifactTable
) -> Callable[[str], str | None]:
    """Where the relay finds a repository path."""
    if source is RepositorySource.ARTIFACTS:
        return artifacts.locate
    return lambda path: origin.repository_path + path
