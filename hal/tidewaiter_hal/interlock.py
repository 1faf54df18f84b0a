"""May the device activate, reboot or flash now? Deny unless idle is proven (hal-and-hil.md 6.1). Pure.

Every row of the table is one small function that yields the reasons it finds; all rows are always evaluated, so
that a denial names everything that is missing. An exception in a row denies with its own reason.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from tidewaiter_hal.model import ALL_LOCKOUTS, STALE_AFTER_S, Generation, LinkState, State, StateSample
from tidewaiter_hal.picture import Knowledge

MIN_SAMPLES: Final = 3
MIN_SPAN_S: Final = 5.0
STARTING_S: Final = 5.0
PLUNGER_LIMIT_UM: Final = 50
CHANNELS_MAX_AGE_S: Final = 15.0
DECISION_TTL_MS: Final = 2000
_MEDIUM: Final = 2
_SCANNER_ARMED: Final = 2
_POWER_OK: Final = frozenset({1, 2})


class Purpose(StrEnum):
    """What the permission is for; the number on the wire is the position + 1."""

    ACTIVATE = "activate"
    REBOOT = "reboot"
    FIRMWARE = "firmware"

    @property
    def wire(self) -> int:
        """The `pu` of a lease."""
        return tuple(Purpose).index(self) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An answer, never a permission by itself: usable for `ttl_ms` after `decided_s`."""

    allow: bool
    purpose: Purpose
    reasons: tuple[str, ...]
    evidence: tuple[tuple[str, str], ...]
    decided_s: float
    ttl_ms: int = DECISION_TTL_MS

    def is_usable(self, now_s: float) -> bool:
        """Whether an allow still counts."""
        return self.allow and 0 <= now_s - self.decided_s <= self.ttl_ms / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The image's settings that decide."""

    idle_pressure_limit_kpa: int
    quiet_after_injection_s: int
    bench: bool
    static_by_state: bool = False
    """The driver declares that a state proves standstill where there is no sensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything a decision is made from."""

    knowledge: Knowledge
    purpose: Purpose
    policy: Policy
    now_s: float
    started_s: float
    own_lease: bool
    """The asker holds the lease that the injector shows."""
    other_lease: bool
    """This service holds or acquires a lease for somebody else."""

    @property
    def window(self) -> tuple[StateSample, ...]:
        """The shortest run of newest samples that covers the minimum time, or all there are."""
        samples = self.knowledge.window
        for start in range(len(samples) - MIN_SAMPLES, -1, -1):
            if samples[-1].taken_s - samples[start].taken_s >= MIN_SPAN_S:
                return samples[start:]
        return samples


Row = Callable[[Situation], Iterator[str]]


def _link(now: Situation) -> Iterator[str]:
    if now.knowledge.driver is None:
        yield "no-driver"
    elif now.knowledge.link is LinkState.DEGRADED:
        yield "link-degraded"
    elif now.knowledge.link is LinkState.INCOMPATIBLE:
        yield "incompatible"
    elif now.knowledge.link is not LinkState.UP:
        yield "link-down"
    if now.knowledge.identity is None or now.knowledge.capabilities is None:
        yield "link-down"


def _samples(now: Situation) -> Iterator[str]:
    if now.now_s - now.started_s < STARTING_S:
        yield "hal-starting"
    window = now.window
    if len(window) < MIN_SAMPLES or window[-1].taken_s - window[0].taken_s < MIN_SPAN_S:
        yield "too-few-samples"
    if not window or not 0 <= now.now_s - window[-1].taken_s <= STALE_AFTER_S:
        yield "stale"


def _boot(now: Situation) -> Iterator[str]:
    known = {sample.boot_id for sample in now.window}
    if now.knowledge.identity is not None:
        known.add(now.knowledge.identity.boot_id)
    if len(known) > 1:
        yield "boot-changed"


def _state(now: Situation) -> Iterator[str]:
    states = {sample.state for sample in now.window}
    if not states or State.UNKNOWN in states:
        yield "state-unknown"
    allowed = {State.SERVICE} if now.purpose is Purpose.FIRMWARE else {State.IDLE, State.SERVICE}
    if states - allowed - {State.UNKNOWN}:
        yield "state-not-idle"


def _recent_injection(now: Situation) -> Iterator[str]:
    sample = now.knowledge.sample
    if sample is None:
        yield "recent-injection"
        return
    quiet_s = now.policy.quiet_after_injection_s
    since_s = sample.since_injection_s
    # None is the device's "none since boot", which proves nothing about the time before its boot.
    if (sample.uptime_ms / 1000 if since_s is None else since_s) < quiet_s:
        yield "recent-injection"


def _pressure(now: Situation) -> Iterator[str]:
    for sample in now.window:
        if "pk" not in sample.present:
            if not now.policy.static_by_state:
                yield "pressure"
        elif sample.pressure_kpa is None or sample.pressure_kpa > now.policy.idle_pressure_limit_kpa:
            yield "pressure"


