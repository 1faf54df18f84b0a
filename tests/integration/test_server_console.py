"""The management API and the life of the process: tokens, strict bodies, audit, second instance, clean stop, restart."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tidewaiter_core.audit_record import canonical, sha256

from tests.sim.repository import PRODUCT, TestRepository
from tests.sim.server_process import Client, ServerProcess, base_path, command, prepare, running, started

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with started(tmp_path_factory.mktemp("console")) as process:
        yield process


def test_init_makes_a_private_directory_and_prints_the_token_once(tmp_path: Path) -> None:
    done = command("init", "--data", str(tmp_path / "data"))
    assert done.returncode == 0
    assert len(done.stdout.strip()) > 40
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert done.stdout.strip().encode() not in (tmp_path / "data" / "tidewaiter.db").read_bytes()


def test_init_never_touches_an_existing_database(tmp_path: Path) -> None:
    command("init", "--data", str(tmp_path))
    before = (tmp_path / "tidewaiter.db").read_bytes()
    again = command("init", "--data", str(tmp_path))
    assert again.returncode == 1
    assert "exists already" in again.stderr
    assert (tmp_path / "tidewaiter.db").read_bytes() == before


@pytest.mark.parametrize("token", ["", "wrong", "x" * 5000])
def test_a_caller_without_the_token_is_401_with_one_audit_record(server: ServerProcess, token: str) -> None:
    before = len(server.audit("login.failed"))
    answer = server.api("GET", "/api/v1/devices", token=token)
    assert (answer.status, answer.json["code"]) == (401, "login.failed")
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(server.audit("login.failed")) == before + 1


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/api/v1/releases", {"product": "x", "version": "1", "extra": 1}, "extra"),
        ("/api/v1/releases", {"product": "../x", "version": "1"}, "product"),
        ("/api/v1/releases", b'{"product":"x","product":"y","version":"1"}', "stands twice"),
        ("/api/v1/deployments", {"release_id": "1", "device_ids": ["A"]}, "release_id"),
        ("/api/v1/deployments", {"release_id": 1, "device_ids": []}, "device_ids"),
        ("/api/v1/deployments", {"release_id": 1, "device_ids": ["NO-00001"], "window": "soon"}, "window"),
        (
            "/api/v1/devices",
            {"id": "A-1", "model": "m", "hw": "h", "certificate_pem": "no"},
            "certificate_pem",
        ),
        ("/api/v1/devices", b"not json", "not JSON"),
    ],
)
def test_a_bad_body_is_a_problem_that_names_the_field(
    server: ServerProcess, path: str, body: object, what: str
) -> None:
    answer = server.api("POST", path, body)
    assert (answer.status, answer.json["code"]) == (400, "request.malformed")
    assert what in answer.json["detail"]
    assert answer.json["instance"] == path


def test_a_body_beyond_256_kib_is_413(server: ServerProcess) -> None:
    answer = server.api("POST", "/api/v1/deployments", b" " * (256 * 1024 + 1))
    assert (answer.status, answer.json["code"]) == (413, "request.too-large")


def test_unknown_paths_and_methods_are_problems(server: ServerProcess) -> None:
    assert server.api("GET", "/api/v1/nothing").json["code"] == "request.not-found"
    assert server.api("DELETE", "/api/v1/devices").json["code"] == "request.method"
    assert server.api("GET", "/docs").status == 404


def test_the_console_listener_asks_for_no_client_certificate_and_serves_no_device_route(
    server: ServerProcess,
) -> None:
    assert server.api("GET", base_path("X-00001")).status == 404


def test_importing_a_device_with_the_certificate_of_another_is_refused(server: ServerProcess) -> None:
    identity, _ = server.make_identity("IMP-00001")
    body = {
        "id": "IMP-00002",
        "model": "m",
        "hw": "h",
        "certificate_pem": identity.certificate_pem().decode(),
    }
    assert server.api("POST", "/api/v1/devices", body).status == 400


def test_importing_the_same_key_twice_is_409(server: ServerProcess) -> None:
    server.enroll("TWI-00001")
    pem = (server.directory / "devices" / "TWI-00001" / "cert.pem").read_text()
    body = {"id": "TWI-00001", "model": "m", "hw": "h", "certificate_pem": pem}
    assert server.api("POST", "/api/v1/devices", body).status == 409


def test_devices_are_listed_page_by_page(server: ServerProcess) -> None:
    for number in range(3):
        server.enroll(f"PAG-0000{number}")
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = server.api("GET", f"/api/v1/devices?limit=2&after={after}").json
        seen += [item["id"] for item in page["items"]]
        after = page["next"]
    assert seen == sorted(seen)
    assert {"PAG-00000", "PAG-00001", "PAG-00002"} <= set(seen)


def test_reading_a_device_is_audited(server: ServerProcess) -> None:
    server.enroll("REA-00001")
    server.api("GET", "/api/v1/devices/REA-00001")
    assert server.audit("device.read")[-1]["object"] == "REA-00001"


def test_an_absent_release_is_not_imported(server: ServerProcess) -> None:
    answer = server.api("POST", "/api/v1/releases", {"product": "nothing", "version": "1"})
    assert (answer.status, answer.json["code"]) == (404, "release.absent")


def test_a_release_whose_document_was_changed_is_not_imported(tmp_path: Path) -> None:
    repository = TestRepository(tmp_path / "desk")
    made = repository.add_release(b"\x05" * 65536, "3.0.0", 3)
    repository.flip_byte(made.path)
    with started(tmp_path / "server", repository_dir=str(repository.metadata.parent)) as server:
        answer = server.api("POST", "/api/v1/releases", {"product": PRODUCT, "version": "3.0.0"})
        assert (answer.status, answer.json["code"]) == (409, "release.mismatch")
        assert server.api("GET", "/api/v1/releases").json["items"] == []


def chain(
    length: int, *, component: str = "agent", first: int = 0, prev: str = "0" * 64, mark: str = ""
) -> list[bytes]:
    lines: list[bytes] = []
    for seq in range(first, first + length):
        record = {
            "schema": 1,
            "seq": seq,
            "utc": "2026-11-24T11:00:00.000Z",
            "boottime_ms": seq,
            "boot_id": "a" * 32,
            "clock": "synced",
            "component": component,
            "kind": "process.started",
            "actor": {"kind": "system", "id": "test"},
            "outcome": "ok",
            "fields": {"mark": mark},
            "prev_sha256": prev,
        }
        lines.append(canonical(record))
        prev = sha256(lines[-1])
    return lines


def ship(
    device: Client, serial: str, lines: list[bytes], component: str = "agent"
) -> tuple[int, dict[str, object]]:
    path = f"{base_path(serial)}/tw/audit/{component}?from={json.loads(lines[0])['seq']}"
    kind = {"Content-Type": "application/x-ndjson"}
    answer = device.request("POST", path, b"".join(line + b"\n" for line in lines), headers=kind)
    return answer.status, answer.json


def test_an_audit_chain_is_taken_in_parts_and_repeats_are_harmless(server: ServerProcess) -> None:
    device, lines = server.enroll("AUD-00001"), chain(10)
    assert ship(device, "AUD-00001", lines[:6]) == (200, {"next_seq": 6})
    assert ship(device, "AUD-00001", lines[3:]) == (200, {"next_seq": 10})
    stored = server.api("GET", "/api/v1/devices/AUD-00001/audit/agent").json["items"]
    assert [canonical(item["record"]) for item in stored] == lines


def test_a_hole_in_a_chain_is_answered_with_what_is_wanted(server: ServerProcess) -> None:
    device, lines = server.enroll("AUD-00002"), chain(10)
    ship(device, "AUD-00002", lines[:2])
    status, answer = ship(device, "AUD-00002", lines[5:])
    assert (status, answer["code"], answer["next_seq"]) == (409, "audit.gap", 2)
    assert ship(device, "AUD-00002", lines[2:]) == (200, {"next_seq": 10})


def test_a_rewritten_record_freezes_the_stream_and_both_versions_are_kept(server: ServerProcess) -> None:
    device, lines = server.enroll("AUD-00003"), chain(4)
    ship(device, "AUD-00003", lines)
    other = chain(1, first=2, prev=sha256(lines[1]), mark="other")
    status, answer = ship(device, "AUD-00003", other)
    assert (status, answer["code"]) == (409, "audit.fork")
    stored = server.api("GET", "/api/v1/devices/AUD-00003/audit/agent").json["items"]
    assert sorted(item["seq"] for item in stored) == [0, 1, 2, 2, 3]
    more = chain(1, first=4, prev=sha256(lines[3]))
    assert ship(device, "AUD-00003", more)[0] == 409
    assert server.audit("audit.fork")[-1]["outcome"] == "major"


def test_a_record_that_does_not_follow_the_head_is_a_fork(server: ServerProcess) -> None:
    device, lines = server.enroll("AUD-00004"), chain(2)
    ship(device, "AUD-00004", lines)
    status, answer = ship(device, "AUD-00004", chain(1, first=2, prev="1" * 64))
    assert (status, answer["code"]) == (409, "audit.fork")


@pytest.mark.parametrize(
    ("number", "body"), list(enumerate([b"", b"\n", b"{}\n", b'{"seq": 0}\n', b"x" * 9000 + b"\n"]))
)
def test_audit_lines_that_are_no_records_are_400(server: ServerProcess, number: int, body: bytes) -> None:
    serial = f"AUX-{number:05d}"
    device = server.enroll(serial)
    answer = device.request("POST", f"{base_path(serial)}/tw/audit/agent", body)
    assert answer.status == 400


def test_the_chain_of_another_component_is_refused(server: ServerProcess) -> None:
    device = server.enroll("AUD-00005")
    assert ship(device, "AUD-00005", chain(1, component="hal"))[0] == 400
    assert ship(device, "AUD-00005", chain(1, component="other"), "other")[0] == 404


def test_a_second_instance_is_refused_with_75_and_the_first_goes_on(server: ServerProcess) -> None:
    second = command("run", "--config", str(server.directory / "server.toml"))
    assert second.returncode == 75
    assert str(server.process.pid) in second.stderr
    assert server.api("GET", "/api/v1/devices").status == 200


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("poll_sleep_s = 0", "poll_sleep_s = 0: expected 1..86399"),
        ('unknown_key = "x"', "unknown_key is not a key"),
        ("tenant = 3", "tenant = 3: expected str"),
        ('device_listen = "8443"', "HOST:PORT"),
        ('device_url = "http://x"', "https://"),
        ("data_dir = [", "expected TOML"),
    ],
)
def test_a_wrong_configuration_is_78_and_names_key_and_value(tmp_path: Path, line: str, what: str) -> None:
    required = {"data_dir": "d", "tls_cert": "c", "tls_key": "k", "device_ca": "a", "repository_dir": "r"}
    name = line.partition(" =")[0]
    text = "".join(f'{key} = "{value}"\n' for key, value in required.items() if key != name)
    (tmp_path / "server.toml").write_text(f"{text}{line}\n")
    done = command("run", "--config", str(tmp_path / "server.toml"))
    assert done.returncode == 78
    assert what in done.stderr
    assert "server.toml" in done.stderr


def test_it_stops_within_three_seconds_with_idle_connections(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        device = server.enroll("STO-00001")
        assert device.request("GET", base_path("STO-00001")).status == 200
        begun = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun < 3
        assert server.process.stdout is not None
        assert server.process.stdout.read() == ""


def test_kill_9_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    pki, token, config = prepare(tmp_path)
    with running(tmp_path, pki, token, config) as server:
        server.enroll("KIL-00001").request(
            "PUT", f"{base_path('KIL-00001')}/configData", {"data": {"a": "b"}}
        )
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with running(tmp_path, pki, token, config) as server:
        assert server.api("GET", "/api/v1/devices/KIL-00001").json["attributes"] == {"a": "b"}
        assert server.audit("device.attributes")[-1]["object"] == "KIL-00001"
    assert command("audit", "verify", "--data", str(tmp_path / "data")).returncode == 0


def test_sighup_takes_a_new_certificate_without_dropping_connections(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        device = server.enroll("HUP-00001")
        assert device.request("GET", base_path("HUP-00001")).status == 200
        (tmp_path / "tls" / "cert.pem").write_text("broken")
        server.process.send_signal(signal.SIGHUP)
        assert device.request("GET", base_path("HUP-00001")).status == 200
        assert server.api("GET", "/api/v1/devices").status == 200


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The data directory of a server that ran, did things and stopped."""
    with started(tmp_path) as server:
        server.enroll("VER-00001")
        server.enroll("VER-00002")
        server.api("POST", "/api/v1/devices/VER-00001/revoke", {"reason": "test"})
    return tmp_path / "data"


