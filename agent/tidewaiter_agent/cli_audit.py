"""`tidewaiter audit show|verify`: the audit chains, readable without any credential of the vendor."""

from __future__ import annotations

import argparse
import json
from collections import deque
from typing import TYPE_CHECKING

from tidewaiter_core.audit import read_records, verify
from tidewaiter_core.redaction import escape

from tidewaiter_agent.cli_context import Context, Exit, add

if TYPE_CHECKING:
    from tidewaiter_agent.cli_context import Commands

COMPONENTS = ("agent", "hal", "updater")


def add_commands(commands: Commands) -> None:
    """Register the commands of this module."""
    audit = commands.add_parser("audit", help="the audit log", description="The audit log.")
    below = audit.add_subparsers(metavar="ACTION", required=True)
    show = add(below, "show", _show, "print records", json_too=True)
    show.add_argument("--component", choices=COMPONENTS, default="agent")
    show.add_argument(
        "--last", type=int, default=20, metavar="N", help="the newest N records, 0 for all (default 20)"
    )
    check = add(below, "verify", _verify, "check the chains; exit code 1 if one is not intact", json_too=True)
    check.add_argument("--component", choices=COMPONENTS, default=None, help="one chain only")


def _show(context: Context, arguments: argparse.Namespace) -> int:
    directory = context.settings.paths.audit_dir / arguments.component
    records = read_records(directory)
    for line in deque(records, arguments.last) if arguments.last > 0 else records:
        if arguments.json:
            context.say(line.decode("utf-8", "replace"))
            continue
        record = json.loads(line)
        fields = " ".join(f"{name}={value}" for name, value in record["fields"].items())
        actor = f"{record['actor']['kind']}:{record['actor']['id']}"
        context.say(
            escape(
                f"{record['seq']:>7}  {record['utc']}  {record['kind']:<22} {record['outcome']:<7} {actor}  {fields}"
            )
        )
    return Exit.OK


def _verify(context: Context, arguments: argparse.Namespace) -> int:
    intact = True
    for component in COMPONENTS if arguments.component is None else (arguments.component,):
        directory = context.settings.paths.audit_dir / component
        if arguments.component is None and not directory.is_dir():
            continue
        report = verify(directory)
        intact &= report.intact
        findings = [str(finding) for finding in report.findings]
        if arguments.json:
            context.say_json(
                {
                    "component": component,
                    "intact": report.intact,
                    "records": report.records,
                    "findings": findings,
                }
            )
            continue
        context.say(f"{component}: {'intact' if report.intact else 'NOT INTACT'}, {report.records} records")
        for finding in findings:
            context.say(escape(f"  {finding}"))
    return Exit.OK if intact else Exit.WRONG
