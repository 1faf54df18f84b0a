"""`tidewaiter status | poll | inventory | endpoints | config`: the device at a glance, and what its software is set to."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import tidewaiter_core
from tidewaiter_core import config
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import TidewaiterError

from tidewaiter_agent import identity, inventory
from tidewaiter_agent.cli_context import Context, Exit, add, connected
from tidewaiter_agent.cli_show import status_text, table
from tidewaiter_agent.proxy import parse_routes
from tidewaiter_agent.readings import Devices, Machine

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tidewaiter_agent.cli_context import Commands

PURPOSE = "polling, reports, telemetry, audit, update repository"


def add_commands(commands: Commands) -> None:
    """Register the commands of this module."""
    add(commands, "status", _status, "the device at a glance", json_too=True)
    add(commands, "poll", _poll, "ask the server now")
    add(commands, "inventory", _inventory, "what this device tells the server about itself", json_too=True)
    add(commands, "endpoints", _endpoints, "every name and port this device connects to", json_too=True)
    settings = commands.add_parser("config", help="the configuration", description="The configuration.")
    below = settings.add_subparsers(metavar="ACTION", required=True)
    add(below, "explain", _explain, "every key with value, source and scope", json_too=True)
    add(
        below,
        "check",
        _check,
        "read the files as the daemons would; exit code 78 if they would refuse to start",
    )


def _status(context: Context, arguments: argparse.Namespace) -> int:
    agent = context.agent("Status")["status"]
    update = _or_reason(lambda: context.updater("GetStatus")["status"])
    injector = _or_reason(lambda: _snapshot(context))
    if arguments.json:
        context.say_json({"agent": agent, "update": update, "injector": injector})
    else:
        context.say(status_text(agent, update, injector))
    return Exit.OK


def _snapshot(context: Context) -> Mapping[str, Any]:
    with connected(context.settings.paths.hal_monitor_socket) as client:
        snapshot: Mapping[str, Any] = client.call("io.tidewaiter.Injector.GetSnapshot")["snapshot"]
        return snapshot


def _or_reason(ask: Any) -> Any:
    """A neighbor that does not answer, or may not be asked by this user, is shown as such; the rest is still worth seeing."""
    try:
        return ask()
    except TidewaiterError as err:
        return f"not available ({err.code})"


def _poll(context: Context, arguments: argparse.Namespace) -> int:
    context.agent("PollNow")
    context.say("the agent asks the server now; see `tidewaiter status`")
    return Exit.OK


def _inventory(context: Context, arguments: argparse.Namespace) -> int:
    settings = context.settings
    serial, _ = identity.device_serial(settings.device.provisioned_file)
    devices = Devices(
        hal_socket=settings.paths.hal_monitor_socket, updater_socket=settings.paths.updater_local_socket
    )
    machine = Machine(settings.paths.state_dir, boottime_s=SystemClock().boottime_s)
    private = inventory.private_facts(settings, machine)
    data = inventory.config_data(
        settings,
        serial=serial,
        agent_version=tidewaiter_core.__version__,
        updater=devices.updater_status(),
        injector=devices.injector_identity(),
        health=machine.health(),
        private=private,
    )
    if arguments.json:
        context.say_json(data)
    else:
        context.say(table(list(data.items())))
    return Exit.OK


def _endpoints(context: Context, arguments: argparse.Namespace) -> int:
    server = context.settings.server
    parts = urlsplit(server.url)
    routes = parse_routes(context.settings.network.proxy_route)
    endpoint = {
        "fqdn": parts.hostname or "",
        "port": parts.port or 443,
        "purpose": PURPOSE,
        "ca_spki_sha256": identity.spki_sha256(server.ca_file),
        "via_proxy": [str(route) for route in routes if route.kind != "DIRECT"],
    }
    if arguments.json:
        context.say_json([endpoint])
        return Exit.OK
    rows = [
        ("name", f"{endpoint['fqdn']}, TCP port {endpoint['port']}, outgoing only"),
        ("purpose", PURPOSE),
        ("route", ", then ".join(str(route) for route in routes)),
    ]
    rows += [("CA key (SHA-256)", digest) for digest in identity.spki_sha256(server.ca_file)]
    context.say(table(rows))
    return Exit.OK


def _explain(context: Context, arguments: argparse.Namespace) -> int:
    rows = config.explain(context.image_file, context.conf_dir)
    if arguments.json:
        context.say_json(
            [
                {"key": r.key, "value": r.value, "source": r.source, "scope": r.scope.value, "doc": r.doc}
                for r in rows
            ]
        )
        return Exit.OK
    for row in rows:
        context.say(f"{row.key} = {row.value}\n    {row.doc} [{row.scope.value}; from {row.source}]")
    return Exit.OK


def _check(context: Context, arguments: argparse.Namespace) -> int:
    settings = context.settings
    parse_routes(settings.network.proxy_route)
    context.say(f"{context.image_file} and {context.conf_dir}: usable")
    return Exit.OK
