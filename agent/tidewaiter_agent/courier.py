"""Carries the outbox to the server: by priority, one item at a time, each class with its own patience.

A poison item is buried and the next goes on; a server that does not know us stops the class until a poll succeeds again.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tidewaiter_core.clock import Clock
from tidewaiter_core.errors import StateWriteError
from tidewaiter_core.heartbeat import Beat
from tidewaiter_core.workers import Stop

from tidewaiter_agent.errors import NetError
from tidewaiter_agent.exchange import Reply, Transport, Verdict, judge_status, retry_after_s
from tidewaiter_agent.limits import TokenBucket
from tidewaiter_agent.origin import LinkTable, Origin
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.outbox_item import Item, ItemClass
from tidewaiter_agent.patience import Patience
from tidewaiter_agent.shipping import Shipper

logger = logging.getLogger(__name__)

TELEMETRY_BATCH_ITEMS = 16
TELEMETRY_BATCH_BYTES = 60 * 1024
DRAIN_KIB_PER_S = 64
IDLE_S = 60.0
DDI_RELS = frozenset({"deploymentBase", "confirmationBase", "cancelAction"})


@dataclass(slots=True)
class _Lane:
    patience: Patience
    not_before_s: float = 0.0
    asked_until_s: float = 0.0
    """What the server asked for with Retry-After: a poll that succeeds does not shorten it."""
    stopped: str = ""


@dataclass(slots=True)
class Courier:
    """One pass of `deliver` sends everything that may be sent now and says when to come again."""

    outbox: Outbox
    transport: Transport
    origin: Origin
    links: LinkTable
    shipper: Shipper | None
    clock: Clock
    rng: random.Random | None = None
    _lanes: dict[str, _Lane] = field(default_factory=dict)
    _pace: TokenBucket | None = None
    _single: bool = False
    _progress: Callable[[], None] = lambda: None

    def stopped(self) -> Mapping[str, str]:
        """Classes that wait for the server to accept this device, with the reason."""
        return {name: lane.stopped for name, lane in self._lanes.items() if lane.stopped}

    def readmitted(self) -> None:
        """A poll succeeded: the server knows us, every class may try again as soon as the server wished."""
        for lane in self._lanes.values():
            lane.stopped = ""
            lane.not_before_s = lane.asked_until_s

    def deliver(self, progress: Callable[[], None] = lambda: None) -> float:
        """Send what can be sent; seconds until the next attempt makes sense. `progress` is called after each request."""
        self._progress = progress
        shipper = self.shipper
        wait_s = self._guarded(ItemClass.FEEDBACK, self._drain_feedback)
        if shipper is not None:
            wait_s = min(wait_s, self._guarded("audit", lambda: self._ship_audit(shipper)))
        return min(wait_s, self._guarded(ItemClass.TELEMETRY, self._drain_telemetry))

    def _guarded(self, name: str, drain: Callable[[], float]) -> float:
        """A full disk delays one class: what the server took but could not be noted is sent again under the same id."""
        try:
            return drain()
        except StateWriteError as err:
            lane = self._lane(name)
            self._hold(lane, 0.0, str(err))
            return self._ready_in(lane)

    def _drain_feedback(self) -> float:
        lane = self._lane(ItemClass.FEEDBACK)
        while (wait_s := self._ready_in(lane)) == 0:
            self._progress()
            waiting = self.outbox.head(ItemClass.FEEDBACK)
            if not waiting:
                return IDLE_S
            seq, item = waiting[0]
            if item.rel in DDI_RELS and "action_id" not in item.path_args:
                self.outbox.bury(ItemClass.FEEDBACK, seq, "it names no action")
                continue
            path = self._path(item)
            if path is None:
                return IDLE_S
            self._settle(lane, ItemClass.FEEDBACK, [seq], self._send(path, item.body, item.method), item.id)
        return wait_s

    def _drain_telemetry(self) -> float:
        lane = self._lane(ItemClass.TELEMETRY)
        while (wait_s := self._ready_in(lane)) == 0:
            self._progress()
            path = self.links.path("tw:telemetry")
            limit = 1 if self._single else TELEMETRY_BATCH_ITEMS
            waiting = _batch(self.outbox.head(ItemClass.TELEMETRY, limit))
            if not waiting or path is None:
                return IDLE_S
            gap = self.outbox.dropped(ItemClass.TELEMETRY)
            body = {"snapshots": [dict(item.body) for _, item in waiting], "dropped": gap}
            verdict = self._settle(
                lane,
                ItemClass.TELEMETRY,
                [seq for seq, _ in waiting],
                self._send(path, body, "POST"),
                waiting[0][1].id,
            )
            if verdict is Verdict.DONE:
                self.outbox.reported_dropped(ItemClass.TELEMETRY, gap)
        return wait_s

    def _ship_audit(self, shipper: Shipper) -> float:
        lane = self._lane("audit")
        while (wait_s := self._ready_in(lane)) == 0:
            self._progress()
            path = self.links.path("tw:audit")
            if path is None:
                return IDLE_S
            before = shipper.cursors()
            try:
                reply = shipper.ship_next(path)
            except NetError as err:
                self._hold(lane, 0.0, str(err))
                continue
            if reply is None:
                return IDLE_S
            if judge_status(reply.status) is Verdict.STOP:
                lane.stopped = f"the server answered {reply.status}"
            elif shipper.cursors() == before:
                # Whatever the status was: without progress the same batch would be sent again at once.
                asked_s = retry_after_s(reply.headers, self.clock.now_utc().timestamp())
                self._hold(lane, asked_s, f"audit: status {reply.status}, no progress")
            else:
                lane.patience.succeeded()
        return wait_s

    def _send(self, path: str, body: Mapping[str, object], method: str) -> Reply | NetError:
        data = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
        if self._pace is None:
            self._pace = TokenBucket(self.clock, DRAIN_KIB_PER_S)
        # After a long outage everything wants to leave at once; the hospital's line belongs to the hospital.
        self._pace.take(len(data))
        try:
            return self.transport.request(method, path, body=data)
        except NetError as err:
            return err

    def _settle(
        self, lane: _Lane, kind: ItemClass, seqs: Sequence[int], result: Reply | NetError, name: str
    ) -> Verdict:
        if isinstance(result, NetError):
            if result.code.startswith("auth."):
                lane.stopped = str(result)
                return Verdict.STOP
            self._hold(lane, 0.0, str(result))
            return Verdict.LATER
        verdict = judge_status(result.status)
        if verdict is Verdict.DONE:
            lane.patience.succeeded()
            for seq in seqs:
                self.outbox.done(kind, seq)
        elif verdict is Verdict.LATER:
            asked_s = retry_after_s(result.headers, self.clock.now_utc().timestamp())
            self._hold(lane, asked_s, f"{name}: status {result.status}")
        elif verdict is Verdict.STOP:
            lane.stopped = f"{name}: the server answered {result.status} for this device"
            logger.warning("outbox class stopped class=%s: %s", kind, lane.stopped)
        elif len(seqs) > 1:
            # One of them is the poison: find it by sending them one by one.
            self._single = True
        else:
            self._single = False
            self.outbox.bury(kind, seqs[0], f"the server answered {result.status}")
        return verdict

    def _hold(self, lane: _Lane, at_least_s: float, why: str) -> None:
        wait_s = lane.patience.next_s(at_least_s)
        lane.not_before_s = self.clock.boottime_s() + wait_s
        lane.asked_until_s = lane.not_before_s if at_least_s > 0 else 0.0
        logger.info("outbox waits %.0f s: %s", wait_s, why)

    def _ready_in(self, lane: _Lane) -> float:
        if lane.stopped:
            return IDLE_S
        return max(0.0, lane.not_before_s - self.clock.boottime_s())

    def _path(self, item: Item) -> str | None:
        if item.rel in DDI_RELS:
            return self.origin.feedback_path(item.rel, item.path_args["action_id"])
        return self.links.path(item.rel)

    def _lane(self, name: str) -> _Lane:
        if name not in self._lanes:
            self._lanes[name] = _Lane(Patience(self.clock, self.rng))
        return self._lanes[name]


class CourierWorker:
    """The thread around a Courier: sleeps until something is queued, a poll succeeded, or a back-off is over."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._wake = threading.Event()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def run(self, stop: Stop, beat: Beat) -> None:
        """Deliver until told to stop."""
        while not stop.is_set:
            self._wake.clear()
            wait_s = self._courier.deliver(beat.step)
            if not stop.is_set:
                beat.wait(self._wake, wait_s)


def _batch(waiting: Sequence[tuple[int, Item]]) -> list[tuple[int, Item]]:
    """As many of the oldest as fit into one request; always at least one."""
    chosen: list[tuple[int, Item]] = []
    size = 0
    for seq, item in waiting:
        size += len(json.dumps(dict(item.body)))
        if chosen and size > TELEMETRY_BATCH_BYTES:
            break
        chosen.append((seq, item))
    return chosen
