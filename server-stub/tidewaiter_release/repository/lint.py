"""`tidewaiter-release lint`: every number and every byte of a repository, checked as an outsider would.

Needs no key. Each check is a function that yields findings; an error means that devices refuse the repository or could be
misled by it, a warning that somebody has to act soon.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from tidewaiter_core.payload import STANDARD, Limits
from tidewaiter_core.payload.fields import is_target_path
from tuf.api.metadata import Root, Targets

from tidewaiter_release.errors import ReleaseToolError
from tidewaiter_release.repository.finding import Finding, Severity, error, warning
from tidewaiter_release.repository.keys import KEY_SCHEMES
from tidewaiter_release.repository.lint_releases import check_files, check_releases
from tidewaiter_release.repository.roles import (
    DELEGATED,
    MAX_ROOT_ROTATIONS,
    ROLES,
    TOP_LEVEL,
    RoleSpec,
    path_matches,
)
from tidewaiter_release.repository.signing import WallClock
from tidewaiter_release.repository.store import State, Store

__all__ = ["Finding", "Severity", "lint"]

_CLOCK_SPARE = timedelta(hours=1)


def lint(store: Store, *, clock: WallClock, limits: Limits = STANDARD) -> list[Finding]:
    """Everything that is wrong, errors first."""
    findings = list(_check_roots(store))
    try:
        state = store.load()
    except ReleaseToolError as err:
        return [*findings, error("metadata", str(err))]
    findings += _check_expiry(state, clock)
    findings += _check_roles(state)
    findings += _check_keys(state)
    findings += _check_snapshot(state)
    findings += _check_sizes(store, state)
    findings += _check_targets(state)
    findings += check_files(store, state)
    findings += check_releases(store, state, limits=limits)
    return sorted(findings, key=lambda finding: finding.severity is Severity.WARNING)


def _check_roots(store: Store) -> Iterator[Finding]:
    """Every root that ever was is needed by a device that slept through its successors."""
    numbers = sorted(
        int(path.name.partition(".")[0])
        for path in store.metadata.glob("*.root.json")
        if path.name.partition(".")[0].isdigit()
    )
    missing = sorted(set(range(1, max(numbers, default=1) + 1)) - set(numbers))
    if missing:
        yield error(
            "roots",
            f"{missing[0]}.root.json is missing; a device that trusts an older root can never pass it",
        )
    if len(numbers) > MAX_ROOT_ROTATIONS:
        yield error("roots", f"{len(numbers)} roots; a client follows at most {MAX_ROOT_ROTATIONS}")


def _check_expiry(state: State, clock: WallClock) -> Iterator[Finding]:
    now = clock.now_utc()
    for role, metadata in state.all():
        expires = metadata.signed.expires
        left = expires - now
        lifetime = ROLES[role].lifetime if role in ROLES else timedelta(days=365)
        if left <= timedelta(0):
            yield error(
                "expiry", f"{role}: expired at {expires:%Y-%m-%dT%H:%M:%SZ}; devices refuse the repository"
            )
        elif left < lifetime / 4:
            yield warning(
                "expiry",
                f"{role}: expires at {expires:%Y-%m-%dT%H:%M:%SZ}, less than a quarter of its life is left",
            )
        elif left > lifetime + _CLOCK_SPARE:
            yield error("expiry", f"{role}: valid for {left.days} days, at most {lifetime.days} are allowed")


def _check_roles(state: State) -> Iterator[Finding]:
    if not state.root.signed.consistent_snapshot:
        yield error(
            "roles", "root: consistent_snapshot is off; a client could mix two states of the repository"
        )
    for spec in TOP_LEVEL:
        role = state.root.signed.roles[spec.name]
        yield from _check_threshold(spec, keys=len(set(role.keyids)), threshold=role.threshold)
    delegations = state.targets.signed.delegations
    roles = (delegations.roles or {}) if delegations is not None else {}
    for spec in DELEGATED:
        if spec.name not in roles:
            yield error("roles", f"{spec.name}: targets does not delegate to it")
            continue
        delegated = roles[spec.name]
        yield from _check_threshold(spec, keys=len(set(delegated.keyids)), threshold=delegated.threshold)
        if not delegated.terminating:
            yield error(
                "roles",
                f"{spec.name}: its delegation is not terminating; another role could answer for its paths",
            )
        if tuple(delegated.paths or ()) != spec.paths:
            yield error("roles", f"{spec.name}: signs {delegated.paths}, expected {list(spec.paths)}")
    for name in sorted(set(roles) - {spec.name for spec in DELEGATED}):
        yield error("roles", f"{name}: a delegation that nobody planned")


def _check_threshold(spec: RoleSpec, *, keys: int, threshold: int) -> Iterator[Finding]:
    if (keys, threshold) != (spec.keys, spec.threshold):
        yield error(
            "threshold", f"{spec.name}: {threshold} of {keys} keys, expected {spec.threshold} of {spec.keys}"
        )


def _check_keys(state: State) -> Iterator[Finding]:
    """No key in two roles: one stolen key must never count twice."""
    owners: dict[str, str] = {}
    for spec in (*TOP_LEVEL, *DELEGATED):
        delegator: Root | Targets = state.root.signed if spec in TOP_LEVEL else state.targets.signed
        try:
            keyids = delegator.get_delegated_role(spec.name).keyids
        except ValueError:
            continue  # reported by _check_roles
        for keyid in keyids:
            key = delegator.get_key(keyid)
            # By value, not by keyid: two ids of the same public key would hide the double use.
            value = str(sorted(key.keyval.items()))
            if owners.setdefault(value, spec.name) != spec.name:
                yield error("keys", f"{spec.name}: shares key {keyid[:16]} with {owners[value]}")
            if key.scheme not in KEY_SCHEMES:
                yield error(
                    "keys",
                    f"{spec.name}: key {keyid[:16]} uses {key.scheme}, expected one of {sorted(KEY_SCHEMES)}",
                )


def _check_snapshot(state: State) -> Iterator[Finding]:
    expected = {"targets.json", *(f"{role}.json" for role in state.delegated)}
    named = state.snapshot.signed.meta
    for name in sorted(expected ^ set(named)):
        yield error(
            "snapshot", f"{name}: {'not named' if name in expected else 'named, but delegated by nobody'}"
        )
    for name, meta in sorted(named.items()):
        if meta.length is None or set(meta.hashes or {}) != {"sha256"}:
            yield error("snapshot", f"{name}: expected its length and exactly one hash, sha256")


def _check_sizes(store: Store, state: State) -> Iterator[Finding]:
    for role, metadata in state.all():
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        length = len(store.read(name))
        limit = ROLES[role].limit_bytes if role in ROLES else ROLES["targets"].limit_bytes
        if length > limit:
            yield error("size", f"{name}: {length} bytes, a client reads at most {limit}")
        elif length > limit * 3 // 4:
            yield warning("size", f"{name}: {length} of the {limit} bytes that a client reads")


def _check_targets(state: State) -> Iterator[Finding]:
    for role, metadata in (("targets", state.targets), *state.delegated.items()):
        spec = ROLES.get(role)
        for path, target in sorted(metadata.signed.targets.items()):
            if not is_target_path(path):
                yield error("target", f"{ascii(path)[:100]}: no path that a device accepts")
            elif spec is not None and not any(path_matches(path, pattern) for pattern in spec.paths):
                yield error("target", f"{path}: signed by {role}, which may sign {', '.join(spec.paths)}")
            if set(target.hashes) != {"sha256"}:
                yield error("target", f"{path}: hashes {sorted(target.hashes)}, expected exactly sha256")
