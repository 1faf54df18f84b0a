"""How much life metadata has left: every command that reads a repository says so in time, not only `lint`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from tidewaiter_release.errors import ReleaseToolError
from tidewaiter_release.repository.finding import Finding, error, warning
from tidewaiter_release.repository.media import has_media
from tidewaiter_release.repository.roles import ROLES
from tidewaiter_release.repository.signing import WallClock
from tidewaiter_release.repository.store import State, Store

_CLOCK_SPARE = timedelta(hours=1)
_UNPLANNED_LIFE = timedelta(days=365)


def check_expiry(state: State, clock: WallClock) -> Iterator[Finding]:
    """Each role of one side: expired, in the last quarter of its life, or valid for longer than its role may be."""
    for role, metadata in state.all():
        name = state.side.desk_name(role)
        yield from _check(name, metadata.signed.expires, now=clock.now_utc())


def expiry_notes(store: Store, clock: WallClock) -> list[str]:
    """Who has to sign soon, for the end of any command; a repository that does not verify has other troubles."""
    findings: list[Finding] = []
    for side in (store, store.media) if has_media(store) else (store,):
        try:
            findings += check_expiry(side.load(), clock)
        except ReleaseToolError:
            continue
    texts = dict.fromkeys(
        finding.text for finding in findings
    )  # targets and delegated roles are on both sides
    return list(texts)


def _check(name: str, expires: datetime, *, now: datetime) -> Iterator[Finding]:
    left = expires - now
    life = ROLES[name].lifetime if name in ROLES else _UNPLANNED_LIFE
    stamp = f"{expires:%Y-%m-%dT%H:%M:%SZ}"
    if left <= timedelta(0):
        yield error("expiry", f"{name}: expired at {stamp}; devices refuse the repository")
    elif left < life / 4:
        yield warning("expiry", f"{name}: expires at {stamp}, less than a quarter of its life is left")
    elif left > life + _CLOCK_SPARE:
        yield error("expiry", f"{name}: valid for {left.days} days, at most {life.days} are allowed")
