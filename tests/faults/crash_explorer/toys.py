"""The ports of the engine that are toys here: trust, injector, audit log and one health check; and who agrees to an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tidewaiter_core.audit import Actor, Outcome
from tidewaiter_updater.floor import FloorStore
from tidewaiter_updater.health import Trial
from tidewaiter_updater.model import Channel, CheckResult, Consent, HealthCheck, Scope
from tidewaiter_updater.trust_versions import RoleFloor
from tidewaiter_updater.trust_wire import Listed

from tests.faults.crash_explorer.releases import Made
from tests.sim.device import Power, ToyInjector
from tests.sim.storage import Storage

ROLES = ("root", "timestamp", "snapshot", "targets", "os")


class LedgerAudit:
    """Port AuditTrail: a record is durable when append returns. Only kinds and digests are kept."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def append(
        self,
        kind: str,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        fields: Mapping[str, Any] | None = None,
    ) -> int:
        digest = str((fields or {}).get("digest", ""))
        self._storage.record(f"audit {kind}", ("record", kind, digest))
        return self._storage.steps

    def flush(self) -> None: ...


class SealingInjector(ToyInjector):
    """Tells when a lease is sealed: after ARM, before the reboot."""

    def __init__(self, power: Power, *, on_seal: Callable[[], None]) -> None:
        super().__init__(power)
        self._on_seal = on_seal

    def seal(self, lease_id: str) -> None:
        super().seal(lease_id)
        self._on_seal()


def consent_for(made: Made) -> Consent | None:
    """A release that cannot be undone is asked about at the device."""
    if made.release.data.reversible:
        return None
    return Consent(
        digest=made.release.digest,
        scope=tuple(Scope),
        channel=Channel.LOCAL,
        who="operator",
        given_utc="2026-11-24T12:00:00.000Z",
        expires_utc="2036-11-24T12:00:00.000Z",
    )


class HalCheck:
    """The check that a release asks for; `is_sick` says how it goes."""

    name = "hal"

    def __init__(self, *, is_sick: bool) -> None:
        self._result = CheckResult.FAIL if is_sick else CheckResult.OK

    def run(self, trial: Trial) -> HealthCheck:
        return HealthCheck(name=self.name, result=self._result, detail="toy")


class SigningTrust:
    """Port Trust: a repository that signs what was published; each session raises the version floors, as the real one does."""

    def __init__(self, releases: tuple[Made, ...], floors: FloorStore) -> None:
        self._releases = {made.release.path: made for made in releases}
        self._floors = floors

    def check(self, source: str, release_path: str) -> bytes:
        made = self._releases[release_path]
        version = RoleFloor(version=made.release.sequence, keys="0" * 64)
        self._floors.record_session(source, dict.fromkeys(ROLES, version), proven_utc=made.release.built_utc)
        return made.data

    def permit(self, source: str, permit_path: str) -> bytes | None:
        return None

    def releases(self, source: str, product: str) -> tuple[Listed, ...]:
        return tuple(
            Listed(path=path, sha256=made.release.digest)
            for path, made in self._releases.items()
            if made.release.product == product
        )


def new_boot_id(state: Mapping[Any, Any]) -> str:
    """A boot id that nothing on storage remembers. Not random: equal images must live equal lives."""
    documents = b"".join(value for key, value in state.items() if key[0] in ("inode", "block"))
    number = 1
    while f"{number:08x}".encode() in documents:
        number += 1
    return f"{number:08x}" * 4
