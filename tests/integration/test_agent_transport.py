"""The agent's transport against a real TLS server: what it accepts, what it refuses, and how it says so."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tidewaiter_agent import identity
from tidewaiter_agent.errors import AuthError, IdentityError, NetError, ProxyError
from tidewaiter_agent.exchange import expect_json
from tidewaiter_agent.limits import TokenBucket
from tidewaiter_agent.proxy import Route
from tidewaiter_agent.transport import HttpsTransport, Limits
from tidewaiter_core.clock import SystemClock

from tests.sim import server as world_answers
from tests.sim.certificates import Authority, Leaf
from tests.sim.lossy_proxy import LossyProxy
from tests.sim.server import ServerWorld

pytestmark = pytest.mark.integration
SERIAL = "INJ-000123"
BASE = f"/default/controller/v1/{SERIAL}"
CLOCK = SystemClock()


@dataclass
class Bench:
    """Authorities, a server and a way to make transports for it."""

    directory: Path
    servers: Authority
    devices: Authority
    world: ServerWorld
    made: list[HttpsTransport] = field(default_factory=list)

    def transport(
        self,
        *,
        url: str = "",
        device: Leaf | None = None,
        routes: tuple[Route, ...] = (Route("DIRECT"),),
        request_timeout_s: float = 5.0,
        clock_unset: bool = False,
        ca_file: Path | None = None,
    ) -> HttpsTransport:
        keys = self.directory / "keys"
        if device is None and not keys.exists():
            self.devices.device(SERIAL, directory=keys)
        elif device is not None:
            keys = device.certificate_file.parent
        made = HttpsTransport(
            url=url or self.world.url,
            ca_file=ca_file or self.servers.ca_file,
            identity=identity.load(keys, device_id=SERIAL),
            routes=lambda: routes,
            clock=CLOCK,
            limits=Limits(
                connect_timeout_s=3.0,
                request_timeout_s=request_timeout_s,
                up=TokenBucket(CLOCK, 0),
                down=TokenBucket(CLOCK, 0),
            ),
            clock_unset=lambda: clock_unset,
            user_agent="tidewaiter-agent/test",
        )
        self.made.append(made)
        return made


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    servers, devices = Authority(tmp_path / "ca", "server-root"), Authority(tmp_path / "ca", "device-root")
    with ServerWorld(servers, devices=devices) as world:
        bench = Bench(tmp_path, servers, devices, world)
        yield bench
        for made in bench.made:
            made.close()


def error_of(transport: HttpsTransport, path: str = BASE, *, limit_bytes: int = 262144) -> NetError:
    with pytest.raises(NetError) as caught:
        transport.request("GET", path, limit_bytes=limit_bytes)
    return caught.value


def test_poll_over_mutual_tls_answers_and_keeps_the_connection(bench: Bench) -> None:
    transport = bench.transport()
    for _ in range(3):
        assert expect_json(transport.request("GET", BASE), "poll", now_epoch_s=0).startswith(b"{")
    assert {seen.connection for seen in bench.world.seen} == {1}


def test_requests_context_holds_exactly_one_ca_after_use(bench: Bench) -> None:
    transport = bench.transport()
    transport.request("GET", BASE)
    assert transport.context.cert_store_stats()["x509_ca"] == 1


def test_proxy_environment_variables_are_ignored(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", os.devnull)
    assert bench.transport().request("GET", BASE).status == 200


def test_server_certificate_of_another_authority_is_named_as_interception_before_any_byte_is_sent(
    bench: Bench,
) -> None:
    other = Authority(bench.directory / "ca", "webgate-inspection")
    error = error_of(bench.transport(ca_file=other.ca_file))
    assert error.code == "net.intercepted"
    assert "server-root" in str(error)
    assert bench.world.seen == []


@pytest.mark.parametrize(("start_days", "end_days"), [(-30, -1), (1, 30)])
def test_server_certificate_out_of_its_dates_is_refused(
    bench: Bench, start_days: float, end_days: float
) -> None:
    leaf = bench.servers.server(start_days=start_days, end_days=end_days)
    with ServerWorld(bench.servers, certificate=leaf) as world:
        error = error_of(bench.transport(url=world.url))
    assert error.code == "net.tls-verify"
    assert "clock" in str(error)


def test_clock_before_the_build_is_named_instead_of_blaming_the_server(bench: Bench) -> None:
    leaf = bench.servers.server(start_days=1, end_days=30)
    with ServerWorld(bench.servers, certificate=leaf) as world:
        error = error_of(bench.transport(url=world.url, clock_unset=True))
        assert world.seen == []
    assert error.code == "net.clock-before-build"
    assert "set the clock" in str(error)


def test_server_certificate_for_another_name_is_refused(bench: Bench) -> None:
    with ServerWorld(bench.servers, certificate=bench.servers.server(names=())) as world:
        error = error_of(bench.transport(url=world.url))
    assert error.code == "net.tls-verify"


def test_device_certificate_of_another_authority_is_rejected_by_the_server_and_named(bench: Bench) -> None:
    other = Authority(bench.directory / "ca", "other-line")
    leaf = other.device(SERIAL, directory=bench.directory / "foreign")
    error = error_of(bench.transport(device=leaf))
    assert error.code == "auth.rejected"
    assert "other-line" in str(error)
    assert not error.retryable


def test_expired_device_certificate_is_rejected_by_the_server_and_its_end_is_named(bench: Bench) -> None:
    leaf = bench.devices.device(SERIAL, start_days=-30, end_days=-1, directory=bench.directory / "expired")
    transport = bench.transport(device=leaf)
    error = error_of(transport)
    assert isinstance(error, AuthError)
    assert error.code == "auth.rejected"
    assert "valid" in str(error)
    finding = identity.load(leaf.certificate_file.parent, device_id=SERIAL).finding(CLOCK.now_utc())
    assert finding is not None
    assert "expired" in finding


def test_device_certificate_of_another_device_is_refused_at_start(bench: Bench) -> None:
    bench.devices.device("INJ-999999", directory=bench.directory / "keys")
    with pytest.raises(IdentityError, match=r"INJ-999999.*expected device INJ-000123"):
        bench.transport()


def test_key_that_others_may_read_is_refused_at_start(bench: Bench) -> None:
    leaf = bench.devices.device(SERIAL, directory=bench.directory / "keys")
    leaf.key_file.chmod(0o640)
    with pytest.raises(IdentityError, match="0640"):
        bench.transport()


def test_plain_text_from_a_captive_portal_is_named_as_interception(bench: Bench) -> None:
    with ServerWorld(bench.servers, plain=True) as portal:
        error = error_of(bench.transport(url=portal.url))
    assert error.code == "net.intercepted"


def test_html_instead_of_json_is_named_with_the_title_of_the_page(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.html())
    with pytest.raises(NetError, match=r"HTML.*Access denied by WebGate") as caught:
        expect_json(bench.transport().request("GET", BASE), "poll", now_epoch_s=0)
    assert caught.value.code == "net.bad-json"


def test_redirect_is_not_followed(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.redirect(f"{bench.world.url}/elsewhere"))
    assert error_of(bench.transport()).code == "net.redirect"
    assert bench.world.requests("GET", "/elsewhere") == []


def test_endless_body_stops_at_the_limit(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.endless())
    assert error_of(bench.transport()).code == "net.too-large"


def test_announced_body_above_the_limit_is_refused_before_it_is_read(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.Answer(body=b"x" * 2000))
    error = error_of(bench.transport(), limit_bytes=1000)
    assert error.code == "net.too-large"
    assert "2000 announced" in str(error)


def test_dripping_body_ends_at_the_deadline(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.drip(b"x" * 1000, interval_s=0.02))
    assert error_of(bench.transport(request_timeout_s=0.5)).code == "net.slow"


def test_dripping_headers_end_at_the_deadline(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.drip(b"x" * 1000, interval_s=0.02, in_headers=True))
    assert error_of(bench.transport(request_timeout_s=0.5)).code == "net.slow"


def test_silent_server_ends_at_the_timeout(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.drip(b"x", interval_s=30, in_headers=True))
    assert error_of(bench.transport(request_timeout_s=0.5)).code == "net.slow"


def test_too_many_headers_are_refused(bench: Bench) -> None:
    lines = b"".join(b"X-Filler-%d: %s\r\n" % (i, b"y" * 1000) for i in range(60))
    bench.world.fail(BASE, world_answers.raw(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n"))
    assert error_of(bench.transport()).code == "net.too-large"


def test_truncated_body_is_a_broken_connection_not_an_answer(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.truncated(b'{"config": {}}', 5))
    assert error_of(bench.transport()).code == "net.tcp"


def test_coded_body_is_refused(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.Answer(body=b"x", headers={"Content-Encoding": "gzip"}))
    assert error_of(bench.transport()).code == "net.coded-body"


def test_cookies_of_the_server_are_not_kept(bench: Bench) -> None:
    bench.world.fail(BASE, world_answers.Answer(body=b"{}", headers={"Set-Cookie": "a=b; Path=/"}))
    transport = bench.transport()
    transport.request("GET", BASE)
    transport.request("GET", BASE)
    assert "Cookie" not in bench.world.seen[1].headers


def test_unknown_name_is_named(bench: Bench) -> None:
    assert error_of(bench.transport(url="https://no-such-host.invalid")).code == "net.dns"


def test_closed_port_is_named(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert error_of(bench.transport(url=f"https://127.0.0.1:{port}")).code == "net.tcp"


def test_tls_1_1_server_is_refused(bench: Bench) -> None:
    transport = bench.transport()
    assert transport.context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert all(
        "GCM" in c["name"] or "CHACHA20" in c["name"]
        for c in transport.context.get_ciphers()
        if c["protocol"] == "TLSv1.2"
    )


def test_poll_through_a_connect_proxy_works_and_the_proxy_sees_only_name_and_port(bench: Bench) -> None:
    with LossyProxy() as proxy:
        transport = bench.transport(routes=(Route("PROXY", "127.0.0.1", proxy.port),))
        assert transport.request("GET", BASE).status == 200
        assert transport.request("GET", BASE).status == 200
    assert len(proxy.connects) == 1
    assert proxy.connects[0].startswith(f"CONNECT 127.0.0.1:{bench.world.port} HTTP/1.1\r\n")


def test_second_route_is_used_when_the_first_is_down(bench: Bench) -> None:
    with LossyProxy() as proxy:
        proxy.weather.refuse = True
        transport = bench.transport(routes=(Route("PROXY", "127.0.0.1", proxy.port), Route("DIRECT")))
        assert transport.request("GET", BASE).status == 200


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "proxy.refused"),
        (b"HTTP/1.1 407 No\r\nProxy-Authenticate: NTLM\r\n\r\n", "proxy.auth-required"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 7\r\n\r\nblocked",
            "proxy.not-a-tunnel",
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "proxy.not-a-tunnel"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 3000, "proxy.not-a-tunnel"),
        (b"HTTP/1.1 200 OK\r\n\r\nEARLY", "proxy.early-data"),
        (b"", "proxy.refused"),
    ],
)
def test_proxy_answer_that_is_no_tunnel_is_named(bench: Bench, answer: bytes, code: str) -> None:
    with LossyProxy() as proxy:
        proxy.weather.connect_answer = answer
        error = error_of(bench.transport(routes=(Route("PROXY", "127.0.0.1", proxy.port),)))
    assert isinstance(error, ProxyError)
    assert error.code == code


def test_connection_cut_in_the_middle_is_a_retryable_error(bench: Bench) -> None:
    with LossyProxy(("127.0.0.1", bench.world.port)) as line:
        line.weather.cut_down_after = 500
        error = error_of(bench.transport(url=f"https://127.0.0.1:{line.port}"))
    assert error.code == "net.tcp"
    assert error.retryable
