"""Random lives of one device: polls, consents, interlock answers, pauses, restarts and power cuts in any order.

After each event the rules of update-engine.md section 1 hold, whatever phase the updater is in. The world is tests/sim/device.
"""

import contextlib
import logging
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tidewaiter_core.clock import format_utc
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.model import SlotName
from tidewaiter_updater.consent import as_claimed_by_agent
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.errors import SourceError
from tidewaiter_updater.model import BootEnv, Channel, Consent, Scope
from tidewaiter_updater.phases import IN_TRIAL, WRITING, Phase

from tests.sim.device import Device

LOCAL = {"consent": "local", "risk": "routine", "tries": 3, "activation": "any", "max_fetch_bytes": 10**6}
CONSENTED = WRITING | {Phase.STAGED, Phase.WAIT_WINDOW, Phase.ARMED}


class Lives(RuleBasedStateMachine):
    """Two releases: one that needs nobody, one that needs a consent given at the device."""

    @initialize(epoch=st.integers(0, 2))
    def build(self, epoch: int) -> None:
        self.device = Device()
        self.free = self.device.make("2.0", 2, security_epoch=min(epoch, 1))
        self.asking = self.device.make("3.0", 3, security_epoch=epoch, policy=LOCAL)
        self.sick: set[str] = set()
        self.device.health.sick = lambda identity: identity.version in self.sick
        self.allowed: set[str] = set()
        """Digests that somebody at the device allowed."""
        self.healthy_boot = ""
        """Boot id of a boot whose checks were green."""
        self.may_commit = False
        self.floor = self.device.storage.floors
        self.committed = SlotName.A
        self.was_requested = False
        self.device.power_on()
        self.device.work()

    # --- time and power ---

    @rule(steps=st.integers(1, 8))
    def works(self, steps: int) -> None:
        for _ in range(steps):
            if not self.device.reboot.requested:
                self.engine.step()

    @rule(seconds=st.sampled_from([1, 61, 700, 7 * 3600]))
    def time_passes(self, seconds: int) -> None:
        self.device.clock.advance(seconds)

    @rule(keep=st.booleans())
    def power_fails(self, keep: bool) -> None:
        self.device.power_off(keep_pending=keep)
        self._starts()

    @precondition(lambda self: self.device.reboot.requested)
    @rule()
    def restarts(self) -> None:
        self.device.power_off(keep_pending=True)
        self._starts()

    @rule()
    def service_is_killed(self) -> None:
        self.device.restart_service()
        self._connect()

    @rule()
    def forgets_everything(self) -> None:
        """The state directory is lost while the device is off."""
        self.device.power_off()
        self.device.storage.documents.clear()
        self.device.storage.blobs.clear()
        self._starts()

    def _starts(self) -> None:
        self.was_requested = False
        self.device.power_on()
        self._connect()

    def _connect(self) -> None:
        self.device.health.sick = lambda identity: identity.version in self.sick

    # --- people and programs ---

    @rule(asking=st.booleans())
    def is_offered(self, asking: bool) -> None:
        made = self.asking if asking else self.free
        with contextlib.suppress(TidewaiterError):
            if self.engine.check("relay", made.path).installable:
                self.engine.install(made.release.digest)

    @rule(asking=st.booleans(), own=st.booleans(), by_agent=st.booleans(), valid=st.booleans())
    def somebody_consents(self, asking: bool, own: bool, by_agent: bool, valid: bool) -> None:
        """To one of the releases or to another digest, at the device or as the agent claims, today or last year."""
        made = self.asking if asking else self.free
        digest = made.release.digest if own else type(made.release.digest).of(b"another")
        consent = self._consent(digest, valid=valid)
        with contextlib.suppress(TidewaiterError):
            if by_agent:
                self.engine.install(made.release.digest, consent=as_claimed_by_agent(consent))
            else:
                self.engine.consent(consent)
                if valid:
                    self.allowed.add(str(digest))

    def _consent(self, digest: str, *, valid: bool) -> Consent:
        now = self.device.clock.now_utc()
        return Consent(
            digest=type(self.free.release.digest).parse(digest),
            scope=(Scope.INSTALL, Scope.ACTIVATE),
            channel=Channel.LOCAL,
            who="uid:1000",
            given_utc=format_utc(now),
            expires_utc=format_utc(now.replace(year=now.year + (5 if valid else -1))),
        )

    @rule(window=st.booleans())
    def is_activated(self, window: bool) -> None:
        self._about_the_one_in_hand(
            lambda made: self.engine.activate(made.release.digest, window_open=window)
        )

    @rule(rejected=st.booleans())
    def is_ended(self, rejected: bool) -> None:
        self.is_rejected() if rejected else self.is_canceled()

    def is_canceled(self) -> None:
        self._about_the_one_in_hand(lambda made: self.engine.cancel(made.release.digest))

    def is_rejected(self) -> None:
        self._about_the_one_in_hand(lambda made: self.engine.reject(made.release.digest, "not wanted"))

    @rule(asking=st.booleans())
    def quarantine_is_lifted(self, asking: bool) -> None:
        self.engine.clear_quarantine((self.asking if asking else self.free).release.digest)

    def _about_the_one_in_hand(self, act: object) -> None:
        for made in (self.free, self.asking):
            with contextlib.suppress(TidewaiterError):
                act(made)  # type: ignore[operator]

    @rule(paused=st.booleans())
    def is_paused(self, paused: bool) -> None:
        self.engine.set_paused(paused)

    @rule()
    def health_asks(self) -> None:
        with contextlib.suppress(TidewaiterError):
            verdict = self.engine.health(given_up=lambda: False)
            if verdict is not None and verdict.healthy:
                self.healthy_boot = self.device.boot_id

    @rule()
    def commit_asks(self) -> None:
        self.may_commit = self.healthy_boot == self.device.boot_id
        try:
            with contextlib.suppress(TidewaiterError):
                self.engine.commit()
            self._look_at_commit()
        finally:
            self.may_commit = False

    @rule(asking=st.booleans(), consents=st.booleans())
    def agent_polls(self, asking: bool, consents: bool) -> None:
        """What happens on most days: offered, allowed, written, activated."""
        self.is_offered(asking)
        self.works(8)
        if consents:
            self.somebody_consents(asking=asking, own=True, by_agent=False, valid=True)
            self.works(8)
        self.is_activated(window=True)
        self.works(8)

    @rule(to_the_end=st.booleans())
    def night_passes(self, to_the_end: bool) -> None:
        """The restart that was asked for, the checks after it, and mostly the commit."""
        if self.device.reboot.requested:
            self.restarts()
        if self.engine.transaction.phase in IN_TRIAL:
            self.health_asks()
            if to_the_end:
                self.commit_asks()
        self.works(4)

    # --- what is around it ---

    @rule(
        reasons=st.sampled_from([(), (), ("alarm",), ("hal-unreachable",)]),
        lease=st.sampled_from("kkkkkslln"),
    )
    def injector_answers(self, reasons: tuple[str, ...], lease: str) -> None:
        """k: keeps its lease; l: loses it; s: sends no sample; n: has none."""
        injector = self.device.injector
        injector.reasons, injector.has_lease = reasons, lease != "n"
        injector.loses_lease, injector.samples_arrive = lease == "l", lease != "s"

    @rule(version=st.sampled_from(["2.0", "3.0"]), sick=st.booleans())
    def falls_ill(self, version: str, sick: bool) -> None:
        (self.sick.add if sick else self.sick.discard)(version)

    @rule(what=st.sampled_from(["nothing", "nothing", "network", "environment", "audit log"]))
    def something_breaks(self, what: str) -> None:
        """And what was broken before is whole again."""
        self.device.slots.faults = [SourceError("offline")] if what == "network" else []
        self.device.env_disk.broken = what == "environment"
        self.device.audit.is_full = what == "audit log"

    # --- what holds ---

    @property
    def engine(self) -> Engine:
        assert self.device.engine is not None
        return self.device.engine

    def _env(self) -> BootEnv:
        env = self.device.storage.boot_env()
        assert env is not None, "I4: a copy of the boot environment is always valid"
        return env

    @invariant()
    def every_bootable_slot_holds_a_release(self) -> None:
        env = self._env()
        bootable = {env.committed} | {slot for slot in SlotName if env.is_ok(slot)}
        bootable |= {env.trial} if env.trial is not None and env.left > 0 else set()
        for slot in bootable:
            identity = self.device.identities.get(tuple(self.device.storage.slots[slot]))
            assert identity is not None, f"I2: {env} lets {slot} boot"
            assert identity.security_epoch >= env.epoch, f"I6: {env} lets {slot} boot"

    @invariant()
    def floors_never_sink_and_never_forbid_the_committed_release(self) -> None:
        floors, env = self.device.storage.floors, self._env()
        assert floors.sequence >= self.floor.sequence
        assert floors.security_epoch >= self.floor.security_epoch
        running = self.device.identities[tuple(self.device.storage.slots[env.committed])]
        assert floors.sequence <= running.sequence
        self.floor = floors

    @invariant()
    def only_a_commit_with_a_verdict_of_this_boot_commits(self) -> None:
        self._look_at_commit()

    def _look_at_commit(self) -> None:
        committed = self._env().committed
        if committed is not self.committed:
            waits = (
                self.engine.transaction.phase is Phase.COMMITTED
            )  # a Commit that could not be written at first
            assert self.may_commit or (waits and self.healthy_boot == self.device.boot_id), "I7"
            self.committed = committed

    @invariant()
    def nothing_restarts_without_permission(self) -> None:
        requested = self.device.reboot.requested
        if requested and not self.was_requested:
            assert not self.device.injector.reasons, "I8: the interlock said no"
        self.was_requested = requested

    @invariant()
    def what_needs_a_consent_has_one(self) -> None:
        transaction = self.engine.transaction
        if transaction.phase in CONSENTED and transaction.open_digest() == self.asking.release.digest:
            assert self.asking.release.digest in self.allowed, f"consent: {transaction.phase} without one"

    @invariant()
    def a_trial_is_a_trial_and_nothing_else_is(self) -> None:
        env, transaction = self._env(), self.engine.transaction
        in_trial = (
            env.trial is not None
            and env.trial is self.device.booted
            and env.committed is not self.device.booted
        )
        if transaction.phase in IN_TRIAL:
            assert in_trial, f"{transaction.phase} with {env}"

    def teardown(self) -> None:
        """I10: with a kind world the device comes to rest, on a release that is whole."""
        if not hasattr(self, "device"):
            return
        self.sick.clear()
        injector = self.device.injector
        injector.reasons, injector.has_lease, injector.loses_lease, injector.samples_arrive = (
            (),
            True,
            False,
            True,
        )
        self.device.power_off(keep_pending=True)
        self._starts()
        for _ in range(20):
            self.device.work()
            transaction = self.engine.transaction
            if transaction.phase in IN_TRIAL:
                self.device.confirm()
            if self.device.reboot.requested:
                self.restarts()
            elif transaction.open_digest() is not None and not transaction.pending:
                self.is_canceled()
            self.device.clock.advance(700)
        newest = self.device.make("4.0", 4, security_epoch=2)
        self.device.live(newest)
        assert self.device.is_running(newest), "the next release can be installed"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@pytest.mark.req("UP-16")
def test_no_order_of_events_breaks_a_rule() -> None:
    run_state_machine_as_test(
        Lives,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
