"""Where things are on the server: the device's DDI prefix, and the links the last poll offered. Pure but for a lock."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit


@dataclass(frozen=True, slots=True)
class Origin:
    """The configured server, as paths."""

    url: str
    tenant: str
    device_id: str

    @property
    def _base(self) -> str:
        return urlsplit(self.url).path.rstrip("/")

    @property
    def poll_path(self) -> str:
        """The DDI resource of this device."""
        return f"{self._base}/{quote(self.tenant, safe='')}/controller/v1/{quote(self.device_id, safe='')}"

    @property
    def tenant_path(self) -> str:
        """Every link that is followed lies below it."""
        return f"{self._base}/{quote(self.tenant, safe='')}"

    @property
    def repository_path(self) -> str:
        """Prefix of the update repository."""
        return f"{self._base}/tuf/"

    def feedback_path(self, rel: str, action_id: str) -> str:
        """Where an action's feedback goes: `rel` is deploymentBase, confirmationBase or cancelAction."""
        return f"{self.poll_path}/{rel}/{quote(action_id, safe='')}/feedback"


class LinkTable:
    """The links of the last successful poll, shared by the workers; empty until then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: dict[str, str] = {}

    def replace(self, paths: Mapping[str, str]) -> None:
        """Take the links of a new poll answer, already checked and reduced to origin-relative paths."""
        with self._lock:
            self._paths = dict(paths)

    def path(self, rel: str) -> str | None:
        """Path of `rel`, or None while the server does not offer it."""
        with self._lock:
            return self._paths.get(rel)
