"""When the server is asked, and what its links mean."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tidewaiter_agent.courier import Courier
from tidewaiter_agent.errors import AuthError, NetError
from tidewaiter_agent.exchange import JSON_LIMIT_BYTES, Reply, Stream
from tidewaiter_agent.links import ArtifactTable
from tidewaiter_agent.origin import LinkTable, Origin
from tidewaiter_agent.outbox import Outbox
from tidewaiter_agent.poller import Poller
from tidewaiter_agent.trail import Trail
from tidewaiter_core import ddi
from tidewaiter_core.audit import AuditLog
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.notify import Notifier
from tidewaiter_core.settings import Poll
from tidewaiter_core.workers import Stop

from tests.sim.clock import FakeClock

ORIGIN = Origin("https://server.example", "default", "INJ-1")
BASE = ORIGIN.poll_path


class Pages:
    """Implements Transport over a table of documents; a NetError in it is raised."""

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {BASE: {"config": {"polling": {"sleep": "00:05:00"}}, "_links": {}}}
        self.got: list[tuple[str, str]] = []
        self.headers: dict[str, str] = {}
        self.status = 200

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
        self.got.append((method, path))
        found = self.documents.get(path.partition("?")[0], {})
        if isinstance(found, NetError):
            raise found
        content = {"content-type": "application/hal+json", **self.headers}
        return Reply(status=self.status, headers=content, body=json.dumps(found).encode())

    @contextmanager
    def open(self, path: str, *, headers: Mapping[str, str]) -> Iterator[Stream]:
        raise NetError("not used here")
        yield


class Bench:
    def __init__(self, directory: Path, *, seed: int = 1, poll: Poll | None = None) -> None:
        self.clock = FakeClock()
        self.pages = Pages()
        self.inventory = {"serial": "INJ-1"}
        audit = AuditLog.open(
            directory / "audit",
            component="agent",
            clock=self.clock,
            origin="t/device/INJ-1/agent",
            boot_id="1" * 32,
            budget_bytes=2**20,
            segment_bytes=2**16,
        )
        self.audit = audit
        links = LinkTable()
        outbox = Outbox(directory / "outbox", on_finding=lambda code, text: None)
        self.poller = Poller(
            transport=self.pages,
            origin=ORIGIN,
            links=links,
            link_rule=lambda href: ddi.check_link(href, origin=ORIGIN.url, tenant_prefix=ORIGIN.tenant_path),
            artifacts=ArtifactTable(),
            updates=None,
            courier=Courier(outbox, self.pages, ORIGIN, links, None, self.clock),
            trail=Trail(audit, self.clock),
            clock=self.clock,
            poll=poll or Poll(interval_min_s=60, interval_max_s=900, clamp_min_s=15),
            config_data=lambda: self.inventory,
            on_success=lambda: None,
            rng=random.Random(seed),
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.audit.close()


def test_interval_of_the_server_is_used_with_ten_percent_of_jitter(bench: Bench) -> None:
    waits = [bench.poller.poll_once() for _ in range(200)]
    assert 270 <= min(waits) < 275
    assert 325 < max(waits) <= 330


@pytest.mark.parametrize(("asked", "low", "high"), [("00:00:01", 54, 66), ("23:59:59", 810, 990)])
def test_interval_of_the_server_is_bounded_by_the_site(
    bench: Bench, asked: str, low: float, high: float
) -> None:
    bench.pages.documents[BASE]["config"]["polling"]["sleep"] = asked
    assert low <= bench.poller.poll_once() <= high


def test_first_poll_after_a_boot_is_spread_over_the_shortest_interval(tmp_path: Path) -> None:
    waits = []
    for seed in range(50):
        made = Bench(tmp_path / str(seed), seed=seed)
        stop = Stop(made.clock)
        beat = Heartbeat(made.clock, Notifier(None)).beat("poller", deadline_s=60)
        begun_s = made.clock.boottime_s()
        made.poller.on_success = stop.set
        made.poller.run(stop, beat)
        waits.append(made.clock.boottime_s() - begun_s)
        made.audit.close()
    assert max(waits) <= 61
    assert max(waits) - min(waits) > 40


def test_failed_poll_is_repeated_soon_and_then_less_often(bench: Bench) -> None:
    bench.pages.documents[BASE] = NetError("down", code="net.tcp")
    waits = [bench.poller.poll_once() for _ in range(12)]
    assert waits[0] <= 1
    assert max(waits) <= 128
    assert bench.poller.contact.error_code == "net.tcp"


def test_retry_after_of_the_server_is_a_floor(bench: Bench) -> None:
    bench.pages.status, bench.pages.headers = 503, {"retry-after": "600"}
    assert bench.poller.poll_once() >= 600


def test_device_that_is_not_accepted_asks_no_more_often_than_the_interval(bench: Bench) -> None:
    bench.pages.documents[BASE] = AuthError("no", code="auth.rejected")
    assert min(bench.poller.poll_once() for _ in range(5)) >= 60


def test_success_after_a_failure_is_online_again(bench: Bench) -> None:
    good = bench.pages.documents[BASE]
    bench.pages.documents[BASE] = NetError("down", code="net.tcp")
    bench.poller.poll_once()
    assert not bench.poller.contact.online
    bench.pages.documents[BASE] = good
    bench.poller.poll_once()
    assert bench.poller.contact.online


def test_inventory_is_told_once_per_start_and_when_the_server_asks(bench: Bench) -> None:
    for _ in range(3):
        bench.poller.poll_once()
    assert [path for method, path in bench.pages.got if method == "PUT"] == [f"{BASE}/configData"]
    bench.pages.documents[BASE]["_links"] = {
        "configData": {"href": f"https://server.example{BASE}/configData"}
    }
    bench.poller.poll_once()
    assert len([path for method, path in bench.pages.got if method == "PUT"]) == 2


def test_inventory_with_a_missing_reading_is_told_again_when_it_is_there(bench: Bench) -> None:
    bench.inventory["injector"] = "missing: core.not-reachable"
    bench.poller.poll_once()
    bench.poller.poll_once()
    bench.inventory["injector"] = "SMP 200"
    bench.poller.poll_once()
    bench.poller.poll_once()
    assert len([path for method, path in bench.pages.got if method == "PUT"]) == 2


@pytest.mark.parametrize(
    "href",
    ["https://other.example/default/controller/v1/INJ-1/x", "http://server.example/default/x", "//other.example/default/x",
     "https://server.example/other/x", "https://server.example/default/../other/x", "https://u@server.example/default/x",
     "https://server.example:8443/default/x"],
)  # fmt: skip
def test_link_that_is_not_ours_is_not_followed_and_the_poll_succeeds(bench: Bench, href: str) -> None:
    bench.pages.documents[BASE]["_links"] = {"tw:telemetry": {"href": href}}
    bench.poller.poll_once()
    assert bench.poller.links.path("tw:telemetry") is None
    assert bench.poller.contact.online


def test_link_of_a_feature_that_is_switched_off_is_not_followed(bench: Bench) -> None:
    bench.poller.ignored_rels = frozenset({"tw:telemetry"})
    bench.pages.documents[BASE]["_links"] = {"tw:telemetry": {"href": f"{BASE}/tw/telemetry"}}
    bench.poller.poll_once()
    assert bench.poller.links.path("tw:telemetry") is None


def test_foreign_link_is_logged_once_and_not_at_every_poll(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.pages.documents[BASE]["_links"] = {"tw:telemetry": {"href": "https://other.example/x"}}
    for _ in range(5):
        bench.poller.poll_once()
    assert len([record for record in caplog.records if "tw:telemetry" in record.getMessage()]) == 1


def test_ever_new_foreign_links_fill_neither_memory_nor_audit_chain(bench: Bench) -> None:
    for poll in range(30):
        bench.pages.documents[BASE]["_links"] = {
            f"x{poll}-{number}": {"href": "https://other.example/x"} for number in range(10)
        }
        bench.poller.poll_once()
    assert bench.audit.next_seq < 100
