"""tidewaiter-health and tidewaiter-commit: the two units of a trial boot, as clients of the updater's local socket.

Exit codes of both: 0 done, or this boot is no trial; 1 health said no, or the commit was refused; 2 usage; 69 the updater did not
answer within a minute; 77 this user may not; 78 the configuration is wrong.
`tidewaiter-health` must succeed before boot-complete.target, `tidewaiter-commit` runs after it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tidewaiter_core import config
from tidewaiter_core.clock import Clock, Deadline, SystemClock
from tidewaiter_core.errors import ConfigError
from tidewaiter_core.varlink import Client, NotReachable, VarlinkError

from tidewaiter_updater.service import INTERFACE

EXIT_NO = 1
EXIT_UNAVAILABLE = 69
EXIT_NOT_ALLOWED = 77
EXIT_CONFIG = 78
CONNECT_LIMIT_S = 60.0
RETRY_S = 1.0
HEALTH_LIMIT_S = 660.0 + 3600.0 + 600.0
"""The data step, the longest deadline a release may set, and the time of one last round."""
COMMIT_LIMIT_S = 120.0


def health_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of tidewaiter-health."""
    return _main("tidewaiter-health", "Run the health checks of a trial boot.", health, arguments)


def commit_main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of tidewaiter-commit."""
    return _main("tidewaiter-commit", "Commit a healthy trial boot.", commit, arguments)


def health(socket_path: Path, clock: Clock) -> int:
    """Ask for the verdict and print it, one line per check."""
    answer = call_patiently(socket_path, f"{INTERFACE}.Health", clock=clock, limit_s=HEALTH_LIMIT_S)
    if not answer["trial"]:
        print("not a trial boot, nothing to check")
        return 0
    for check in answer["checks"]:
        print(f"{check['result']:8} {check['name']:10} {check['detail']}")
    print(
        "healthy" if answer["healthy"] else "not healthy: the earlier release comes back at the next restart"
    )
    return 0 if answer["healthy"] else EXIT_NO


def commit(socket_path: Path, clock: Clock) -> int:
    """Ask for the commit."""
    answer = call_patiently(socket_path, f"{INTERFACE}.Commit", clock=clock, limit_s=COMMIT_LIMIT_S)
    print(
        f"committed {answer['status']['running']['version']}" if answer["committed"] else "not a trial boot"
    )
    return 0


def call_patiently(socket_path: Path, method: str, *, clock: Clock, limit_s: float) -> dict[str, Any]:
    """Call `method`; the updater may still be starting, or be restarted while it works, so try for a minute."""
    deadline = Deadline(clock, CONNECT_LIMIT_S)
    while True:
        began_s = clock.boottime_s()
        try:
            with Client(socket_path, timeout_s=limit_s) as client:
                return client.call(method)
        except NotReachable:
            if clock.boottime_s() - began_s > CONNECT_LIMIT_S:
                deadline = Deadline(clock, CONNECT_LIMIT_S)  # it worked for a while, then restarted
            if deadline.expired:
                raise
            clock.sleep(RETRY_S)


def _main(program: str, text: str, run: Callable[[Path, Clock], int], arguments: Sequence[str] | None) -> int:
    parser = argparse.ArgumentParser(prog=program, description=text, epilog=_exit_codes())
    parser.add_argument("--config", type=Path, default=config.DEFAULT_IMAGE_FILE)
    parser.add_argument("--conf-dir", type=Path, default=config.DEFAULT_CONF_DIR)
    options = parser.parse_args(arguments)
    try:
        settings = config.load(options.config, options.conf_dir)
        return run(settings.paths.updater_local_socket, SystemClock())
    except ConfigError as err:
        return _say(program, err, EXIT_CONFIG)
    except NotReachable as err:
        return _say(program, err, EXIT_UNAVAILABLE)
    except VarlinkError as err:
        return _say(program, err, EXIT_NOT_ALLOWED if err.name.endswith(".NotAllowed") else EXIT_NO)


def _say(program: str, err: Exception, code: int) -> int:
    print(f"{program}: {err}", file=sys.stderr)
    return code


def _exit_codes() -> str:
    return (
        "exit codes: 0 done or no trial boot; 1 not healthy or commit refused; 2 usage; "
        "69 updater not reachable; 77 not allowed; 78 wrong configuration"
    )
