"""Who has to agree to an update, and whether somebody has. Pure.

Invariants: a consent covers exactly one release digest; what arrives over the agent's socket is the agent's claim and
never counts as local; site policy can only ask for more than the release does, never for less.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from tidewaiter_core.clock import parse_utc

from tidewaiter_updater.model import Channel, Consent, Scope


class SitePolicy(StrEnum):
    """`consent.update` of the site configuration."""

    SERVER = "server"
    ASK = "ask"
    DENY = "deny"


_RANK = {Channel.NONE: 0, Channel.SITE: 1, Channel.LOCAL: 2}


def required_channel(release_policy: str, site: SitePolicy, *, local_only: bool = False) -> Channel:
    """The weakest channel that suffices: the stricter of what the release and the site ask for.

    Args:
        local_only: Only a person at the device may agree: the earlier release could not read the data any more, or the
            release goes back to an older one.
    """
    asked = Channel(release_policy)
    return Channel.LOCAL if site is not SitePolicy.SERVER or local_only else asked


def required_scopes(scope: Scope, *, reversible: bool) -> tuple[Scope, ...]:
    """What a consent has to name. That there is no way back is said in words of its own, or it was not agreed to."""
    return (scope,) if reversible else (scope, Scope.IRREVERSIBLE)


def as_claimed_by_agent(consent: Consent) -> Consent:
    """`consent` as it is recorded when the agent relays it: at most the site's word, and marked as a claim."""
    channel = Channel.SITE if consent.channel is Channel.LOCAL else consent.channel
    return Consent(
        digest=consent.digest,
        scope=consent.scope,
        channel=channel,
        who=f"agent's claim: {consent.who}"[:128],
        given_utc=consent.given_utc,
        expires_utc=consent.expires_utc,
    )


def covers(
    consent: Consent | None, *, digest: str, scopes: tuple[Scope, ...], needed: Channel, now: datetime
) -> bool:
    """Whether `consent` allows all of `scopes` for exactly this release, now."""
    if needed is Channel.NONE:
        return True
    if consent is None or consent.digest != digest or not set(scopes) <= set(consent.scope):
        return False
    if _RANK[consent.channel] < _RANK[needed]:
        return False
    return now < parse_utc(consent.expires_utc)
