"""What every command of the command line works with: configuration, sockets, output, exit codes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tidewaiter_core import config
from tidewaiter_core.clock import Clock, SystemClock
from tidewaiter_core.settings import Settings
from tidewaiter_core.varlink import Client

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

AGENT = "io.tidewaiter.Agent."
UPDATER = "io.tidewaiter.Updater."
TIMEOUT_S = 5.0


class Exit(IntEnum):
    """Exit codes of `tidewaiter`."""

    OK = 0
    WRONG = 1
    USAGE = 2
    NOT_ALLOWED = 3
    REFUSED = 4
    UNFINISHED = 5
    NOT_REACHABLE = 7
    CONFIG = 78


@dataclass(frozen=True)
class Context:
    """Given to each command."""

    image_file: Path
    conf_dir: Path
    out: TextIO
    ask: Callable[[str], str] = input
    """Put a question to the person at the terminal."""
    has_person: Callable[[], bool] = sys.stdin.isatty
    """Whether somebody can answer one."""
    clock: Clock = field(default_factory=SystemClock)

    @cached_property
    def settings(self) -> Settings:
        """The configuration, read when it is first needed."""
        return config.load(self.image_file, self.conf_dir)

    def say(self, text: str) -> None:
        """One or more lines of output."""
        self.out.write(text + "\n")

    def say_json(self, document: object) -> None:
        """A document for programs."""
        self.say(json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True))

    def agent(self, method: str, parameters: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call the agent."""
        with connected(self.settings.paths.agent_local_socket) as client:
            return client.call(AGENT + method, parameters)

    def updater(
        self,
        method: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        medium: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> dict[str, Any]:
        """Call the updater on its local socket, as the person who runs this program.

        Args:
            medium: An open directory that goes along as descriptor 0.
        """
        with connected(self.settings.paths.updater_local_socket) as client:
            return client.call(
                UPDATER + method,
                parameters,
                timeout_s=timeout_s,
                descriptors=() if medium is None else (medium,),
            )


Command = Callable[[Context, argparse.Namespace], int]


@contextmanager
def connected(path: Path) -> Iterator[Client]:
    """A client that is closed in the end."""
    client = Client(path, timeout_s=TIMEOUT_S)
    try:
        yield client
    finally:
        client.close()


def add(
    commands: Commands, name: str, run: Command, text: str, *, json_too: bool = False
) -> argparse.ArgumentParser:
    """One command with its function."""
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    if json_too:
        command.add_argument("--json", action="store_true", help="print the document instead of text")
    return command
