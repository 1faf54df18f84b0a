"""`tidewaiter`: the command line for people at the device. Reads the local sockets and files; opens no network connection.

Exit codes: 0 done, 1 done and something is wrong (a broken audit chain, a failed update), 2 usage, 3 not allowed, 4 refused,
5 not finished, the same command goes on with it, 7 a service does not answer, 78 configuration unusable.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

import tidewaiter_core
from tidewaiter_core import config
from tidewaiter_core.errors import ConfigError, TidewaiterError
from tidewaiter_core.varlink import NotReachable, VarlinkError

from tidewaiter_agent import cli_audit, cli_consent, cli_device, cli_update
from tidewaiter_agent.cli_context import Context, Exit


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.run(Context(arguments.config, arguments.conf_dir, sys.stdout), arguments))
    except KeyboardInterrupt:
        return Exit.OK
    except BrokenPipeError:
        # The reader (head, less) has left; without this Python complains once more at exit.
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return Exit.OK
    except ConfigError as err:
        return _fail(err, Exit.CONFIG)
    except NotReachable as err:
        return _fail(err, Exit.NOT_REACHABLE)
    except VarlinkError as err:
        denied = err.name.endswith((".NotAllowed", ".PermissionDenied"))
        return _fail(err, Exit.NOT_ALLOWED if denied else Exit.REFUSED)
    except TidewaiterError as err:
        return _fail(err, Exit.WRONG)


def _fail(err: TidewaiterError, code: Exit) -> int:
    print(f"tidewaiter: {err.code}: {err}", file=sys.stderr)
    return int(code)


def parser() -> argparse.ArgumentParser:
    """All commands; the documentation is checked against it."""
    root = argparse.ArgumentParser(
        prog="tidewaiter", description="What this device's service software does, and your consent to it."
    )
    root.add_argument(
        "--config", type=Path, default=config.DEFAULT_IMAGE_FILE, help="image configuration file"
    )
    root.add_argument(
        "--conf-dir", type=Path, default=config.DEFAULT_CONF_DIR, help="folder of the site's files"
    )
    root.add_argument("--version", action="version", version=tidewaiter_core.__version__)
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    cli_device.add_commands(commands)
    cli_update.add_commands(commands)
    cli_consent.add_commands(commands)
    cli_audit.add_commands(commands)
    return root


if __name__ == "__main__":
    sys.exit(main())
