"""`tidewaiter update status [--watch]`: the updater's status, once or as a progress bar that lives until the update ends.

The commands that change something are in `cli_install`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from tidewaiter_core.clock import SystemClock
from tidewaiter_core.varlink import NotReachable

from tidewaiter_agent import cli_install
from tidewaiter_agent.cli_context import UPDATER, Context, Exit, add, connected
from tidewaiter_agent.cli_progress import ProgressPrinter
from tidewaiter_agent.cli_show import update_text
from tidewaiter_agent.update_rules import RESTING

if TYPE_CHECKING:
    from tidewaiter_agent.cli_context import Commands

WATCH_TIMEOUT_S = 30.0
RECONNECT_S = 1.0
RECONNECT_LIMIT = 300


def add_commands(commands: Commands) -> None:
    """Register the commands of this module."""
    update = commands.add_parser("update", help="software updates", description="Software updates.")
    below = update.add_subparsers(metavar="ACTION", required=True)
    status = add(below, "status", _status, "show what the updater does", json_too=True)
    status.add_argument(
        "--watch", action="store_true", help="stay and show the progress until the update ends"
    )
    cli_install.add_commands(below)


def _status(context: Context, arguments: argparse.Namespace) -> int:
    if arguments.watch:
        return Watch(context, as_json=arguments.json).run()
    status = context.updater("GetStatus")["status"]
    if arguments.json:
        context.say_json(status)
    else:
        context.say(update_text(status))
    return Exit.OK


class Watch:
    """Follows the updater, also over its restart: a reboot of the device interrupts the picture, not the story."""

    def __init__(self, context: Context, *, as_json: bool) -> None:
        self._context = context
        self._as_json = as_json
        self._printer = ProgressPrinter(context.out)
        self._active = False

    def run(self) -> int:
        """0 when the update was committed or nothing was going on, 1 when it ended badly."""
        clock = SystemClock()
        attempts = 0
        while True:
            try:
                with connected(self._context.settings.paths.updater_local_socket) as client:
                    for reply in client.more(UPDATER + "Watch", timeout_s=WATCH_TIMEOUT_S):
                        attempts = 0
                        code = self._show(reply["status"])
                        if code is not None:
                            self._printer.end()
                            return code
            except NotReachable:
                attempts += 1
                if not self._active or attempts > RECONNECT_LIMIT:
                    self._printer.end()
                    raise
            clock.sleep(RECONNECT_S)

    def _show(self, status: dict[str, Any]) -> int | None:
        """Print what is new; the exit code when the update has ended."""
        resting = status["phase"] in RESTING
        self._print(status)
        if not resting:
            self._active = True
            return None
        if not self._active:
            return Exit.OK
        last = status.get("last") or {}
        # After a reboot the updater rests in IDLE and the last outcome tells how it went.
        failed = status["phase"] in ("FAILED", "ROLLED_BACK") or (
            status["phase"] == "IDLE" and last.get("code", "") not in ("", "update.committed")
        )
        return Exit.WRONG if failed else Exit.OK

    def _print(self, status: dict[str, Any]) -> None:
        if self._as_json:
            self._context.say_json(status)
        else:
            self._printer.show(status)