def _motion(now: Situation) -> Iterator[str]:
    if any(sample.moving for sample in now.window):
        yield "motion"
    capabilities = now.knowledge.capabilities
    if capabilities is None or "plunger" not in capabilities.features:
        return
    readings = now.knowledge.channel_readings
    if len(readings) < 2 or now.now_s - readings[-1].taken_s > CHANNELS_MAX_AGE_S:
        yield "motion"
        return
    before = {channel.channel: channel.plunger_um for channel in readings[0].channels}
    if not before or before.keys() != {channel.channel for channel in readings[-1].channels}:
        yield "motion"  # a plunger that is not listed is not one that stands still
    for channel in readings[-1].channels:
        old = before.get(channel.channel)
        if old is None or channel.plunger_um is None or abs(channel.plunger_um - old) > PLUNGER_LIMIT_UM:
            yield "motion"


def _alarm(now: Situation) -> Iterator[str]:
    if any(sample.alarm_priority >= _MEDIUM for sample in now.window):
        yield "alarm"


def _scanner(now: Situation) -> Iterator[str]:
    if any(sample.scanner >= _SCANNER_ARMED for sample in now.window):
        yield "scanner-armed"


def _power(now: Situation) -> Iterator[str]:
    if any(sample.power not in _POWER_OK for sample in now.window):
        yield "power"


def _plausible(now: Situation) -> Iterator[str]:
    if "P5" in now.knowledge.findings:
        yield "clock-anomaly"
    if set(now.knowledge.findings) - {"P5"}:
        yield "questionable"


def _generation(now: Situation) -> Iterator[str]:
    generation = now.knowledge.generation
    benched = now.policy.bench and generation in (Generation.TEST, Generation.DEMO)
    if generation is not Generation.REAL and not benched:
        yield "not-real"


def _lease(now: Situation) -> Iterator[str]:
    sample = now.knowledge.sample
    if now.other_lease or (sample is not None and sample.lease_active and not now.own_lease):
        yield "firmware-busy"


def _consent(now: Situation) -> Iterator[str]:
    sample = now.knowledge.sample
    if now.purpose is Purpose.FIRMWARE and not (sample and sample.service_consent_s):
        yield "no-consent"


ROWS: Final[tuple[Row, ...]] = (
    _link,
    _samples,
    _boot,
    _state,
    _recent_injection,
    _pressure,
    _motion,
    _alarm,
    _scanner,
    _power,
    _plausible,
    _generation,
    _lease,
    _consent,
)


def decide(situation: Situation, *, rows: tuple[Row, ...] = ROWS) -> Decision:
    """Evaluate every row; allow only if none has a reason."""
    reasons: list[str] = []
    for row in rows:
        try:
            reasons += [reason for reason in row(situation) if reason not in reasons]
        except Exception as err:  # noqa: BLE001 - a bug in a row must deny, not end in an answer nobody expects
            reasons.append(f"evaluation-failed:{row.__name__.lstrip('_')}:{type(err).__name__}")
    return Decision(
        allow=not reasons,
        purpose=situation.purpose,
        reasons=tuple(dict.fromkeys(reasons)),
        evidence=_evidence(situation),
        decided_s=situation.now_s,
    )


def _evidence(now: Situation) -> tuple[tuple[str, str], ...]:
    knowledge, window = now.knowledge, now.window
    sample = knowledge.sample
    features = knowledge.capabilities.features if knowledge.capabilities else frozenset()
    evidence = {
        "driver": knowledge.driver or "none",
        "link": f"{knowledge.link}: {knowledge.link_reason}",
        "samples": str(len(window)),
        "generation": knowledge.generation,
        "lease": "supported" if "lease" in features else "absent",
    }
    if window:
        evidence["span_s"] = f"{window[-1].taken_s - window[0].taken_s:.1f}"
        evidence["age_s"] = f"{now.now_s - window[-1].taken_s:.2f}"
    if sample is not None:
        evidence["state"] = sample.state.name
        evidence["boot_id"] = f"{sample.boot_id:08x}"
        since = sample.since_injection_s
        evidence["since_injection_s"] = "none since boot" if since is None else str(since)
        evidence["pressure_kpa"] = _pressure_evidence(sample)
        evidence["locked"] = "yes" if sample.lockouts & ALL_LOCKOUTS == ALL_LOCKOUTS else "no"
    if "plunger" not in features:
        evidence["plunger"] = "not supported"
    if knowledge.findings:
        evidence["findings"] = ",".join(knowledge.findings)
    return tuple(evidence.items())


def _pressure_evidence(sample: StateSample) -> str:
    if "pk" not in sample.present:
        return "not supported"
    return "unknown" if sample.pressure_kpa is None else str(sample.pressure_kpa)
