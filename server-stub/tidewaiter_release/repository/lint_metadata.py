"""The part of `lint` that reads the metadata of one side: roots, roles, thresholds, keys, snapshot, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tuf.api.metadata import Root, Targets

from tidewaiter_release.repository.finding import Finding, error, warning
from tidewaiter_release.repository.keys import KEY_SCHEMES
from tidewaiter_release.repository.media import is_current
from tidewaiter_release.repository.roles import (
    DELEGATED,
    MAX_ROOT_ROTATIONS,
    ROLES,
    TOP_LEVEL,
    RoleSpec,
    Side,
)
from tidewaiter_release.repository.store import State, Store


def check_side(store: Store, state: State) -> Iterator[Finding]:
    """Everything that concerns one side alone."""
    yield from _check_roles(state)
    yield from _check_snapshot(state)
    yield from _check_sizes(store, state)


def check_media(store: Store, media_store: Store, state: State, media: State) -> Iterator[Finding]:
    """What the two sides owe each other: the same files, as far as media has come."""
    for role in ("targets", *media.delegated):
        version = media.targets_role(role).signed.version
        name = f"{version}.{role}.json"
        if (store.metadata / name).exists() and store.read(name) != media_store.read(name):
            yield error("media", f"{name}: differs from the online file of the same version")
        present = state.targets_role(role).signed.version if role in ("targets", *state.delegated) else 0
        if version > present:
            yield error("media", f"{name}: is ahead of the online side, which has version {present}")
    if not is_current(media, state):
        yield warning(
            "media",
            "is behind the online side; `refresh --media` or `stage renew media-snapshot` before an export",
        )


def check_roots(store: Store) -> Iterator[Finding]:
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


def _check_roles(state: State) -> Iterator[Finding]:
    if not state.root.signed.consistent_snapshot:
        yield error(
            "roles", "root: consistent_snapshot is off; a client could mix two states of the repository"
        )
    for name in (spec.name for spec in TOP_LEVEL):
        role, spec = state.root.signed.roles[name], state.side.spec(name)
        yield from _check_threshold(spec, keys=len(set(role.keyids)), threshold=role.threshold)
    if state.side is Side.MEDIA:
        return  # the very file of the online side, compared in check_media
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


def check_keys(states: Sequence[State]) -> Iterator[Finding]:
    """No key in two roles of either side: one stolen key must never count twice."""
    owners: dict[str, str] = {}
    for state in states:
        for name in (spec.name for spec in (*TOP_LEVEL, *DELEGATED)):
            top = name in {spec.name for spec in TOP_LEVEL}
            delegator: Root | Targets = state.root.signed if top else state.targets.signed
            yield from _check_keys_of(state, name, delegator, owners)


def _check_keys_of(
    state: State, role: str, delegator: Root | Targets, owners: dict[str, str]
) -> Iterator[Finding]:
    try:
        keyids = delegator.get_delegated_role(role).keyids
    except ValueError:
        return  # reported by check_side
    name = state.side.desk_name(role)
    for keyid in keyids:
        key = delegator.get_key(keyid)
        # By value, not by keyid: two ids of the same public key would hide the double use.
        value = str(sorted(key.keyval.items()))
        if owners.setdefault(value, name) != name:
            yield error("keys", f"{name}: shares key {keyid[:16]} with {owners[value]}")
        if key.scheme not in KEY_SCHEMES:
            yield error(
                "keys",
                f"{name}: key {keyid[:16]} uses {key.scheme}, expected one of {sorted(KEY_SCHEMES)}",
            )


def _check_snapshot(state: State) -> Iterator[Finding]:
    expected = {"targets.json", *(f"{role}.json" for role in state.delegated)}
    named = state.snapshot.signed.meta
    for name in sorted(expected ^ set(named)):
        yield error(
            "snapshot", f"{name}: {'not named' if name in expected else 'named, but delegated by nobody'}"
        )
    if state.side is Side.MEDIA:
        return  # names versions only, see signing.describe_on
    for name, meta in sorted(named.items()):
        if meta.length is None or set(meta.hashes or {}) != {"sha256"}:
            yield error("snapshot", f"{name}: expected its length and exactly one hash, sha256")


def _check_sizes(store: Store, state: State) -> Iterator[Finding]:
    for role, metadata in state.all():
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        length = len(store.read(name))
        limit = state.side.spec(role).limit_bytes if role in ROLES else ROLES["targets"].limit_bytes
        if length > limit:
            yield error("size", f"{name}: {length} bytes, a client reads at most {limit}")
        elif length > limit * 3 // 4:
            yield warning("size", f"{name}: {length} of the {limit} bytes that a client reads")
