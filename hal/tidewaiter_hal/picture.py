"""What is known of the injector now: takes the driver's payloads, publishes immutable `Knowledge`. Pure.

Written by the port thread only; every other thread reads `knowledge`, which is replaced by one assignment.
Quality is computed when it is read, because age is part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from tidewaiter_hal.events import EventBus
from tidewaiter_hal.injector import AlarmList
from tidewaiter_hal.model import (
    INVALID_AFTER_S,
    STALE_AFTER_S,
    Capabilities,
    Channel,
    ChannelList,
    DeviceCounters,
    Generation,
    Identity,
    Lease,
    LineCounters,
    LinkState,
    Mode,
    Quality,
    Reading,
    SelfTest,
    Snapshot,
    State,
    StateSample,
    sample_distance,
)
from tidewaiter_hal.plausibility import Finding, Plausibility

T = TypeVar("T")

WINDOW_LIMIT: Final = 64
_NO_COUNTERS: Final = LineCounters(
    crc_errors=0, timeouts=0, stale_replies=0, resyncs=0, flood_bytes=0, dropped_events=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelReading:
    """The channel list with the time it was asked for."""

    taken_s: float
    channels: tuple[Channel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knowledge:
    """Everything the port thread knows at one moment."""

    driver: str | None = None
    link: LinkState = LinkState.CLOSED
    link_reason: str = "starting"
    identity: Identity | None = None
    capabilities: Capabilities | None = None
    sample: StateSample | None = None
    findings_now: tuple[Finding, ...] = ()
    """What the latest sample violates."""
    findings: tuple[str, ...] = ()
    window: tuple[StateSample, ...] = ()
    """Consecutive valid samples of one boot with an advancing counter, oldest first."""
    channel_readings: tuple[ChannelReading, ...] = ()
    """The last two."""
    alarms: AlarmList | None = None
    self_test: SelfTest | None = None
    device_counters: DeviceCounters | None = None
    counters: LineCounters = _NO_COUNTERS

    @property
    def is_answering(self) -> bool:
        """Whether questions can be asked now."""
        return self.link in (LinkState.UP, LinkState.DEGRADED)

    @property
    def generation(self) -> Generation:
        """Unknown until the injector said it."""
        return self.capabilities.generation if self.capabilities else Generation.UNKNOWN

    def snapshot(self, now_s: float, lease: Lease | None = None) -> Snapshot:
        """The knowledge with its quality at `now_s`."""
        sample = self.sample
        channels = self.channel_readings[-1].channels if self.channel_readings else ()
        return Snapshot(
            link=self.link,
            link_reason=self.link_reason,
            driver=self.driver,
            identity_key=self.identity.key if self.identity else None,
            boot_id=sample.boot_id if sample else None,
            state=self._reading("state", lambda it: it.state, now_s),
            mode=self._reading("mode", _mode, now_s),
            lockouts=self._reading("lockouts", lambda it: it.lockouts, now_s),
            pressure_kpa=self._reading("pressure_kpa", lambda it: it.pressure_kpa, now_s, key="pk"),
            moving=self._reading("moving", lambda it: it.moving, now_s),
            since_injection_s=self._since_injection(now_s),
            alarm_priority=self._reading("alarm_priority", lambda it: it.alarm_priority, now_s),
            power=self._reading("power", lambda it: it.power, now_s),
            scanner=self._reading("scanner", lambda it: it.scanner, now_s),
            flow_ul_per_s=self._reading("flow_ul_per_s", lambda it: it.flow_ul_per_s, now_s, key="fl"),
            delivered_ul=self._reading("delivered_ul", lambda it: it.delivered_ul, now_s, key="vd"),
            uptime_ms=self._reading("uptime_ms", lambda it: it.uptime_ms, now_s),
            sample=self._reading("sample", lambda it: it.sample, now_s),
            generation=self.generation,
            channels=channels,
            counters=self.counters,
            findings=self.findings,
            lease=lease,
        )

    def _reading(
        self, name: str, pick: Callable[[StateSample], T | None], now_s: float, *, key: str | None = None
    ) -> Reading[T]:
        sample = self.sample
        if sample is None:
            return _bare(Quality.INVALID, None, self.generation)
        value = pick(sample)
        quality = self._quality(name, now_s - sample.taken_s)
        if key is not None and key not in sample.present:
            quality = Quality.NA
        elif value is None or value is State.UNKNOWN:
            quality = Quality.INVALID
        known = quality not in (Quality.INVALID, Quality.NA)
        return Reading(
            value=value if known else None,
            quality=quality,
            taken_s=sample.taken_s,
            device_seq=sample.sample,
            generation=self.generation,
        )

    def _quality(self, name: str, age_s: float) -> Quality:
        if age_s > INVALID_AFTER_S:
            return Quality.INVALID
        rules = {finding.rule for finding in self.findings_now if name in finding.fields}
        if age_s > STALE_AFTER_S or "P9" in rules:
            return Quality.STALE
        return Quality.QUESTIONABLE if rules else Quality.VALID

    def _since_injection(self, now_s: float) -> Reading[int]:
        sample = self.sample
        if sample is None:
            return _bare(Quality.INVALID, None, self.generation)
        since_s = sample.since_injection_s
        reading = self._reading("since_injection_s", lambda it: it.since_injection_s or 0, now_s)
        if since_s is None and reading.quality is not Quality.INVALID:
            # "none since boot" is an answer, but there is no number to give.
            return replace(reading, value=None, quality=Quality.NA)
        return reading


def _bare(quality: Quality, taken_s: float | None, generation: Generation) -> Reading[T]:
    return Reading(value=None, quality=quality, taken_s=taken_s, device_seq=None, generation=generation)


def _mode(sample: StateSample) -> Mode | None:
    return Mode(sample.mode) if sample.mode <= max(Mode) else None


class Picture:
    """Keeps `knowledge` current and publishes what changed."""

    def __init__(self, *, driver: str | None, plausibility: Plausibility, events: EventBus) -> None:
        self.knowledge = Knowledge(driver=driver)
        self._plausibility = plausibility
        self._events = events
        self._told_link: tuple[LinkState, str] = (LinkState.CLOSED, "starting")

    def link_is(self, link: LinkState, reason: str) -> None:
        """The link entered another state. Samples from before a gap never count as consecutive."""
        old = self.knowledge
        if (old.link, old.link_reason) == (link, reason):
            return
        keeps_window = link in (LinkState.UP, LinkState.DEGRADED)
        self.knowledge = replace(
            old, link=link, link_reason=reason, window=old.window if keeps_window else ()
        )
        if not keeps_window:
            self._plausibility.reset()
        # An attempt to open that fails like the one before is no news.
        if link is not LinkState.OPENING and (link, reason) != self._told_link:
            before = self._told_link[0]
            self._told_link = (link, reason)
            self._events.publish("LinkChanged", **{"from": before, "to": link, "reason": reason})

    def forget(self, new_boot_id: int, reset_reason: int | None) -> None:
        """The injector booted: nothing read before is true any more."""
        old = self.knowledge
        self.knowledge = Knowledge(
            driver=old.driver,
            link=old.link,
            link_reason=old.link_reason,
            counters=old.counters,
            findings=old.findings,
        )
        self._plausibility.reset()
        self._events.publish(
            "BootSeen",
            old=str(old.sample.boot_id) if old.sample else "",
            new=str(new_boot_id),
            reset_reason="" if reset_reason is None else str(reset_reason),
        )

    def count(self, counters: LineCounters) -> None:
        """Publish the line's counters."""
        self.knowledge = replace(self.knowledge, counters=counters)

    def accept(self, payload: object, now_s: float, sent_s: float) -> None:
        """Take what a valid answer said."""
        match payload:
            case StateSample():
                self._sampled(payload, now_s)
            case Identity():
                self.knowledge = replace(self.knowledge, identity=payload)
            case Capabilities():
                self.knowledge = replace(self.knowledge, capabilities=payload)
            case AlarmList():
                self.knowledge = replace(self.knowledge, alarms=payload)
            case SelfTest():
                self.knowledge = replace(self.knowledge, self_test=payload)
            case DeviceCounters():
                self.knowledge = replace(self.knowledge, device_counters=payload)
            case ChannelList():
                reading = ChannelReading(taken_s=sent_s, channels=payload.channels)
                last = self.knowledge.channel_readings[-1:]
                self.knowledge = replace(self.knowledge, channel_readings=(*last, reading))

    def transition(self, came_from: int, went_to: int, now_s: float) -> None:
        """A state change of the device's own event log."""
        self._report(self._plausibility.observe_transition(came_from, went_to, now_s))
        self.refresh_findings(now_s)
        self._events.publish(
            "StateChanged",
            **{"from": State.from_wire(came_from).name, "to": State.from_wire(went_to).name, "source": "log"},
        )

    def refresh_findings(self, now_s: float) -> None:
        """Drop findings that are older than 60 s."""
        recent = self._plausibility.recent(now_s)
        if recent != self.knowledge.findings:
            self.knowledge = replace(self.knowledge, findings=recent)

    def _sampled(self, sample: StateSample, now_s: float) -> None:
        old = self.knowledge
        channels = old.channel_readings[-1].channels if old.channel_readings else ()
        findings = self._plausibility.observe(sample, old.capabilities, channels, now_s)
        self.knowledge = replace(
            old,
            sample=sample,
            findings_now=findings,
            findings=self._plausibility.recent(now_s),
            window=_extended(old.window, sample) if old.is_answering or old.link is LinkState.SYNCING else (),
        )
        self._report(findings)
        self._changes(old.sample, sample)

    def _report(self, findings: tuple[Finding, ...]) -> None:
        for finding in findings:
            self._events.publish("Implausible", rule=finding.rule, detail=finding.detail)

    def _changes(self, old: StateSample | None, new: StateSample) -> None:
        if old is None or old.state != new.state:
            before = old.state if old else State.UNKNOWN
            self._events.publish(
                "StateChanged", **{"from": before.name, "to": new.state.name, "source": "poll"}
            )
        if old is None:
            return
        if (old.alarm_changes, old.alarm_priority) != (new.alarm_changes, new.alarm_priority):
            self._events.publish("AlarmChanged", priority=str(new.alarm_priority))
        if (old.lease_active, old.lockouts) != (new.lease_active, new.lockouts):
            active = "yes" if new.lease_active else "no"
            self._events.publish("LeaseChanged", active=active, lockouts=str(new.lockouts))


def _extended(window: tuple[StateSample, ...], sample: StateSample) -> tuple[StateSample, ...]:
    if not window:
        return (sample,)
    newest = window[-1]
    distance = sample_distance(sample.sample, newest.sample)
    if distance == 0 and newest.boot_id == sample.boot_id:
        return window  # the control task did not run: this is the same sample again, getting older
    if distance < 0 or newest.boot_id != sample.boot_id or sample.taken_s - newest.taken_s > STALE_AFTER_S:
        return (sample,)
    return (*window, sample)[-WINDOW_LIMIT:]
