"""Who the device listener lets in: real handshakes with good, expired, foreign, misused and revoked certificates."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from tidewaiter_factory.ca import Identity, make_device
from tidewaiter_factory.pki import make_pki
from tidewaiter_factory.profile import IDEVID, LDEVID

from tests.sim.server_process import ServerProcess, base_path, started

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with started(tmp_path_factory.mktemp("identity")) as process:
        yield process


def assert_handshake_is_refused(server: ServerProcess, folder: Path | None) -> None:
    """With TLS 1.3 a client learns of its refusal at the first read, after "success"."""
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        server.client(folder).request("GET", base_path("ANY-00001"))


def test_a_client_without_a_certificate_gets_no_handshake(server: ServerProcess) -> None:
    assert_handshake_is_refused(server, None)


def test_an_expired_certificate_gets_no_handshake(server: ServerProcess) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=200)
    identity = make_device(LDEVID, server.pki.operations_ca, "EXP-00001", long_ago, days=30)
    assert_handshake_is_refused(server, server.write(identity, "expired"))


def test_a_certificate_of_another_ca_gets_no_handshake(server: ServerProcess) -> None:
    other = make_pki("Example Devices", datetime.now(UTC))
    identity = make_device(LDEVID, other.operations_ca, "OTH-00001", datetime.now(UTC))
    assert_handshake_is_refused(server, server.write(identity, "other-ca"))


def test_a_certificate_of_the_factory_line_gets_no_handshake(server: ServerProcess) -> None:
    identity = make_device(IDEVID, server.pki.line_ca, "LIN-00001", datetime.now(UTC))
    assert_handshake_is_refused(server, server.write(identity, "line-ca"))


def test_a_certificate_for_servers_gets_no_handshake(server: ServerProcess) -> None:
    good = make_device(LDEVID, server.pki.operations_ca, "EKU-00001", datetime.now(UTC))
    builder = (
        x509.CertificateBuilder()
        .subject_name(good.certificate.subject)
        .issuer_name(good.certificate.issuer)
        .public_key(good.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(good.certificate.not_valid_before_utc)
        .not_valid_after(good.certificate.not_valid_after_utc)
    )
    for extension in good.certificate.extensions:
        value = extension.value
        if isinstance(value, x509.ExtendedKeyUsage):
            value = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(value, critical=extension.critical)
    wrong = builder.sign(server.pki.operations_ca.key, hashes.SHA384())
    assert_handshake_is_refused(server, server.write(Identity(wrong, good.key, good.chain), "wrong-eku"))


def test_tls_1_1_gets_no_handshake(server: ServerProcess) -> None:
    _, folder = server.make_identity("TLS-00011")
    with pytest.warns(DeprecationWarning):
        client = server.client(folder, tls=ssl.TLSVersion.TLSv1_1)
    with pytest.raises((ssl.SSLError, ConnectionError)):
        client.request("GET", base_path("TLS-00011"))


def test_tls_1_2_shows_the_peer_certificate_too(server: ServerProcess) -> None:
    server.enroll("TLS-00012")
    client = server.client(server.directory / "devices" / "TLS-00012", tls=ssl.TLSVersion.TLSv1_2)
    assert client.request("GET", base_path("TLS-00012")).status == 200


def test_the_certificate_arrives_on_every_request_of_a_kept_connection(server: ServerProcess) -> None:
    device = server.enroll("KEP-00001")
    assert [device.request("GET", base_path("KEP-00001")).status for _ in range(3)] == [200, 200, 200]


def test_an_unknown_device_of_a_valid_ca_is_403_with_one_audit_record(server: ServerProcess) -> None:
    _, folder = server.make_identity("UNK-00001")
    before = len(server.audit("device.unknown"))
    answer = server.client(folder).request("GET", base_path("UNK-00001"))
    assert (answer.status, answer.json["code"]) == (403, "device.unknown")
    records = server.audit("device.unknown")
    assert len(records) == before + 1
    assert records[-1]["actor"] == "certificate:UNK-00001"


def test_an_unknown_device_is_not_created(server: ServerProcess) -> None:
    _, folder = server.make_identity("UNK-00002")
    server.client(folder).request("GET", base_path("UNK-00002"))
    assert server.api("GET", "/api/v1/devices/UNK-00002").status == 404


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", ""),
        ("PUT", "/configData"),
        ("GET", "/deploymentBase/1"),
        ("POST", "/deploymentBase/1/feedback"),
        ("GET", "/cancelAction/1"),
        ("POST", "/cancelAction/1/feedback"),
        ("GET", "/confirmationBase"),
        ("GET", "/confirmationBase/1"),
        ("POST", "/confirmationBase/1/feedback"),
        ("POST", "/confirmationBase/activateAutoConfirm"),
        ("POST", "/confirmationBase/deactivateAutoConfirm"),
        ("PUT", "/installedBase"),
        ("GET", "/installedBase/1"),
        ("GET", "/softwaremodules/1/artifacts"),
        ("GET", "/softwaremodules/1/artifacts/release.json"),
        ("POST", "/tw/telemetry"),
        ("POST", "/tw/audit/agent"),
    ],
)
def test_device_a_cannot_act_as_b_on_any_route(server: ServerProcess, method: str, route: str) -> None:
    known = server.directory / "devices" / "IMP-0000A"
    if not known.exists():
        server.enroll("IMP-0000A")
        server.enroll("IMP-0000B")
    device = server.client(known)
    before = len(server.audit("device.impersonation"))
    body: object = {} if method != "GET" else None
    answer = device.request(method, f"{base_path('IMP-0000B')}{route}", body)
    assert answer.status == 404
    records = server.audit("device.impersonation")
    assert len(records) == before + 1
    assert records[-1]["actor"] == "device:IMP-0000A"


def test_the_wrong_tenant_is_404_and_audited(server: ServerProcess) -> None:
    device = server.enroll("TEN-00001")
    before = len(server.audit("device.impersonation"))
    assert device.request("GET", "/other/controller/v1/TEN-00001").status == 404
    assert len(server.audit("device.impersonation")) == before + 1


def test_a_certificate_header_from_a_client_is_ignored(server: ServerProcess) -> None:
    good, _ = server.make_identity("HDR-00001")
    _, folder = server.make_identity("HDR-00002")
    header = {"Client-Cert": good.certificate_pem().decode().replace("\n", "")}
    answer = server.client(folder).request("GET", base_path("HDR-00001"), headers=header)
    assert (answer.status, answer.json["code"]) == (403, "device.unknown")


def test_a_revoked_device_loses_its_live_connection_at_once(server: ServerProcess) -> None:
    device = server.enroll("REV-00001")
    assert device.request("GET", base_path("REV-00001")).status == 200
    revoked = server.api("POST", "/api/v1/devices/REV-00001/revoke", {"reason": "stolen"})
    assert (revoked.status, revoked.json["state"]) == (200, "revoked")
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected, ssl.SSLError)):
        device.request("GET", base_path("REV-00001"))


def test_a_revoked_device_is_403_on_a_new_connection(server: ServerProcess) -> None:
    server.enroll("REV-00002")
    server.api("POST", "/api/v1/devices/REV-00002/revoke", {"reason": "stolen"})
    client = server.client(server.directory / "devices" / "REV-00002")
    answer = client.request("GET", base_path("REV-00002"))
    assert (answer.status, answer.json["code"]) == (403, "device.revoked")


def test_a_revocation_ends_a_transfer_that_is_under_way(server: ServerProcess) -> None:
    server.enroll("REV-00003")
    (server.repository / "targets" / "large.bin").write_bytes(b"\0" * 64 * 1024 * 1024)
    address = urlsplit(server.device_origin)
    context = server.context(server.directory / "devices" / "REV-00003")
    with (
        socket.create_connection(("127.0.0.1", address.port or 0), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        tls.sendall(b"GET /tuf/targets/large.bin HTTP/1.1\r\nHost: x\r\n\r\n")
        seen = len(tls.recv(16384))
        server.api("POST", "/api/v1/devices/REV-00003/revoke", {"reason": "stolen"})
        with pytest.raises((ConnectionError, ssl.SSLError)):
            while piece := tls.recv(1024 * 1024):
                seen += len(piece)
            raise ConnectionResetError("closed before the end")
    assert seen < 64 * 1024 * 1024


def test_a_second_key_of_a_device_works_beside_the_first(server: ServerProcess) -> None:
    first = server.enroll("KEY-00001")
    renewed, folder = server.make_identity("KEY-00001", name="KEY-00001-renewed")
    body = {"id": "KEY-00001", "model": "ci-300", "hw": "ci-300-a"}
    answer = server.api(
        "POST", "/api/v1/devices", body | {"certificate_pem": renewed.certificate_pem().decode()}
    )
    assert (answer.status, len(answer.json["keys"])) == (201, 2)
    assert server.client(folder).request("GET", base_path("KEY-00001")).status == 200
    assert first.request("GET", base_path("KEY-00001")).status == 200


def test_a_head_of_more_than_16_kib_is_431(server: ServerProcess) -> None:
    device = server.enroll("HED-00001")
    answer = device.request("GET", base_path("HED-00001"), headers={"X-Long": "x" * 20_000})
    assert answer.status == 431


def test_an_endless_header_ends_the_connection(server: ServerProcess) -> None:
    server.enroll("HED-00002")
    address = urlsplit(server.device_origin)
    context = server.context(server.directory / "devices" / "HED-00002")
    with (
        socket.create_connection(("127.0.0.1", address.port or 0), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        tls.sendall(b"GET / HTTP/1.1\r\nX: ")
        answer = b""
        with pytest.raises((ConnectionError, ssl.SSLError)):
            for _ in range(1000):
                tls.sendall(b"x" * 4096)
                time.sleep(0.001)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            answer = tls.recv(64)
            raise ConnectionError(answer)


def test_a_head_that_trickles_is_cut_off_after_ten_seconds(server: ServerProcess) -> None:
    server.enroll("SLO-00001")
    address = urlsplit(server.device_origin)
    context = server.context(server.directory / "devices" / "SLO-00001")
    with (
        socket.create_connection(("127.0.0.1", address.port or 0), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
    ):
        begun = time.monotonic()
        tls.sendall(b"GET / HTT")
        tls.settimeout(20)
        with pytest.raises((ConnectionError, ssl.SSLError)):
            if not tls.recv(64):
                raise ConnectionResetError("closed")
        assert 8 < time.monotonic() - begun < 15
