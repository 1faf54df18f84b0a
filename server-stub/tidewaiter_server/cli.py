"""`tidewaiter-server`: init, run, check, device import, audit verify.

Exit codes: 0 done, 1 refused or altered, 2 usage (audit verify: 2 incomplete), 75 a second instance, 78 wrong configuration.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from tidewaiter_core import log
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import ConfigError, SecondInstanceError, TidewaiterError
from tidewaiter_core.strictjson import StrictJsonError, loads

from tidewaiter_server import app, audit, db, devices, settings, tls, tokens
from tidewaiter_server.api_bodies import NewDevice, enrollment
from tidewaiter_server.errors import ServerError

_IMPORT_LIMIT_BYTES = 64 * 1024 * 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except SecondInstanceError as error:
        return _fail(error, 75)
    except ConfigError as error:
        return _fail(error, 78)
    except TidewaiterError as error:
        return _fail(error, 1)
    return code


def _fail(error: Exception, code: int) -> int:
    print(f"tidewaiter-server: {error}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tidewaiter-server", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    init = commands.add_parser(
        "init", help="make data directory and database; prints the administrator token once"
    )
    init.add_argument("--data", type=Path, required=True, metavar="DIR")
    init.set_defaults(command=_init)

    run = commands.add_parser("run", help="serve until SIGTERM")
    run.add_argument("--config", type=Path, required=True, metavar="FILE")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="read the configuration and its certificates, change nothing")
    check.add_argument("--config", type=Path, required=True, metavar="FILE")
    check.set_defaults(command=_check)

    group = commands.add_parser("device", help="enrollment list").add_subparsers(
        required=True, metavar="COMMAND"
    )
    add = group.add_parser("import", help="put devices on the list (server stopped; else use the API)")
    add.add_argument("--data", type=Path, required=True, metavar="DIR")
    add.add_argument("--tenant", default="default")
    add.add_argument(
        "file", type=Path, help='JSON: {"devices": [{"id", "model", "hw", "udi_di", "certificate_pem"}]}'
    )
    add.set_defaults(command=_device_import)

    chain = commands.add_parser("audit", help="the server's own chain").add_subparsers(
        required=True, metavar="COMMAND"
    )
    verify = chain.add_parser(
        "verify", help="recompute it: 0 intact, 1 altered, 2 incomplete (server stopped)"
    )
    verify.add_argument("--data", type=Path, required=True, metavar="DIR")
    verify.set_defaults(command=_audit_verify)
    return parser


def _init(options: argparse.Namespace) -> int:
    data: Path = options.data
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        data.chmod(0o700)
    except OSError as error:
        raise ServerError(
            f"{data}: cannot be made ({error.strerror or error}); nothing was initialized"
        ) from error
    db.create(data)
    database = db.Database(data)
    try:
        token = database.write_now(
            lambda connection: tokens.create(
                connection, SystemClock(), name="administrator", permissions=["*"]
            )
        )
    finally:
        database.close()
    print(f"{data}: initialized. The administrator token, shown only now:", file=sys.stderr)
    print(token)
    return 0


def _run(options: argparse.Namespace) -> int:
    log.configure("server")

    def ready(device: str, console: str) -> None:
        print(f"tidewaiter-server: ready device={device} console={console}", flush=True)

    app.run(settings.load(options.config), on_ready=ready)
    return 0


def _check(options: argparse.Namespace) -> int:
    found = settings.load(options.config)
    tls.device_context(found)
    print(f"{options.config}: good")
    return 0


def _device_import(options: argparse.Namespace) -> int:
    entries = [enrollment(one) for one in _read_list(options.file)]
    database = db.Database(options.data)
    try:
        for entry in entries:
            database.write_now(
                lambda connection, entry=entry: devices.enroll(  # type: ignore[misc]
                    connection, SystemClock(), entry, tenant=options.tenant, actor="local:import"
                )
            )
    finally:
        database.close()
    print(f"{len(entries)} devices imported")
    return 0


def _read_list(file: Path) -> list[NewDevice]:
    try:
        document = loads(file.read_bytes(), limit_bytes=_IMPORT_LIMIT_BYTES, depth=8)
        listed = document["devices"]
        return [NewDevice.model_validate(one) for one in listed]
    except OSError as error:
        raise ServerError(
            f"{file}: cannot be read ({error.strerror or error}); nothing was imported"
        ) from error
    except (StrictJsonError, ValidationError, KeyError, TypeError) as error:
        text = json.dumps(str(error).splitlines()[0])
        raise ServerError(
            f'{file}: expected {{"devices": [...]}}, found {text}; nothing was imported'
        ) from error


def _audit_verify(options: argparse.Namespace) -> int:
    database = db.Database(options.data)
    try:
        known = audit.known_next_seq(options.data)
        findings = database.read_now(lambda connection: audit.verify(connection, next_seq=known))
    finally:
        database.close()
    for finding in findings:
        print(finding.text)
    if not findings:
        print("intact")
        return 0
    return 1 if any(finding.altered for finding in findings) else 2


if __name__ == "__main__":
    sys.exit(main())
