"""Carrying the outbox to a server whose answers are scripted."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from tidewaiter_agent.courier import Courier
from tidewaiter_agent.errors import NetError
from tidewaiter_agent.exchange import JSON_LIMIT_BYTES, Reply, Stream
from tidewaiter_agent.origin import LinkTable, Origin
from tidewaiter_agent.outbox import Outbox, SystemOutboxDisk
from tidewaiter_agent.outbox_item import Item, ItemClass
from tidewaiter_agent.patience import Patience
from tidewaiter_agent.shipping import Shipper
from tidewaiter_core.audit import Actor, AuditLog
from tidewaiter_core.errors import StateWriteError

from tests.sim.clock import FakeClock


class ScriptedServer:
    """Implements Transport: answers by path, remembers what it got."""

    def __init__(self) -> None:
        self.answers: list[int | NetError | Reply] = []
        self.got: list[tuple[str, str, bytes]] = []

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        content_type: str = "application/json",
        accept: str = "",
        headers: Mapping[str, str] | None = None,
        limit_bytes: int = JSON_LIMIT_BYTES,
    ) -> Reply:
        self.got.append((method, path, body or b""))
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, NetError):
            raise answer
        return answer if isinstance(answer, Reply) else Reply(status=answer, headers={}, body=b"{}")

    @contextmanager
    def open(self, path: str, *, headers: Mapping[str, str]) -> Iterator[Stream]:
        raise NetError("not used here")
        yield


class Bench:
    def __init__(self, directory: Path) -> None:
        self.clock = FakeClock()
        self.server = ScriptedServer()
        self.outbox = Outbox(directory, on_finding=lambda code, text: None)
        self.links = LinkTable()
        self.links.replace({"tw:telemetry": "/t/telemetry"})
        origin = Origin("https://server.example", "default", "INJ-1")
        self.courier = Courier(
            self.outbox, self.server, origin, self.links, None, self.clock, rng=random.Random(3)
        )

    def feedback(self, name: str) -> None:
        self.outbox.put(
            Item(
                id=name,
                kind=ItemClass.FEEDBACK,
                rel="deploymentBase",
                path_args={"action_id": "7"},
                body={"n": name},
            )
        )

    def telemetry(self, count: int) -> None:
        for number in range(count):
            self.outbox.put(
                Item(
                    id=f"t{number}",
                    kind=ItemClass.TELEMETRY,
                    rel="tw:telemetry",
                    path_args={},
                    body={"n": number},
                )
            )

    def left(self, kind: ItemClass = ItemClass.FEEDBACK) -> int:
        return self.outbox.stats()[kind].items


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_feedback_goes_to_its_action_in_order(bench: Bench) -> None:
    bench.feedback("a")
    bench.feedback("b")
    bench.courier.deliver()
    assert [(path, json.loads(body)["n"]) for _, path, body in bench.server.got] == [
        ("/default/controller/v1/INJ-1/deploymentBase/7/feedback", "a"),
        ("/default/controller/v1/INJ-1/deploymentBase/7/feedback", "b"),
    ]
    assert bench.left() == 0


def test_poison_item_does_not_block_the_next(bench: Bench) -> None:
    bench.server.answers = [400, 200]
    bench.feedback("poison")
    bench.feedback("good")
    bench.courier.deliver()
    assert bench.left() == 0
    assert bench.outbox.kept("dead") == 1


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
def test_item_stays_while_the_server_is_unwell(bench: Bench, status: int) -> None:
    bench.server.answers = [status]
    bench.feedback("a")
    wait_s = bench.courier.deliver()
    assert bench.left() == 1
    assert len(bench.server.got) == 1
    bench.clock.advance(wait_s)
    bench.courier.deliver()
    assert bench.left() == 0


def test_retry_after_is_honored(bench: Bench) -> None:
    bench.server.answers = [Reply(status=503, headers={"retry-after": "40"}, body=b"")]
    bench.feedback("a")
    assert bench.courier.deliver() >= 40
    bench.clock.advance(39)
    bench.courier.deliver()
    assert len(bench.server.got) == 1


def test_network_error_keeps_the_item_for_days(bench: Bench) -> None:
    bench.feedback("a")
    for _ in range(200):
        bench.server.answers = [NetError("no route", code="net.tcp")]
        bench.clock.advance(bench.courier.deliver())
    bench.server.answers = []
    for _ in range(3):
        bench.clock.advance(bench.courier.deliver())
    assert bench.left() == 0


def test_unknown_device_stops_the_class_until_a_poll_succeeds(bench: Bench) -> None:
    bench.server.answers = [403]
    bench.feedback("a")
    bench.courier.deliver()
    bench.clock.advance(10_000)
    bench.courier.deliver()
    assert len(bench.server.got) == 1
    assert "403" in bench.courier.stopped()[ItemClass.FEEDBACK]
    bench.courier.readmitted()
    bench.courier.deliver()
    assert bench.left() == 0


def test_telemetry_is_sent_in_batches_of_sixteen(bench: Bench) -> None:
    bench.telemetry(40)
    bench.courier.deliver()
    assert [len(json.loads(body)["snapshots"]) for _, _, body in bench.server.got] == [16, 16, 8]


def test_poison_snapshot_is_found_and_buried_alone(bench: Bench) -> None:
    bench.telemetry(4)
    bench.server.answers = [400, 400]  # the batch, then its first snapshot alone
    bench.courier.deliver()
    assert bench.left(ItemClass.TELEMETRY) == 0
    assert bench.outbox.kept("dead") == 1
    assert [s["n"] for s in json.loads(bench.server.got[-1][2])["snapshots"]] == [1, 2, 3]


def test_telemetry_waits_while_the_server_does_not_offer_the_link(bench: Bench) -> None:
    bench.links.replace({})
    bench.telemetry(1)
    bench.courier.deliver()
    assert bench.server.got == []
    assert bench.left(ItemClass.TELEMETRY) == 1


def test_trouble_with_telemetry_does_not_hold_up_feedback(bench: Bench) -> None:
    bench.server.answers = [503]
    bench.telemetry(1)
    bench.courier.deliver()
    bench.feedback("a")
    bench.courier.deliver()
    assert bench.left() == 0


def test_drain_after_a_long_outage_is_paced(bench: Bench) -> None:
    for number in range(200):
        bench.outbox.put(
            Item(
                id=f"f{number}",
                kind=ItemClass.FEEDBACK,
                rel="deploymentBase",
                path_args={"action_id": "7"},
                body={"x": "y" * 4000},
            )
        )
    begun_s = bench.clock.boottime_s()
    bench.courier.deliver()
    sent = sum(len(body) for _, _, body in bench.server.got)
    assert sent / (bench.clock.boottime_s() - begun_s) <= 64 * 1024 * 1.15


def test_thousand_agents_after_an_outage_spread_over_the_backoff() -> None:
    clock = FakeClock()
    waits = []
    for seed in range(1000):
        patience = Patience(clock, random.Random(seed))
        for _ in range(7):
            patience.next_s()
        waits.append(patience.next_s())
    buckets = [sum(1 for wait in waits if low <= wait < low + 16) for low in range(0, 128, 16)]
    assert min(buckets) > 80
    assert max(waits) <= 128


def test_patience_grows_after_an_hour_of_silence_and_ends_with_a_success() -> None:
    clock = FakeClock()
    patience = Patience(clock, random.Random(1))
    assert max(patience.next_s() for _ in range(50)) <= 128
    clock.advance(3601)
    assert 128 < max(patience.next_s() for _ in range(50)) <= 900
    patience.succeeded()
    assert patience.next_s() <= 1


def test_retry_after_outlives_a_successful_poll(bench: Bench) -> None:
    """The base poll goes on every minute while one class was told to stay away for an hour."""
    bench.server.answers = [Reply(status=429, headers={"retry-after": "3600"}, body=b"")]
    bench.feedback("a")
    bench.courier.deliver()
    bench.clock.advance(60)
    bench.courier.readmitted()
    assert bench.courier.deliver() > 0
    assert len(bench.server.got) == 1


def test_backoff_of_our_own_ends_when_a_poll_succeeds(bench: Bench) -> None:
    bench.server.answers = [500]
    bench.feedback("a")
    bench.courier.deliver()
    bench.courier.readmitted()
    bench.courier.deliver()
    assert bench.left() == 0


class _FullDisk(SystemOutboxDisk):
    full = False

    def write(self, fd: int, data: bytes) -> int:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().write(fd, data)


def test_disk_that_fills_up_before_the_acknowledgement_is_noted_ends_neither_courier_nor_item(
    tmp_path: Path,
) -> None:
    bench, disk = Bench(tmp_path), _FullDisk()
    bench.outbox = Outbox(tmp_path, on_finding=lambda code, text: None, disk=disk)
    bench.courier.outbox = bench.outbox
    bench.outbox.put(
        Item(
            id="7-closed",
            kind=ItemClass.FEEDBACK,
            rel="deploymentBase",
            path_args={"action_id": "7"},
            body={},
            final=True,
        )
    )
    disk.full = True
    wait_s = bench.courier.deliver()
    assert wait_s > 0
    assert bench.left() == 1
    assert len(bench.server.got) == 1
    disk.full = False
    bench.clock.advance(wait_s)
    bench.courier.deliver()
    assert bench.left() == 0


def test_item_without_its_action_is_buried_and_the_next_goes_on(bench: Bench) -> None:
    bench.outbox.put(
        Item(id="odd", kind=ItemClass.FEEDBACK, rel="deploymentBase", path_args={}, body={"n": "odd"})
    )
    bench.feedback("good")
    bench.courier.deliver()
    assert [json.loads(body)["n"] for _, _, body in bench.server.got] == ["good"]
    assert bench.outbox.kept("dead") == 1


def _chain(directory: Path, component: str, clock: FakeClock) -> Path:
    log = AuditLog.open(
        directory / component,
        component=component,
        clock=clock,
        origin=f"t/device/INJ-1/{component}",
        boot_id="1" * 32,
        budget_bytes=2**20,
        segment_bytes=2**16,
    )
    log.append("process.started", actor=Actor(kind="component", id=component), fields={"version": "1"})
    log.close()
    return directory / component


def test_audit_chain_that_the_server_refuses_does_not_hold_up_the_others(
    bench: Bench, tmp_path: Path
) -> None:
    bench.links.replace({"tw:audit": "/t/audit"})
    chains = {name: _chain(tmp_path / "audit", name, bench.clock) for name in ("agent", "hal")}
    bench.courier.shipper = Shipper(
        chains,
        state_file=tmp_path / "cursors.json",
        transport=bench.server,
        on_finding=lambda code, text: None,
    )
    bench.server.answers = [400]
    bench.clock.advance(bench.courier.deliver())
    bench.courier.deliver()
    assert [path for _, path, _ in bench.server.got][:2] == ["/t/audit/agent?from=0", "/t/audit/hal?from=0"]


class _FullShipper(Shipper):
    """A shipper whose cursor file the full disk refuses."""

    def ship_next(self, base_path: str) -> Reply | None:
        raise StateWriteError("cursors.json: No space left on device")


def test_full_disk_under_the_audit_cursor_only_delays_shipping(bench: Bench, tmp_path: Path) -> None:
    bench.links.replace({"tw:audit": "/t/audit"})
    bench.courier.shipper = _FullShipper(
        {},
        state_file=tmp_path / "cursors.json",
        transport=bench.server,
        on_finding=lambda code, text: None,
    )
    bench.feedback("a")
    assert bench.courier.deliver() > 0
    assert bench.left() == 0
