"""The values of update consent and their stored form. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tidewaiter_core.clock import parse_utc


class Decision(StrEnum):
    """Where the consent for one release stands."""

    GRANTED = "granted"
    DENIED = "denied"
    PENDING = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is asked for: one release, as its signed document describes it."""

    digest: str
    product: str
    version: str
    risk: str = ""
    notes: Mapping[str, str] | None = None
    needs_local: bool = False
    """The signed release demands a person at the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A point in time that survives a restart: boot time within one boot, wall clock across boots."""

    utc: str
    boot_id: str
    boottime_s: float

    def age_s(self, now: Moment) -> float:
        """Seconds since then; across a reboot by the wall clock, never negative."""
        if self.boot_id == now.boot_id:
            return max(0.0, now.boottime_s - self.boottime_s)
        return max(0.0, (parse_utc(now.utc) - parse_utc(self.utc)).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A question that waits for a person."""

    id: str
    subject: Subject
    reason: str
    asked: Moment
    timeout_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A yes, for one release, for a while."""

    id: str
    digest: str
    channel: str
    """local: a person at this device answered; site: relayed for the site."""
    given_by: str
    given: Moment
    duration_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A no, or no answer in time."""

    digest: str
    denied: Moment
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentRecord:
    """What happened, for the audit chain and for subscribers."""

    kind: str
    """consent.given, consent.refused, consent.revoked or consent.expired."""
    who: str
    digest: str
    detail: str


def lives(grant: Grant, now: Moment) -> bool:
    """A grant dies with its time and with a reboot."""
    return grant.given.boot_id == now.boot_id and grant.given.age_s(now) < grant.duration_s


def _moment(entry: Mapping[str, Any]) -> Moment:
    moment = Moment(
        utc=str(entry["utc"]), boot_id=str(entry["boot_id"]), boottime_s=float(entry["boottime_s"])
    )
    parse_utc(moment.utc)
    return moment


def prompt_from(entry: Mapping[str, Any]) -> Prompt:
    """Read a stored prompt; KeyError, TypeError or ValueError if it is none."""
    subject = Subject(**entry["subject"])
    return Prompt(
        id=str(entry["id"]),
        subject=subject,
        reason=str(entry["reason"]),
        asked=_moment(entry["asked"]),
        timeout_s=int(entry["timeout_s"]),
    )


def grant_from(entry: Mapping[str, Any]) -> Grant:
    """Read a stored grant."""
    return Grant(
        id=str(entry["id"]),
        digest=str(entry["digest"]),
        channel=str(entry["channel"]),
        given_by=str(entry["given_by"]),
        given=_moment(entry["given"]),
        duration_s=int(entry["duration_s"]),
    )


def denial_from(entry: Mapping[str, Any]) -> Denial:
    """Read a stored denial."""
    return Denial(digest=str(entry["digest"]), denied=_moment(entry["denied"]), why=str(entry["why"]))
