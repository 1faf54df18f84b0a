"""`tidewaiter-release lint`: every number and every byte of a repository, checked as an outsider would.

Needs no key. Each check is a function that yields findings; an error means that devices refuse the repository or could be
misled by it, a warning that somebody has to act soon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tidewaiter_core.payload import STANDARD, Limits
from tidewaiter_core.payload.fields import is_target_path

from tidewaiter_release.errors import ReleaseToolError
from tidewaiter_release.repository.expiry import check_expiry
from tidewaiter_release.repository.finding import Finding, Severity, error
from tidewaiter_release.repository.lint_metadata import check_keys, check_media, check_roots, check_side
from tidewaiter_release.repository.lint_releases import check_files, check_releases
from tidewaiter_release.repository.media import has_media
from tidewaiter_release.repository.roles import ROLES, Side, path_matches
from tidewaiter_release.repository.signing import WallClock
from tidewaiter_release.repository.store import State, Store

__all__ = ["Finding", "Severity", "lint"]


def lint(store: Store, *, clock: WallClock, limits: Limits = STANDARD) -> list[Finding]:
    """Everything that is wrong with either side, errors first."""
    findings: list[Finding] = []
    states: dict[Side, State] = {}
    for side in (store, store.media):
        if side.side is Side.MEDIA and not has_media(store):
            if not states:
                continue  # there is no repository at all, as the other side says
            findings.append(error("media", "missing; no stick can be made from this repository"))
            continue
        findings += _of_side(check_roots(side), side)
        try:
            states[side.side] = side.load()
        except ReleaseToolError as err:
            findings.append(error("metadata", str(err)))
    findings += check_keys(list(states.values()))
    for side in (store, store.media):
        if (state := states.get(side.side)) is not None:
            findings += check_expiry(state, clock)
            findings += _of_side(check_side(side, state), side)
    online, media = states.get(Side.ONLINE), states.get(Side.MEDIA)
    if online is not None:
        findings += _check_targets(online)
        findings += check_files(store, list(states.values()))
        findings += check_releases(store, online, limits=limits)
        if media is not None:
            findings += check_media(store, store.media, online, media)
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.severity is Severity.WARNING)


def _of_side(findings: Iterable[Finding], store: Store) -> Iterator[Finding]:
    """Findings under the name of the side they are about."""
    for finding in findings:
        prefix = "media side: " if store.side is Side.MEDIA else ""
        yield Finding(finding.severity, finding.check, prefix + finding.text)


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
