"""The simulated injector itself: states, pistons, pressure, lease, logs and self-test. Pure; time comes in from outside.

Everything a protocol face reports is taken from one `Sample`, made by the control task. `speed` makes pistons and
waiting states faster, never the device's clock, the lease or the time since the last injection: those are what the
host measures.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tidewaiter_hal.model import State
from tidewaiter_hal.sim.recorder import Recorder

LOAD_UL_PER_S: Final = 30_000
PURGE_UL: Final = 4_000
PURGE_UL_PER_S: Final = 4_000
UM_PER_UL: Final = 0.75
PRESSURE_LIMIT_KPA: Final = 2_070
MAX_FLOW_UL_PER_S: Final = 10_000
REST_KPA: Final = 8
KPA_PER_UL_PER_S: Final[Mapping[int, float]] = {1: 0.22, 2: 0.08}
RAMP_S: Final = 0.35
BOOT_S: Final = 0.8
SELF_TEST_S: Final = 0.8
COMPLETE_S: Final = 3.0
ABORTED_S: Final = 20.0
CONSENT_S: Final = 600
OPERATOR_PAUSE_S: Final = 60.0
_STEP_S: Final = 0.02


class ActionError(ValueError):
    """The action is not possible in this state; nothing happened."""


@dataclass(slots=True, kw_only=True)
class Piston:
    """One syringe and its piston."""

    fluid: int
    capacity_ul: int
    remaining_ul: float
    flow_ul_per_s: float = 0.0
    delivered_ul: float = 0.0
    loaded: bool = True

    @property
    def plunger_um(self) -> int:
        """Position from the full syringe on."""
        return round((self.capacity_ul - self.remaining_ul) * UM_PER_UL)


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of an injection."""

    channel: int
    volume_ul: int
    flow_ul_per_s: int


