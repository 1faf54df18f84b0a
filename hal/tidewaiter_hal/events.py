"""Events to subscribers: a bounded queue each, so that a slow one loses events and is told so, and blocks nobody."""

import threading
from collections import deque
from typing import Final

from tidewaiter_hal.model import Event

QUEUE_LIMIT: Final = 256


class Subscription:
    """One subscriber's queue. Filled by the port thread, emptied by an IPC thread."""

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        self._limit = limit
        self._events: deque[Event] = deque()
        self._dropped = 0
        self._arrived = threading.Condition()

    def offer(self, event: Event) -> bool:
        """Queue `event`; False when the queue was full and the event was dropped and counted."""
        with self._arrived:
            if len(self._events) >= self._limit:
                self._dropped += 1
                return False
            self._events.append(event)
            self._arrived.notify()
            return True

    def take(self, timeout_s: float) -> list[Event]:
        """All waiting events, after waiting up to `timeout_s` for the first; a loss is the last of them."""
        with self._arrived:
            if not self._events:
                self._arrived.wait(timeout_s)
            events = list(self._events)
            self._events.clear()
            if self._dropped:
                last = events[-1].seq if events else 0
                lost = Event(seq=last, kind="EventsDropped", detail=(("count", str(self._dropped)),))
                events.append(lost)
                self._dropped = 0
            return events


class EventBus:
    """Numbers events and hands them to every subscription."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._seq = 0
        self.dropped = 0

    def subscribe(self) -> Subscription:
        """A new queue that gets every event from now on."""
        subscription = Subscription()
        with self._lock:
            self._subscriptions = (*self._subscriptions, subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop delivering; safe to call twice."""
        with self._lock:
            self._subscriptions = tuple(item for item in self._subscriptions if item is not subscription)

    def publish(self, kind: str, **detail: str) -> None:
        """Deliver an event; never blocks."""
        with self._lock:
            self._seq += 1
            event = Event(seq=self._seq, kind=kind, detail=tuple(detail.items()))
            for subscription in self._subscriptions:
                if not subscription.offer(event):
                    self.dropped += 1
