"""The HAL's conversation against the simulated injector in one thread, with a clock that a test moves.

Everything between interlock and injector is the real code, byte by byte; only the port and the threads are missing.
"""

import random
from collections.abc import Callable
from typing import Any

from tidewaiter_hal.conversation import Conversation, Outcome
from tidewaiter_hal.drivers.smp_reference import driver
from tidewaiter_hal.errors import LinkDownError
from tidewaiter_hal.events import EventBus, Subscription
from tidewaiter_hal.injector import Permit, Question
from tidewaiter_hal.interlock import Decision, Policy, Purpose, Situation, decide
from tidewaiter_hal.link import Step
from tidewaiter_hal.model import LinkState, Snapshot
from tidewaiter_hal.picture import Knowledge, Picture
from tidewaiter_hal.plausibility import Plausibility
from tidewaiter_hal.port_thread import payload_of
from tidewaiter_hal.sim.physics import Injector
from tidewaiter_hal.sim.simulator import Simulator

from tests.sim.clock import FakeClock

TURN_S = 0.01
POLICY = Policy(idle_pressure_limit_kpa=50, quiet_after_injection_s=300, bench=False)


class Bench:
    """Conversation, injector and clock; also a `Line` for the lease and the log reader."""

    def __init__(
        self,
        clock: FakeClock | None = None,
        *,
        baud: int = 115_200,
        seed: int = 1,
        uptime_ms: int = 4_000_000,
        generation: int = 0,
        speed: float = 1.0,
    ) -> None:
        self.clock = clock or FakeClock()
        self.started_s = self.clock.boottime_s()
        injector = Injector(
            now_s=self.started_s, seed=seed, uptime_ms=uptime_ms, generation=generation, speed=speed
        )
        self.sim = Simulator(injector)
        self.events = EventBus()
        self.subscription: Subscription = self.events.subscribe()
        self.picture = Picture(driver=driver.name, plausibility=Plausibility(50), events=self.events)
        self.sent: list[bytes] = []
        self.to_host: Callable[[bytes], bytes] = _unchanged
        """Damage on the way to the host."""
        self.to_device: Callable[[bytes], bytes] = _unchanged
        self.port_is_there = True
        self.flushes = 0
        self._outcomes: dict[Question, Outcome] = {}
        self.conversation = Conversation(
            driver,
            driver.line(baud),
            picture=self.picture,
            events=self.events,
            rng=random.Random(seed),
            write=self._write,
            settled=self._settle,
        )
        self.clock.call_at(0.0, self._turn)

    # Line

    @property
    def knowledge(self) -> Knowledge:
        return self.picture.knowledge

    def ask(
        self, command: str, body: dict[str, int | bytes], *, timeout_s: float, permit: Permit | None = None
    ) -> object:
        question = Question(command=command, body=body, permit=permit, expires_s=self.now_s + timeout_s)
        self.conversation.ask(question)
        end_s = self.now_s + timeout_s
        while question not in self._outcomes:
            if self.now_s >= end_s:
                raise LinkDownError(f"no answer to {command}")
            self.clock.advance(TURN_S)
        return payload_of(command, self._outcomes.pop(question))

    def noted_transition(self, came_from: int, went_to: int) -> None:
        self.picture.transition(came_from, went_to, self.now_s)

    # For tests

    @property
    def now_s(self) -> float:
        return self.clock.boottime_s()

    @property
    def link(self) -> LinkState:
        return self.conversation.link.state

    def run(self, seconds: float) -> None:
        """Let time pass on both sides."""
        self.clock.advance(seconds)

    def run_until(self, condition: Callable[[], bool], *, limit_s: float = 30.0) -> float:
        """Let time pass until `condition`; returns how long it took."""
        start_s = self.now_s
        while not condition():
            assert self.now_s - start_s < limit_s, f"not within {limit_s} s; link {self.link}"
            self.run(TURN_S)
        return self.now_s - start_s

    def up(self) -> "Bench":
        """Run until the link is up."""
        self.run_until(lambda: self.link is LinkState.UP)
        return self

    def settled(self) -> "Bench":
        """Run until the interlock has all the evidence it needs."""
        self.up()
        self.run(6.0)
        return self

    def snapshot(self) -> Snapshot:
        return self.knowledge.snapshot(self.now_s)

    def decide(self, purpose: Purpose = Purpose.REBOOT, policy: Policy = POLICY) -> Decision:
        return decide(
            Situation(
                knowledge=self.knowledge,
                purpose=purpose,
                policy=policy,
                now_s=self.now_s,
                started_s=self.started_s,
                own_lease=False,
                other_lease=False,
            )
        )

    def do(self, action: str) -> None:
        self.sim.do(action, self.now_s)

    def fault(self, name: str, *, on: bool = True, **parameters: Any) -> None:
        self.sim.fault(name, {key: str(value) for key, value in parameters.items()}, self.now_s, on=on)

    def kinds(self) -> list[str]:
        """Kinds of the events so far."""
        return [event.kind for event in self.subscription.take(0.0)]

    def _turn(self) -> None:
        self.clock.call_at(TURN_S, self._turn)
        now_s = self.now_s
        self.sim.injector.advance(now_s)
        arrived = self.to_host(self.sim.server.due(now_s))
        if arrived and self.port_is_there:
            self.conversation.received(arrived, now_s)
        step = self.conversation.advance(now_s)
        if step is Step.OPEN:
            if self.port_is_there:
                self.conversation.opened(now_s)
            else:
                self.conversation.open_failed("port-absent", now_s)
        self.flushes += step is Step.FLUSH

    def _write(self, data: bytes) -> None:
        self.sent.append(data)
        arrived = self.to_device(data)
        if arrived:
            self.sim.server.receive(arrived, self.now_s)

    def _settle(self, question: Question, outcome: Outcome) -> None:
        self._outcomes[question] = outcome


def _unchanged(data: bytes) -> bytes:
    return data