@dataclass(slots=True, kw_only=True)
class Lease:
    """An inhibit lease as the device keeps it."""

    token: bytes
    purpose: int
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One atomic copy made by the control task."""

    taken_s: float
    number: int
    state: State
    pressure_kpa: int
    moving: bool
    flow_ul_per_s: tuple[int, ...]
    delivered_ul: tuple[int, ...]
    lockouts: int


@dataclass(slots=True, kw_only=True)
class Injector:
    """The machine. Call `advance` before reading anything."""

    now_s: float
    seed: int = 1
    speed: float = 1.0
    uptime_ms: int = 0
    generation: int = 0
    serial: str = "SIM-000001"
    clock_ppm: float = 0.0
    control_frozen: bool = False
    state: State = State.IDLE
    mode: int = 0
    power: int = 1
    scanner: int = 0
    idle_pressure_kpa: float = REST_KPA
    pressure_kpa: float = REST_KPA
    alarm_priority: int = 0
    alarm_changes: int = 0
    boot_id: int = 0
    boot_counter: int = 0
    reset_reason: int = 1
    silent_until_s: float = 0.0
    lease: Lease | None = None
    lease_limit_ms: int | None = None
    lease_refused: bool = False
    consent_until_s: float = 0.0
    protocol: list[Phase] = field(default_factory=lambda: [Phase(0, 60_000, 4_000), Phase(1, 40_000, 4_000)])
    pistons: list[Piston] = field(
        default_factory=lambda: [
            Piston(fluid=1, capacity_ul=200_000, remaining_ul=150_000),
            Piston(fluid=2, capacity_ul=200_000, remaining_ul=180_000),
        ]
    )
    rng: random.Random = field(init=False)
    logs: Recorder = field(init=False)
    sample: Sample = field(init=False)
    injection_ended_s: float | None = None
    injections_total: int = 0
    self_test: tuple[int, int] = (1, 0)
    """Result and the device ms of it."""
    phase: int = 0
    phase_left_ul: float = 0.0
    _boot_s: float = 0.0
    _boot_ms: int = 0
    _state_since_s: float = 0.0
    _injection_started_s: float = 0.0
    _peak: tuple[int, int] = (0, 0)
    _operator_said_no_s: float = float("-inf")

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)  # noqa: S311 - a simulator has to repeat itself
        self.logs = Recorder(self.rng.randrange(1, 1 << 32))
        self._new_boot(self.uptime_ms)
        self._take_sample()

    # Time

    def advance(self, now_s: float) -> None:
        """Let the machine run until `now_s`."""
        while self.now_s < now_s:
            step_s = min(_STEP_S, now_s - self.now_s)
            self.now_s += step_s
            self._run(step_s)
        if not self.control_frozen:
            self._take_sample()

    def device_ms(self) -> int:
        """The device's own clock."""
        elapsed_s = (self.now_s - self._boot_s) * (1 + self.clock_ppm / 1e6)
        return self._boot_ms + int(elapsed_s * 1000)

    @property
    def is_silent(self) -> bool:
        """Booting: nobody answers on the line yet."""
        return self.now_s < self.silent_until_s

    def since_injection_s(self) -> int | None:
        """Seconds since the last injection of this boot ended."""
        return None if self.injection_ended_s is None else int(self.now_s - self.injection_ended_s)

    def lease_left_ms(self) -> int:
        """0 when there is none."""
        return 0 if self.lease is None else max(0, int((self.lease.expires_s - self.now_s) * 1000))

    def consent_left_s(self) -> int:
        """Local consent for firmware, only in SERVICE."""
        return max(0, int(self.consent_until_s - self.now_s)) if self.state is State.SERVICE else 0

    def in_state_s(self) -> float:
        """How long the state lasts already, in the machine's speed."""
        return (self.now_s - self._state_since_s) * self.speed

    def _run(self, step_s: float) -> None:
        if self.lease is not None and self.now_s >= self.lease.expires_s:
            self._end_lease(0)
        scaled_s = step_s * self.speed
        match self.state:
            case State.LOADING:
                self._load(scaled_s)
            case State.PURGING:
                self._inject(scaled_s, self._purged)
            case State.INJECTING:
                self._inject(scaled_s, self._completed)
            case State.BOOTING if self.in_state_s() >= BOOT_S:
                self.go(State.SELF_TEST)
            case State.SELF_TEST if self.in_state_s() >= SELF_TEST_S:
                self.self_test = (1, self.device_ms())
                self.go(State.IDLE)
            case State.COMPLETE if self.in_state_s() >= COMPLETE_S:
                self.go(State.IDLE)
            case State.ABORTED if self.in_state_s() >= ABORTED_S:
                self.go(State.IDLE)
        self._settle_pressure(scaled_s)

    def _load(self, scaled_s: float) -> None:
        full = True
        for piston in self.pistons:
            if piston.remaining_ul < piston.capacity_ul:
                piston.remaining_ul = min(piston.capacity_ul, piston.remaining_ul + LOAD_UL_PER_S * scaled_s)
                full = full and piston.remaining_ul >= piston.capacity_ul
        if full and self.in_state_s() >= 1.0:
            self.go(State.READY)

    def _inject(self, scaled_s: float, done: Callable[[], None]) -> None:
        phase = (
            self.protocol[self.phase] if self.state is State.INJECTING else Phase(0, PURGE_UL, PURGE_UL_PER_S)
        )
        piston = self.pistons[phase.channel]
        ramp = min(1.0, scaled_s / RAMP_S)
        piston.flow_ul_per_s += (phase.flow_ul_per_s - piston.flow_ul_per_s) * ramp
        volume = min(piston.flow_ul_per_s * scaled_s, self.phase_left_ul, piston.remaining_ul)
        piston.remaining_ul -= volume
        piston.delivered_ul += volume
        self.phase_left_ul -= volume
        peak_flow, peak_kpa = self._peak
        self._peak = (max(peak_flow, round(piston.flow_ul_per_s)), max(peak_kpa, round(self.pressure_kpa)))
        if self.phase_left_ul <= 0.5 or piston.remaining_ul <= 0.5:
            piston.flow_ul_per_s = 0.0
            done()

    def _purged(self) -> None:
        self.go(State.READY)

    def _completed(self) -> None:
        if self.phase + 1 < len(self.protocol):
            self.phase += 1
            self.phase_left_ul = self.protocol[self.phase].volume_ul
            return
        self._end_injection(1)
        self.go(State.COMPLETE)

    def _settle_pressure(self, scaled_s: float) -> None:
        target = self.idle_pressure_kpa
        for piston in self.pistons:
            target += piston.flow_ul_per_s * KPA_PER_UL_PER_S.get(piston.fluid, 0.1)
        if target > self.idle_pressure_kpa:
            target *= 1 + self.rng.uniform(-0.01, 0.01)
        self.pressure_kpa += (target - self.pressure_kpa) * min(1.0, scaled_s / RAMP_S)

    # What people and hosts do

    def do(self, action: str) -> None:
        """An operator's or technician's action. Raises ActionError."""
        allowed, effect = self._actions().get(action, (frozenset(), None))
        if effect is None:
            raise ActionError(f"{action}: no such action; there are {', '.join(sorted(self._actions()))}")
        if allowed and self.state not in allowed:
            names = ", ".join(sorted(state.name for state in allowed))
            raise ActionError(
                f"{action}: possible in {names}, the injector is {self.state.name}; nothing happened"
            )
        locked = {"arm": 1, "start": 2, "resume": 4}.get(action, 0)
        if locked & self.lockouts:
            raise ActionError(f"{action}: locked by an inhibit lease; cancel_lease ends it")
        effect()
        self._take_sample()

    def _actions(self) -> Mapping[str, tuple[frozenset[State], Callable[[], None]]]:
        s = State
        moving = frozenset({s.INJECTING, s.HOLD})
        at_rest = frozenset({s.IDLE, s.READY, s.COMPLETE, s.ABORTED})
        return {
            "load": (at_rest, lambda: self.go(s.LOADING)),
            "purge": (frozenset({s.IDLE, s.READY}), self._start_purge),
            "arm": (frozenset({s.IDLE, s.READY}), lambda: self.go(s.ARMED)),
            "start": (frozenset({s.ARMED}), self._start_injection),
            "hold": (frozenset({s.INJECTING}), self._hold),
            "resume": (frozenset({s.HOLD}), lambda: self.go(s.INJECTING)),
            "abort": (moving | {s.LOADING, s.PURGING, s.ARMED}, self._abort),
            "disarm": (at_rest | {s.ARMED}, lambda: self.go(s.IDLE)),
            "fail": (frozenset(), self._fail),
            "clear": (frozenset({s.FAULT, s.SAFE}), self._clear),
            "service_on": (frozenset({s.IDLE}), lambda: self.go(s.SERVICE)),
            "service_off": (frozenset({s.SERVICE}), lambda: self.go(s.IDLE)),
            "consent": (frozenset({s.SERVICE}), self._consent),
            "cancel_lease": (frozenset(), self._cancel_lease),
            "power_cut": (frozenset(), lambda: self.reboot(reason=1)),
        }

    def go(self, state: State) -> None:
        """Enter a state and log it."""
        if state is self.state:
            return
        self.logs.event(self.boot_id, self.device_ms(), 1, self.state, state)
        if state not in (State.INJECTING, State.PURGING):
            self._stop_pistons()
        if state is not State.SERVICE:
            self.consent_until_s = 0.0
        self.state = state
        self._state_since_s = self.now_s

    def _start_purge(self) -> None:
        self.phase_left_ul = PURGE_UL
        self.go(State.PURGING)

    def _start_injection(self) -> None:
        self.phase, self.phase_left_ul = 0, self.protocol[0].volume_ul
        for piston in self.pistons:
            piston.delivered_ul = 0.0
        self._injection_started_s = self.now_s
        self._peak = (0, 0)
        self.injections_total += 1
        self.go(State.INJECTING)

    def _hold(self) -> None:
        self._stop_pistons()
        self.go(State.HOLD)

    def _abort(self) -> None:
        if self.state in (State.INJECTING, State.HOLD):
            self._end_injection(2)
        self.go(State.ABORTED)

    def _fail(self) -> None:
        if self.state in (State.INJECTING, State.HOLD):
            self._end_injection(3)
        self.logs.fault(self.boot_id, self.device_ms(), code=0x0201, severity=3, board=1, argument=None)
        self.set_alarm(3)
        self.go(State.FAULT)

    def _clear(self) -> None:
        self.set_alarm(0)
        self.go(State.IDLE)

    def _consent(self) -> None:
        self.consent_until_s = self.now_s + CONSENT_S

    def _stop_pistons(self) -> None:
        for piston in self.pistons:
            piston.flow_ul_per_s = 0.0

    def _end_injection(self, end: int) -> None:
        self._stop_pistons()
        self.injection_ended_s = self.now_s
        flow, kpa = self._peak
        self.logs.injection(
            self.boot_id,
            start_ms=self.device_ms() - int((self.now_s - self._injection_started_s) * 1000),
            planned_ul=sum(phase.volume_ul for phase in self.protocol),
            delivered_ul=round(sum(piston.delivered_ul for piston in self.pistons)),
            peak_ul_per_s=flow,
            peak_kpa=kpa,
            duration_ms=int((self.now_s - self._injection_started_s) * 1000),
            end=end,
        )

    def set_alarm(self, priority: int) -> None:
        """Raise or end the one alarm of this machine."""
        if priority != self.alarm_priority:
            self.alarm_priority = priority
            self.alarm_changes += 1
            self.logs.event(self.boot_id, self.device_ms(), 2, 0x0201, int(priority > 0))

    # The lease

    @property
    def lockouts(self) -> int:
        """Arm, start, resume and protocol while a lease is active."""
        return 15 if self.lease is not None else 0

    @property
    def operator_refuses(self) -> bool:
        """The operator cancelled a lease a moment ago."""
        return self.now_s - self._operator_said_no_s < OPERATOR_PAUSE_S

    def acquire(self, token: bytes, ttl_ms: int, purpose: int) -> int:
        """0, or the error code of 8.9. Idempotent for the same token."""
        if self.lease_refused or self.operator_refuses:
            return 9
        if self.lease is not None and self.lease.token != token:
            return 7
        if self.state not in (State.IDLE, State.SERVICE):
            return 6
        self._extend(token, ttl_ms, purpose)
        return 0

    def renew(self, token: bytes, ttl_ms: int) -> int:
        """0, or the error code of 8.9."""
        if self.lease is None or self.lease.token != token:
            return 9 if self.operator_refuses else 8
        self._extend(token, ttl_ms, self.lease.purpose)
        return 0

    def release(self, token: bytes) -> int:
        """0, or the error code of 8.9."""
        if self.lease is None or self.lease.token != token:
            return 8
        self._end_lease(0)
        return 0

    def _extend(self, token: bytes, ttl_ms: int, purpose: int) -> None:
        if self.lease is None:
            self.logs.event(self.boot_id, self.device_ms(), 3, 1, purpose)
        ttl_ms = min(ttl_ms, self.lease_limit_ms or ttl_ms)
        self.lease = Lease(token=token, purpose=purpose, expires_s=self.now_s + ttl_ms / 1000)

    def _end_lease(self, how: int) -> None:
        purpose = self.lease.purpose if self.lease else 0
        self.lease = None
        self.logs.event(self.boot_id, self.device_ms(), 3, how, purpose)

    def _cancel_lease(self) -> None:
        if self.lease is None:
            raise ActionError("cancel_lease: there is no lease; nothing happened")
        self._operator_said_no_s = self.now_s
        self._end_lease(2)

    # Boots

    def reboot(self, *, reason: int, silent_s: float = BOOT_S) -> None:
        """Lose everything but logs and syringes."""
        if self.state in (State.INJECTING, State.HOLD):
            self._end_injection(4)
        self._stop_pistons()
        self.lease = None
        self.reset_reason = reason
        self._new_boot(0)
        self.injection_ended_s = None
        self.silent_until_s = self.now_s + silent_s
        self.state = State.BOOTING
        self._state_since_s = self.now_s
        self.logs.event(self.boot_id, 0, 4, reason, 0)
        self._take_sample()

    def jump_uptime(self, uptime_ms: int) -> None:
        """Set the device's clock, to stand shortly before an overflow."""
        self._boot_s, self._boot_ms = self.now_s, uptime_ms
        self._take_sample()

    def _new_boot(self, uptime_ms: int) -> None:
        old = self.boot_id
        while self.boot_id in (0, old):
            self.boot_id = self.rng.randrange(1, 1 << 32)
        self.boot_counter += 1
        self._boot_s, self._boot_ms = self.now_s, uptime_ms

    def _take_sample(self) -> None:
        self.sample = Sample(
            taken_s=self.now_s,
            number=self.device_ms() & 0xFFFFFFFF,
            state=self.state,
            pressure_kpa=round(self.pressure_kpa),
            moving=self.state in (State.INJECTING, State.PURGING, State.LOADING),
            flow_ul_per_s=tuple(round(piston.flow_ul_per_s) for piston in self.pistons),
            delivered_ul=tuple(round(piston.delivered_ul) for piston in self.pistons),
            lockouts=self.lockouts,
        )
