"""The agent as a process: a real server, a real updater interface, kills, and every bad input of the issue."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from tidewaiter_core.varlink import Client

from tests.sim import server as answers
from tests.sim.agent import SERIAL, AgentDevice
from tests.sim.certificates import Authority
from tests.sim.lossy_proxy import LossyProxy
from tests.sim.server import ServerWorld
from tests.sim.updater import DIGEST, RELEASE, UpdaterWorld

pytestmark = pytest.mark.integration
BASE = f"/default/controller/v1/{SERIAL}"
AGENT_RSS_LIMIT_BYTES = 48 * 1024 * 1024


@dataclass
class Bench:
    directory: Path
    servers: Authority
    devices: Authority
    world: ServerWorld
    device: AgentDevice


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    servers, devices = Authority(tmp_path / "ca", "server-root"), Authority(tmp_path / "ca", "device-root")
    with (
        ServerWorld(servers, devices=devices) as world,
        AgentDevice(tmp_path / "device", url=world.url, ca_file=servers.ca_file, devices=devices) as device,
    ):
        yield Bench(tmp_path, servers, devices, world, device)


def test_agent_polls_reports_its_inventory_and_nothing_private(bench: Bench) -> None:
    bench.device.started()
    bench.world.wait_until(lambda: bench.world.config_data)
    data = bench.world.config_data[0]["data"]
    assert data["serial"] == SERIAL
    assert data["release"].startswith("missing: ")
    assert data["injector"].startswith("missing: ")
    sent = " ".join(seen.body.decode() + str(seen.headers) for seen in bench.world.seen)
    host = os.uname().nodename
    assert host not in sent
    macs = {
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.address.count(":") == 5
    }
    assert not any(mac in sent for mac in macs - {"00:00:00:00:00:00"})


def test_agent_holds_no_listening_inet_socket_and_stays_small(bench: Bench) -> None:
    bench.device.started()
    bench.world.wait_until(lambda: len(bench.world.requests("GET", BASE)) >= 2)
    assert bench.device.process is not None
    process = psutil.Process(bench.device.process.pid)
    assert [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    assert process.memory_info().rss <= AGENT_RSS_LIMIT_BYTES


def test_update_runs_from_the_offer_to_success_over_a_kill(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        bench.world.offer("7", RELEASE)
        bench.device.started()
        bench.world.wait_until(lambda: updater.phase == "TRANSFER")
        bench.device.kill()
        updater.phase = "STAGED"
        bench.device.started()
        bench.world.wait_until(lambda: updater.phase == "WAIT_WINDOW")
        updater.commit()
        bench.world.wait_until(lambda: bench.world.is_closed("7"))
    closings = [b for b in bench.world.feedback_of("7") if b["status"]["execution"] == "closed"]
    assert [b["status"]["result"]["finished"] for b in closings] == ["success"]
    assert len(updater.called("Check")) == 1


def test_feedback_made_offline_arrives_after_a_restart(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        bench.world.offer("7", RELEASE)
        bench.device.started()
        bench.world.wait_until(lambda: updater.phase == "TRANSFER")
        bench.world.fail("/", answers.status(503), times=10_000)
        updater.end("FAILED", "slot.medium", "bad flash")
        bench.device.until(lambda: bench.device.status()["action"] is None)
        assert bench.device.status()["outbox"]["classes"][0]["items"] >= 1
        assert bench.device.stop() == 0
        bench.world.clear_faults()
        bench.device.started()
        bench.world.wait_until(lambda: bench.world.is_closed("7"))
    assert bench.world.feedback_of("7")[-1]["status"]["details"][0] == "slot.medium"


def test_answer_410_leaves_the_outbox(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        bench.world.offer("7", RELEASE)
        bench.world.fail(f"{BASE}/deploymentBase/7/feedback", answers.status(410), times=10_000)
        bench.device.started()
        bench.world.wait_until(lambda: updater.phase == "TRANSFER")
        updater.end("FAILED", "slot.io")
        bench.device.until(lambda: bench.device.status()["action"] is None)
        bench.device.until(lambda: bench.device.status()["outbox"]["classes"][0]["items"] == 0)
        assert bench.device.status()["outbox"]["dead_letters"] == 0


def test_poison_item_becomes_a_dead_letter_and_the_next_goes_on(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        bench.world.fail(f"{BASE}/deploymentBase/7/feedback", answers.status(400))
        bench.world.offer("7", RELEASE)
        bench.device.started()
        bench.world.wait_until(lambda: updater.phase == "TRANSFER")
        updater.end("FAILED", "slot.io")
        bench.device.until(lambda: bench.device.status()["outbox"]["dead_letters"] == 1)
        bench.world.wait_until(lambda: bench.world.is_closed("7"))


def test_link_to_another_host_is_not_followed_and_is_audited(bench: Bench) -> None:
    with ServerWorld(bench.servers, devices=bench.devices) as stranger:
        bench.world.links["deploymentBase"] = f"{stranger.url}{BASE}/deploymentBase/7"
        bench.world.links["tw:telemetry"] = f"{bench.world.url}/other-tenant/controller/v1/x/telemetry"
        bench.device.started()
        bench.world.wait_until(lambda: len(bench.world.requests("GET", BASE)) >= 2)
        assert stranger.seen == []
    bench.device.stop()
    shown = bench.device.cli("audit", "show", "--json").stdout
    assert "net.foreign-link" in shown
    assert bench.world.requests("POST", "other-tenant") == []


def test_audit_lines_of_all_chains_arrive_once_and_byte_exact(bench: Bench) -> None:
    bench.device.started()
    bench.world.wait_until(lambda: bench.world.audit.get("agent"))
    bench.device.kill()
    bench.device.started()
    stored = bench.world.audit["agent"]
    bench.world.wait_until(lambda: sum(b"process.started" in line for line in stored) == 2)
    assert [json.loads(line)["seq"] for line in stored] == list(range(len(stored)))
    assert bench.device.cli("audit", "verify").returncode == 0


def test_forked_chain_is_frozen_and_reported(bench: Bench) -> None:
    bench.world.audit["agent"] = [b'{"another":"history"}']
    bench.device.started()
    bench.device.until(lambda: bench.device.status()["audit"][0]["state"] == "fork")
    assert bench.world.audit["agent"] == [b'{"another":"history"}']


def test_telemetry_arrives_with_missing_readings_named(bench: Bench) -> None:
    bench.device.started()
    bench.world.wait_until(lambda: bench.world.telemetry, timeout_s=15)
    snapshot = bench.world.telemetry[0]
    assert snapshot["injector"] == {
        "value": None,
        "quality": "na",
        "age_s": None,
        "reason": "core.not-reachable",
    }
    assert snapshot["release"] is None
    assert snapshot["memory_bytes"] > 0


# --- relay ------------------------------------------------------------------------------------------------------------


def fetch(bench: Bench, path: str, offset: int, wanted: int) -> tuple[dict[str, object], bytes]:
    client = Client(bench.device.run_dir / "agent" / "relay.sock", timeout_s=10)
    reply, body = client.upgrade(
        "io.tidewaiter.Relay.Fetch", {"path": path, "offset": offset, "max_bytes": wanted}
    )
    data = b""
    with body:
        while piece := body.recv(65536):
            data += piece
    return reply, data


def test_relay_serves_ranges_of_repository_files(bench: Bench) -> None:
    pack = os.urandom(3_000_000)
    bench.world.files["targets/releases/p/1/x.pack.twpk"] = pack
    bench.world.files["metadata/timestamp.json"] = b"{}"
    bench.device.started()
    reply, data = fetch(bench, "targets/releases/p/1/x.pack.twpk", 1_000_000, 2_000_000)
    assert (reply["status"], reply["offset"], reply["total"], reply["length"]) == (
        "ok",
        1_000_000,
        len(pack),
        2_000_000,
    )
    assert data == pack[1_000_000:]
    reply, data = fetch(bench, "metadata/timestamp.json", 0, 16384)
    assert (reply["status"], reply["total"], data) == ("ok", 2, b"{}")
    assert fetch(bench, "metadata/9.root.json", 0, 1000)[0]["status"] == "not-found"
    assert fetch(bench, "metadata/../secret", 0, 1000)[0]["status"] == "forbidden"
    assert fetch(bench, "metadata/timestamp.json", 100, 10)[0]["status"] == "bad-range"


def test_relay_hands_on_a_broken_body_as_a_short_one_and_survives(bench: Bench) -> None:
    bench.world.files["targets/x"] = b"x" * 1000
    bench.device.started()
    bench.world.fail("/tuf/targets/x", answers.truncated(b"x" * 1000, 400))
    reply, data = fetch(bench, "targets/x", 0, 1000)
    assert (reply["status"], reply["length"], len(data)) == ("ok", 1000, 400)
    bench.world.fail("/tuf/targets/x", answers.endless())
    assert fetch(bench, "targets/x", 0, 1000)[0]["status"] == "unavailable"
    bench.world.fail("/tuf/targets/x", answers.status(503))
    assert fetch(bench, "targets/x", 0, 1000)[0]["status"] == "unavailable"
    assert fetch(bench, "targets/x", 0, 1000)[1] == b"x" * 1000


def test_relay_memory_does_not_grow_with_the_size_of_a_span(bench: Bench) -> None:
    bench.world.files["targets/big"] = bytes(4 * 1024 * 1024)
    bench.device.started()
    bench.world.wait_until(lambda: len(bench.world.requests("GET", BASE)) >= 2)
    assert bench.device.process is not None
    process = psutil.Process(bench.device.process.pid)
    before = process.memory_info().rss
    for _ in range(8):
        assert len(fetch(bench, "targets/big", 0, 4 * 1024 * 1024)[1]) == 4 * 1024 * 1024
    assert process.memory_info().rss - before < 4 * 1024 * 1024


# --- people at the device -----------------------------------------------------------------------------------------------


def test_consent_of_a_person_reaches_the_updater_as_a_claim(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        updater.releases[RELEASE].consent = "site"
        bench.world.offer("7", RELEASE)
        bench.device.started()
        bench.device.until(lambda: bench.device.call("ListPrompts")["prompts"])
        listed = bench.device.cli("consent", "list")
        assert "contrast-injector 2.1.0" in listed.stdout
        prompt = bench.device.call("ListPrompts")["prompts"][0]
        assert bench.device.cli("consent", "answer", prompt["id"][:6], "yes").returncode == 0
        bench.world.wait_until(lambda: updater.phase == "TRANSFER")
        assert updater.called("Install")[-1]["consent"]["who"] == f"uid:{os.getuid()}"


def test_local_consent_goes_to_the_updater_under_the_persons_own_credentials(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        updater.releases[RELEASE].consent = "local"
        (bench.device.run_dir / "updater-local.sock").symlink_to(bench.device.updater_socket)
        bench.world.offer("7", RELEASE)
        bench.device.started()
        bench.device.until(lambda: bench.device.call("ListPrompts")["prompts"])
        prompt = bench.device.call("ListPrompts")["prompts"][0]
        assert bench.device.cli("consent", "answer", prompt["id"], "yes").returncode == 0
        assert updater.called("Consent")[0]["digest"] == DIGEST
        bench.world.wait_until(lambda: updater.phase == "TRANSFER")


def test_a_release_that_cannot_be_undone_is_agreed_to_only_in_those_words(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        updater.releases[RELEASE].consent = "local"
        updater.releases[RELEASE].reversible = False
        (bench.device.run_dir / "updater-local.sock").symlink_to(bench.device.updater_socket)
        bench.world.offer("7", RELEASE)
        bench.device.started()
        bench.device.until(lambda: bench.device.call("ListPrompts")["prompts"])
        prompt = bench.device.call("ListPrompts")["prompts"][0]
        for words in (("answer", prompt["id"], "yes"), ("grant", DIGEST)):
            refused = bench.device.cli("consent", *words)
            assert refused.returncode != 0
            assert "cannot be undone" in refused.stderr + refused.stdout
        assert updater.called("Consent") == []
        done = bench.device.cli("consent", "answer", prompt["id"], "yes", "--irreversible")
        assert done.returncode == 0, done.stderr
        assert updater.called("Consent")[0]["scope"] == ["install", "activate", "irreversible"]


def test_status_is_one_readable_screen_and_a_document(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        (bench.device.run_dir / "updater-local.sock").symlink_to(bench.device.updater_socket)
        updater.phase, updater.digest, updater.done_bytes = "TRANSFER", DIGEST, 16 * 1024 * 1024
        bench.device.started()
        bench.device.until(lambda: bench.device.status()["server"]["online"])
        screen = bench.device.cli("status")
        assert screen.returncode == 0, screen.stderr
        assert len(screen.stdout.splitlines()) <= 24
        assert "online" in screen.stdout
        assert "[######------------------]   25 %  16.0/64.0 MiB  5.0 MiB/s  0:10 left" in screen.stdout
        document = json.loads(bench.device.cli("status", "--json").stdout)
        assert document["agent"]["device_id"] == SERIAL
        assert document["injector"] == "not available (core.not-reachable)"


def test_watch_follows_the_update_to_its_end_and_its_exit_code_tells_how(bench: Bench) -> None:
    with UpdaterWorld(bench.device.updater_socket) as updater:
        bench.device.write_config()
        (bench.device.run_dir / "updater-local.sock").symlink_to(bench.device.updater_socket)
        updater.phase, updater.digest = "TRANSFER", DIGEST

        def later() -> None:
            time.sleep(1.0)
            updater.done_bytes = updater.total_bytes
            time.sleep(0.5)
            updater.end("FAILED", "slot.io")

        thread = threading.Thread(target=later)
        thread.start()
        watched = bench.device.cli("update", "status", "--watch")
        thread.join()
    assert watched.returncode == 1
    assert "100 %" in watched.stdout
    assert watched.stdout.splitlines()[-1].startswith("FAILED")


def test_cli_without_a_running_agent_says_who_does_not_answer(bench: Bench) -> None:
    bench.device.write_config()
    result = bench.device.cli("status")
    assert result.returncode == 7
    assert "local.sock" in result.stderr


# --- bad input ------------------------------------------------------------------------------------------------------------


def test_second_instance_is_refused_with_exit_75_and_disturbs_nothing(bench: Bench) -> None:
    bench.device.started()
    second = bench.device.run_to_end()
    assert second.returncode == 75
    assert bench.device.process is not None
    assert str(bench.device.process.pid) in second.stderr
    assert bench.device.status()["device_id"] == SERIAL


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("poll", "interval_max_s", 0, "poll.interval_max_s"),
        ("network", "proxy_route", ["SOCKS x:1"], "network.proxy_route"),
        ("server", "url", "http://plain.example", "server.url"),
        ("server", "ca_file", "/no/such/ca.pem", "/no/such/ca.pem"),
        ("network", "proxy", "x", "network.proxy"),
    ],
)
def test_wrong_configuration_is_named_and_ends_with_exit_78(
    bench: Bench, section: str, key: str, value: object, words: str
) -> None:
    bench.device.settings[section][key] = value
    result = bench.device.run_to_end()
    assert result.returncode == 78
    assert words in result.stderr


@pytest.mark.parametrize(
    "name", ["action.json", "consent.json", "cursors.json", "outbox/ledger.json", "time-floor.json"]
)
def test_unreadable_state_file_is_named_left_alone_and_ends_with_exit_78(bench: Bench, name: str) -> None:
    path = bench.device.state_dir / "agent" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'{"schema": 1, "half')
    result = bench.device.run_to_end()
    assert result.returncode == 78
    assert str(path) in result.stderr
    assert path.read_bytes() == b'{"schema": 1, "half'


def test_missing_identity_is_named_and_ends_with_exit_78(bench: Bench) -> None:
    (bench.device.keys / "cert.pem").unlink()
    result = bench.device.run_to_end()
    assert result.returncode == 78
    assert "cert.pem" in result.stderr


def test_expired_device_certificate_is_told_locally_and_nothing_is_lost(bench: Bench) -> None:
    bench.devices.device(SERIAL, start_days=-30, end_days=-1, directory=bench.device.keys)
    bench.device.started()
    bench.device.until(lambda: bench.device.status()["server"]["error_code"] == "auth.rejected")
    status = bench.device.status()
    assert "expired" in status["identity_finding"]
    assert "expired" in status["server"]["error_text"]
    screen = bench.device.cli("status").stdout
    assert "OFFLINE" in screen
    assert "auth.rejected" in screen


def test_server_of_another_authority_is_told_locally_and_gets_no_byte(bench: Bench) -> None:
    stranger = Authority(bench.directory / "ca", "someone-else")
    with ServerWorld(stranger) as world:
        bench.device.settings["server"]["url"] = world.url
        bench.device.started()
        bench.device.until(lambda: bench.device.status()["server"]["error_code"] == "net.intercepted")
        assert "someone-else" in bench.device.status()["server"]["error_text"]
        assert world.seen == []


def test_clock_before_the_build_is_told_locally(bench: Bench) -> None:
    (bench.device.directory / "image.json").write_text(
        json.dumps({"schema": 1, "built_utc": "2999-01-01T00:00:00.000Z"})
    )
    with ServerWorld(bench.servers, certificate=bench.servers.server(start_days=1)) as world:
        bench.device.settings["server"]["url"] = world.url
        bench.device.started()
        bench.device.until(lambda: bench.device.status()["server"]["error_code"] == "net.clock-before-build")
        assert bench.device.status()["clock_state"] == "unset"
        assert world.seen == []


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (answers.html(), "net.bad-json"),
        (answers.Answer(body=b'{"config": {"polling": {"sl'), "net.bad-json"),
        (answers.Answer(body=b"[" * 100_000), "net.bad-json"),
        (answers.Answer(body=b'{"config": {"polling": {"sleep": "soon"}}}'), "net.bad-answer"),
        (answers.truncated(b"{}" + b" " * 1000, 100), "net.tcp"),
        (answers.endless(), "net.too-large"),
        (answers.redirect("https://elsewhere.example/"), "net.redirect"),
        (answers.status(401), "auth.rejected"),
        (answers.status(403, body=b'{"code":"device.revoked"}'), "auth.revoked"),
        (answers.status(404), "net.http-404"),
        (answers.status(429, retry_after="1"), "net.http-429"),
        (answers.status(500), "net.http-500"),
        (answers.status(503, retry_after="1"), "net.http-503"),
    ],
    ids=[
        "html",
        "cut-json",
        "deep",
        "bad-sleep",
        "truncated",
        "endless",
        "redirect",
        "401",
        "403",
        "404",
        "429",
        "500",
        "503",
    ],
)
def test_bad_answer_of_the_server_is_named_and_the_agent_recovers(
    bench: Bench, answer: answers.Answer, code: str
) -> None:
    bench.world.fail(BASE, answer)
    bench.device.started()
    bench.device.until(lambda: code in bench.device.stderr.read_text())
    bench.device.until(lambda: bench.device.status()["server"]["online"])


def test_poll_goes_on_through_a_proxy_that_came_while_running(bench: Bench) -> None:
    bench.device.started()
    bench.device.until(lambda: bench.device.status()["server"]["online"])
    with LossyProxy() as proxy:
        (bench.device.conf_dir / "proxy.toml").write_text(
            f'[network]\nproxy_route = ["PROXY 127.0.0.1:{proxy.port}"]\n'
        )
        bench.world.hang_up()
        bench.world.wait_until(lambda: proxy.connects)
        bench.device.until(lambda: bench.device.status()["server"]["online"])
