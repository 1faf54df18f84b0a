"""The relay is not believed: what it may do wrong, and what becomes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tidewaiter_core.clock import SystemClock
from tidewaiter_updater.errors import InstallCancelledError, SourceError, SourceRefusedError
from tidewaiter_updater.sources import Patience, RelaySource, checked_path, hashed_path

from tests.sim.clock import FakeClock
from tests.sim.relay import Answer, Ask, Relay, relaying

BYTES = bytes(range(256)) * 512


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    (tmp_path / "r" / "targets").mkdir(parents=True)
    (tmp_path / "r" / "metadata").mkdir()
    (tmp_path / "r" / "targets" / "pack").write_bytes(BYTES)
    (tmp_path / "r" / "metadata" / "timestamp.json").write_bytes(b"{}")
    with relaying(tmp_path / "r", tmp_path / "s") as relay:
        yield relay


def source(relay: Relay, *, clock: FakeClock | None = None) -> RelaySource:
    return RelaySource(relay.socket_path, clock=clock or FakeClock())


def refused(relay: Relay, *, code: str, tries: int) -> None:
    """Nothing was handed out, with this code, after this many tries."""
    with pytest.raises(SourceError) as caught:
        list(source(relay).span("pack", 1000, 2000))
    assert (caught.value.code, len(relay.asks), caught.value.retryable) == (code, tries, True)


def test_a_span_is_exactly_the_bytes_asked_for(relay: Relay) -> None:
    subject = source(relay)
    assert b"".join(subject.span("pack", 1000, 100_000)) == BYTES[1000:101_000]
    assert subject.received_bytes == 100_000
    assert (relay.asks[0].path, relay.asks[0].offset, relay.asks[0].max_bytes) == (
        "targets/pack",
        1000,
        100_000,
    )


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(lambda ask, honest: replace(honest, offset=0), id="whole_file_from_0"),
        pytest.param(
            lambda ask, honest: Answer(offset=0, total=len(BYTES), length=len(BYTES), body=BYTES),
            id="200_for_a_range",
        ),
        pytest.param(lambda ask, honest: replace(honest, length=1999), id="promise_too_short"),
        pytest.param(lambda ask, honest: replace(honest, length=2001), id="promise_too_long"),
        pytest.param(lambda ask, honest: replace(honest, length=-1), id="negative_length"),
        pytest.param(lambda ask, honest: replace(honest, total=2999), id="total_below_the_range"),
        pytest.param(lambda ask, honest: replace(honest, body=honest.body + b"x"), id="body_too_long"),
        pytest.param(lambda ask, honest: replace(honest, body=honest.body[:-1]), id="body_too_short"),
        pytest.param(lambda ask, honest: Answer(status="bad-range"), id="the_agent_saw_it"),
    ],
)
def test_a_wrong_range_is_never_handed_out_and_tried_twice(relay: Relay, lie: object) -> None:
    relay.lie = lie  # type: ignore[assignment]
    refused(relay, code="source.bad-range", tries=2)


def test_one_bad_answer_is_forgiven(relay: Relay) -> None:
    relay.lie = lambda ask, honest: replace(honest, body=b"") if ask.number == 0 else None
    assert b"".join(source(relay).span("pack", 5, 50)) == BYTES[5:55]


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b'{"parameters":{}}\0', b'{"parameters":{"status":7}}\0', b"\0"]
)
def test_an_answer_that_is_no_answer_is_tried_five_times(relay: Relay, raw: bytes) -> None:
    relay.lie = lambda ask, honest: Answer(raw=raw)
    refused(relay, code="source.unavailable", tries=5)


def test_a_relay_that_is_not_there_is_unavailable_after_five_tries(tmp_path: Path) -> None:
    clock = FakeClock()
    with pytest.raises(SourceError, match="5 tries") as caught:
        list(RelaySource(tmp_path / "nobody", clock=clock).span("pack", 0, 1))
    assert caught.value.code == "source.unavailable"
    assert clock.boottime_s() - 1000.0 <= 1 + 2 + 4 + 8


@pytest.mark.parametrize(("status", "http"), [("not-found", 404), ("forbidden", 403)])
def test_not_found_and_forbidden_are_final(relay: Relay, status: str, http: int) -> None:
    relay.lie = lambda ask, honest: Answer(status=status)
    with pytest.raises(SourceRefusedError) as caught:
        list(source(relay).span("pack", 0, 1))
    assert (caught.value.status, len(relay.asks)) == (http, 1)


def test_waiting_for_the_next_try_ends_when_canceled(relay: Relay) -> None:
    relay.lie = lambda ask, honest: Answer(status="unavailable")
    subject = RelaySource(relay.socket_path, clock=FakeClock(), cancelled=lambda: True)
    with pytest.raises(InstallCancelledError):
        list(subject.span("pack", 0, 1))
    assert len(relay.asks) == 1


def test_one_byte_per_29_seconds_ends_as_slow(relay: Relay) -> None:
    permits = threading.Semaphore(0)

    class Dripping(FakeClock):
        """Each look at the time is 29 s after the last one, and lets one byte through."""

        def boottime_s(self) -> float:
            self.advance(29.0)
            permits.release()
            return super().boottime_s()

    relay.lie = lambda ask, honest: replace(honest, drip=permits)
    with pytest.raises(SourceError) as caught:
        list(RelaySource(relay.socket_path, clock=Dripping()).span("pack", 0, 120_000))
    permits.release(1_000_000)
    assert caught.value.code == "source.slow"
    assert len(relay.asks) == 2


def test_a_silent_body_ends_as_slow(relay: Relay) -> None:
    hold = threading.Event()
    relay.lie = lambda ask, honest: replace(honest, hold=hold)
    patience = Patience(idle_s=0.1, backoff_base_s=0.01)
    try:
        with pytest.raises(SourceError) as caught:
            list(RelaySource(relay.socket_path, clock=SystemClock(), patience=patience).span("pack", 0, 10))
    finally:
        hold.set()
    assert caught.value.code == "source.slow"


def test_metadata_comes_whole_when_the_server_says_no_total(relay: Relay) -> None:
    relay.lie = lambda ask, honest: replace(honest, total=-1)
    assert b"".join(source(relay).metadata("timestamp.json", 16384)) == b"{}"


def test_endless_metadata_stops_one_byte_behind_its_limit(relay: Relay) -> None:
    def endless(ask: Ask, honest: Answer) -> Answer:
        return Answer(offset=ask.offset, total=-1, length=ask.max_bytes, body=bytes(ask.max_bytes))

    relay.lie = endless
    assert sum(map(len, source(relay).metadata("targets.json", 5_000_000))) == 5_000_001
    assert len(relay.asks) == 2


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a//b", "a/../b", "a/.b", ".a", "a b", "a%2e", "a\0", "x" * 201, "ä", "a\n", "a?b", "a/"],
)
def test_a_path_that_could_mean_something_else_is_refused(path: str) -> None:
    with pytest.raises(SourceError) as caught:
        checked_path(path)
    assert (caught.value.code, caught.value.retryable) == ("source.path", False)


def test_a_target_is_asked_for_by_its_hash() -> None:
    assert hashed_path("a/b/pack.twpk", "0" * 64) == "a/b/" + "0" * 64 + ".pack.twpk"
    assert hashed_path("pack", "1" * 64) == "1" * 64 + ".pack"
