"""`tidewaiter-factory`: a test PKI, server certificates, device identities for benches, and the certificate linter."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_factory import pki
from tidewaiter_factory.ca import FactoryError, make_device, make_server, spki_sha256, write_identity
from tidewaiter_factory.profile import LDEVID, PROFILES, lint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. 0 done, 1 refused or findings, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except TidewaiterError as error:
        print(f"tidewaiter-factory: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"tidewaiter-factory: {error}; nothing more was written", file=sys.stderr)
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tidewaiter-factory", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    group = commands.add_parser("pki", help="authorities").add_subparsers(required=True, metavar="COMMAND")
    init = group.add_parser("init", help="make the roots, the line CA and the operations CA of a test PKI")
    init.add_argument("--out", type=Path, required=True, metavar="DIR")
    init.add_argument("--organization", default="Example Devices")
    init.set_defaults(command=_pki_init)

    server = commands.add_parser("server-cert", help="issue a TLS server certificate")
    server.add_argument("--pki", type=Path, required=True, metavar="DIR")
    server.add_argument("--dns", action="append", default=[], metavar="NAME")
    server.add_argument("--ip", action="append", default=[], type=ip_address, metavar="IP")
    server.add_argument("--out", type=Path, required=True, metavar="DIR")
    server.set_defaults(command=_server_cert)

    device = commands.add_parser("device", help="make an LDevID with its key for a bench device")
    device.add_argument("--pki", type=Path, required=True, metavar="DIR")
    device.add_argument("--serial", required=True)
    device.add_argument("--tenant", default="default")
    device.add_argument("--days", type=int, default=90, choices=range(1, 91), metavar="1..90")
    device.add_argument("--out", type=Path, required=True, metavar="DIR")
    device.set_defaults(command=_device)

    check = commands.add_parser("lint", help="compare a certificate with its profile")
    check.add_argument("certificate", type=Path)
    check.add_argument("--profile", required=True, choices=sorted(PROFILES))
    check.set_defaults(command=_lint)
    return parser


def _now() -> datetime:
    return datetime.now(UTC)


def _pki_init(options: argparse.Namespace) -> int:
    pki.write_pki(pki.make_pki(options.organization, _now()), options.out)
    print(f"{options.out}: factory root and line CA, operations root and CA, server root")
    return 0


def _server_cert(options: argparse.Namespace) -> int:
    authorities = pki.read_pki(options.pki)
    identity = make_server(authorities.server_root, options.dns, options.ip, _now())
    write_identity(identity, options.out / "cert.pem", options.out / "key.pem")
    print(
        f"{options.out}: cert.pem, key.pem, valid until {identity.certificate.not_valid_after_utc:%Y-%m-%d}"
    )
    return 0


def _device(options: argparse.Namespace) -> int:
    authorities = pki.read_pki(options.pki)
    identity = make_device(LDEVID, authorities.operations_ca, options.serial, _now(), days=options.days)
    write_identity(identity, options.out / "cert.pem", options.out / "key.pem")
    document = {"schema": 1, "serial": options.serial, "tenant": options.tenant}
    (options.out / "provisioned.json").write_text(json.dumps(document, sort_keys=True) + "\n")
    print(f"{options.out}: cert.pem, key.pem, provisioned.json, spki {spki_sha256(identity.certificate)}")
    return 0


def _lint(options: argparse.Namespace) -> int:
    try:
        certificate = x509.load_pem_x509_certificate(options.certificate.read_bytes())
    except ValueError as error:
        raise FactoryError(f"{options.certificate}: expected a PEM certificate, found {error}") from error
    findings = lint(certificate, PROFILES[options.profile])
    for finding in findings:
        print(finding)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