def change(data: Path, statement: str) -> None:
    """What an attacker with the file does: the triggers go first."""
    connection = sqlite3.connect(data / "tidewaiter.db")
    for name in ("server_audit_no_update", "server_audit_no_delete"):
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "code", "what"),
    [
        ("UPDATE server_audit SET object = 'OTHER' WHERE seq = 2", 1, "record 2"),
        ("UPDATE server_audit SET prev_sha256 = sha256 WHERE seq = 3", 1, "record 3"),
        ("DELETE FROM server_audit WHERE seq = 1", 2, "records 1..1 are missing"),
        ("DELETE FROM server_audit WHERE seq >= 2", 2, "missing at the end"),
    ],
)
def test_altered_row_in_the_database_is_found_by_verify(
    stopped: Path, statement: str, code: int, what: str
) -> None:
    change(stopped, statement)
    done = command("audit", "verify", "--data", str(stopped))
    assert done.returncode == code
    assert what in done.stdout


def test_an_untouched_chain_verifies(stopped: Path) -> None:
    done = command("audit", "verify", "--data", str(stopped))
    assert (done.returncode, done.stdout) == (0, "intact\n")


def test_the_database_itself_refuses_to_change_an_audit_record(stopped: Path) -> None:
    connection = sqlite3.connect(stopped / "tidewaiter.db")
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute("DELETE FROM server_audit")
    connection.close()


def test_a_database_of_a_newer_server_is_refused_and_left_alone(stopped: Path) -> None:
    connection = sqlite3.connect(stopped / "tidewaiter.db")
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    done = command("audit", "verify", "--data", str(stopped))
    assert done.returncode == 1
    assert "newer server" in done.stderr


def test_devices_are_imported_from_a_file(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        identity, folder = server.make_identity("FIL-00001")
    entry = {
        "id": "FIL-00001",
        "model": "m",
        "hw": "h",
        "certificate_pem": identity.certificate_pem().decode(),
    }
    (tmp_path / "devices.json").write_text(json.dumps({"devices": [entry]}))
    done = command("device", "import", "--data", str(tmp_path / "data"), str(tmp_path / "devices.json"))
    assert (done.returncode, done.stdout) == (0, "1 devices imported\n")
    with running(tmp_path, server.pki, server.token, tmp_path / "server.toml") as again:
        assert again.client(folder).request("GET", base_path("FIL-00001")).status == 200
