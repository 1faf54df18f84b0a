"""Impossible values and transitions (rules P1-P9 of hal-and-hil.md 2). Pure.

A finding makes the fields it names QUESTIONABLE (P9: everything STALE) and denies the interlock until 60 s
have passed without one. Polling may miss short states, so a pair of polls is judged only by P3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tidewaiter_hal.model import Capabilities, Channel, State, StateSample, sample_distance

QUIET_S: Final = 60.0
CLOCK_WINDOW_S: Final = 10.0
CLOCK_TOLERANCE: Final = 0.2
PRESSURE_FACTOR: Final = 1.2
FROZEN_POLLS: Final = 2
ALL_FIELDS: Final = frozenset(
    {
        "state",
        "mode",
        "lockouts",
        "pressure_kpa",
        "moving",
        "since_injection_s",
        "alarm_priority",
        "power",
        "scanner",
        "flow_ul_per_s",
        "delivered_ul",
        "uptime_ms",
        "sample",
    }
)
_ENUM_FIELDS: Final = {
    "st": "state",
    "md": "mode",
    "al": "alarm_priority",
    "pw": "power",
    "sc": "scanner",
}
_MOVING_STATES: Final = frozenset({State.INJECTING, State.HOLD})
_NEVER_AFTER_MOVING: Final = frozenset({State.SERVICE, State.UPDATING, State.BOOTING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One rule that fired."""

    rule: str
    detail: str
    fields: frozenset[str]


class Plausibility:
    """Judges each sample against the rules and the samples before it."""

    def __init__(self, idle_pressure_limit_kpa: int) -> None:
        self._idle_limit_kpa = idle_pressure_limit_kpa
        self._previous: StateSample | None = None
        self._anchor: StateSample | None = None
        self._unchanged = 0
        self._fired: dict[str, float] = {}

    def reset(self) -> None:
        """The injector booted or the line was lost: no pair of samples may span that. Old findings stay."""
        self._previous = self._anchor = None
        self._unchanged = 0

    def recent(self, now_s: float) -> tuple[str, ...]:
        """Rules that fired in the last 60 s."""
        return tuple(sorted(rule for rule, when_s in self._fired.items() if now_s - when_s < QUIET_S))

    def observe(
        self,
        sample: StateSample,
        capabilities: Capabilities | None,
        channels: tuple[Channel, ...],
        now_s: float,
    ) -> tuple[Finding, ...]:
        """Judge the next sample of the poll."""
        findings = [
            *self._alone(sample, capabilities, channels),
            *(self._pair(self._previous, sample) if self._previous else ()),
            *self._clock(sample),
        ]
        self._previous = sample
        self._note(findings, now_s)
        return tuple(findings)

    def observe_transition(self, came_from: int, went_to: int, now_s: float) -> tuple[Finding, ...]:
        """Judge a transition of the device's own event log."""
        old, new = State.from_wire(came_from), State.from_wire(went_to)
        if old not in _MOVING_STATES or new not in _NEVER_AFTER_MOVING:
            return ()
        finding = _finding("P3", f"event log: {old.name} went to {new.name} at once", "state")
        self._note([finding], now_s)
        return (finding,)

    def _note(self, findings: list[Finding], now_s: float) -> None:
        for finding in findings:
            self._fired[finding.rule] = now_s

    def _alone(
        self, sample: StateSample, capabilities: Capabilities | None, channels: tuple[Channel, ...]
    ) -> Iterator[Finding]:
        if sample.state is State.IDLE and sample.moving:
            yield _finding("P1", "idle with motion", "state", "moving")
        pressure = sample.pressure_kpa
        if pressure is not None:
            if sample.state is State.IDLE and pressure > self._idle_limit_kpa:
                text = f"idle with {pressure} kPa, limit {self._idle_limit_kpa}"
                yield _finding("P2", text, "state", "pressure_kpa")
            if capabilities and pressure > PRESSURE_FACTOR * capabilities.pressure_limit_kpa:
                text = f"{pressure} kPa, the injector's limit is {capabilities.pressure_limit_kpa}"
                yield _finding("P7", text, "pressure_kpa")
        for channel, delivered in zip(channels, sample.delivered_ul, strict=False):
            if delivered > channel.capacity_ul:
                text = f"channel {channel.channel} delivered {delivered} uL of {channel.capacity_ul}"
                yield _finding("P6", text, "delivered_ul")
        for key in sorted(sample.unknown_enums):
            yield _finding("P8", f"unknown number in {key}", _ENUM_FIELDS[key])

    def _pair(self, old: StateSample, new: StateSample) -> Iterator[Finding]:
        if old.boot_id != new.boot_id:
            self._unchanged = 0
            return
        # BOOTING under the same boot id is never right; the others need an event between.
        unexplained = new.state is State.BOOTING or new.event_head == old.event_head
        if old.state in _MOVING_STATES and new.state in _NEVER_AFTER_MOVING and unexplained:
            yield _finding("P3", f"{old.state.name} went to {new.state.name} without an event", "state")
        distance = sample_distance(new.sample, old.sample)
        if new.uptime_ms < old.uptime_ms:
            yield _finding("P4", f"uptime {old.uptime_ms} ms was followed by {new.uptime_ms}", "uptime_ms")
        if distance < 0:
            yield _finding("P4", f"sample {old.sample} was followed by {new.sample}", "sample")
        self._unchanged = self._unchanged + 1 if distance == 0 else 0
        if self._unchanged >= FROZEN_POLLS:
            text = f"sample {new.sample} unchanged over {self._unchanged} polls while replies arrive"
            yield Finding(rule="P9", detail=text, fields=ALL_FIELDS)
        same_injection = old.injection_head == new.injection_head and {old.state, new.state} <= _MOVING_STATES
        if same_injection and any(n < o for o, n in zip(old.delivered_ul, new.delivered_ul, strict=False)):
            yield _finding("P6", "delivered volume shrank within one injection", "delivered_ul")

    def _clock(self, sample: StateSample) -> Iterator[Finding]:
        anchor = self._anchor
        if anchor is None or anchor.boot_id != sample.boot_id or sample.uptime_ms < anchor.uptime_ms:
            self._anchor = sample
            return
        # The clock of the device is read when the reply is built, not when the sample was taken; 250 ms of
        # round trip in 10 s stay far below the tolerance.
        host_s = sample.taken_s - anchor.taken_s
        if host_s < CLOCK_WINDOW_S:
            return
        device_s = (sample.uptime_ms - anchor.uptime_ms) / 1000
        self._anchor = sample
        if abs(device_s - host_s) > CLOCK_TOLERANCE * host_s:
            yield _finding("P5", f"{device_s:.1f} s on the device were {host_s:.1f} s here", "uptime_ms")


def _finding(rule: str, detail: str, *fields: str) -> Finding:
    return Finding(rule=rule, detail=detail, fields=frozenset(fields))
