"""Reference pages that are made from the programs, so that they cannot drift: `make docs` writes them, `--check` compares.

docs/reference/configuration.md from the declared keys, errors.md from the error classes, commands.md from `--help`.
"""

import argparse
import dataclasses
import difflib
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.keys import MISSING, describe
from tidewaiter_core.settings import Settings
from tidewaiter_core.values import show

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs/reference"
PACKAGES = (
    "tidewaiter_core",
    "tidewaiter_hal",
    "tidewaiter_updater",
    "tidewaiter_agent",
    "tidewaiter_server",
    "tidewaiter_release",
    "tidewaiter_factory",
    "tidewaiter_connect",
)
_MADE = "<!-- made by `make docs` from the programs; do not edit -->\n\n"


def configuration() -> str:
    """Every key with type, default, bounds, scope and text."""
    lines = [
        "# Configuration keys\n",
        "`/usr/lib/tidewaiter/tidewaiter.toml` (part of the signed image), then `/etc/tidewaiter/conf.d/*.toml`",
        "in lexical order. Scope *image*: only the image may set it. Scope *site*: the hospital may, too.",
        "`tidewaiter config explain` shows the values of a device and where each one comes from. An unknown key,",
        "a wrong type or a value out of bounds stops the process.\n",
    ]
    for section, cls in get_type_hints(Settings).items():
        lines += [f"\n## [{section}]\n", f"{(cls.__doc__ or '').strip()}\n"]
        lines += ["| key | default | bounds | scope | meaning |", "|---|---|---|---|---|"]
        for declared in dataclasses.fields(cls):
            key = describe(declared)
            default = "**required**" if key.default is MISSING else f"`{_cell(show(key.default))}`"
            lines.append(
                f"| `{declared.name}` | {default} | {_bounds(key)} | {key.scope} | {_cell(key.doc)} |"
            )
    return "\n".join(lines) + "\n"


def _bounds(key: Any) -> str:
    if key.low is not None or key.high is not None:
        return f"{key.low} .. {key.high}"
    if key.only_restricts:
        return "a site can only switch it off"
    return _cell(key.expect)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def errors() -> str:
    """Every error class with its stable code, and the advice for codes that reach a person."""
    advice = importlib.import_module("tidewaiter_updater.advice")
    what_to_do: dict[str, str] = dict(getattr(advice, "WHAT_TO_DO", {}))
    rows: dict[str, tuple[str, str]] = {}
    for cls in _error_classes():
        first = (cls.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        rows.setdefault(cls.code, ("yes" if cls.retryable else "no", " ".join(first.split())))
    lines = [
        "# Error codes\n",
        "Codes are stable: logs, reports, audit records and the server carry them. *Retry*: whether trying again can help.\n",
        "| code | retry | meaning |",
        "|---|---|---|",
    ]
    lines += [f"| `{code}` | {retry} | {_cell(text)} |" for code, (retry, text) in sorted(rows.items())]
    if what_to_do:
        lines += [
            "\n## What to do\n",
            "Shown with an update's status.\n",
            "| code | what to do |",
            "|---|---|",
        ]
        lines += [f"| `{code}` | {_cell(text)} |" for code, text in sorted(what_to_do.items())]
    return "\n".join(lines) + "\n"


def _error_classes() -> Iterator[type[TidewaiterError]]:
    for package in PACKAGES:
        base = importlib.import_module(package)
        for info in pkgutil.walk_packages(base.__path__, f"{package}."):
            if not info.name.endswith("__main__"):
                importlib.import_module(info.name)
    pending: list[type[TidewaiterError]] = [TidewaiterError]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        if cls.__module__.split(".")[0] in PACKAGES:
            yield cls


def commands() -> str:
    """`--help` of every program and of each of its subcommands."""
    lines = ["# Commands\n", "Each program's own `--help`.\n"]
    for program in programs():
        for name, text in helps(program):
            lines += [f"\n{'##' if ' ' not in name else '###'} {name}\n", "```text", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def programs() -> list[str]:
    """Names of the installed programs, from pyproject.toml."""
    import tomllib

    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return sorted(document["project"]["scripts"])


def helps(program: str, *words: str) -> Iterator[tuple[str, str]]:
    """(name, help text) of a program and, recursively, of its subcommands."""
    text = help_text(program, *words)
    yield " ".join([program, *words]), text
    for word in subcommands(text):
        yield from helps(program, *words, word)


def subcommands(text: str) -> list[str]:
    """Names of the subcommands in an argparse help text: lines indented by four below the positional arguments."""
    found = re.search(r"^positional arguments:\n(?:  .*\n)+", text, re.MULTILINE)
    return re.findall(r"^    ([a-z][a-z0-9-]*)(?= |$)", found[0], re.MULTILINE) if found else []


def help_text(program: str, *words: str) -> str:
    """What `program words --help` prints.

    Raises:
        RuntimeError: It does not end with 0.
    """
    command = [str(Path(sys.executable).parent / program), *words, "--help"]
    if not Path(command[0]).exists():
        raise RuntimeError(
            f"{program} is newer than this environment; run: rm .venv/.ready && tools/venv.sh .venv"
        )
    environment = {**os.environ, "COLUMNS": "110", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join([program, *words])} --help: exit {done.returncode}: {done.stderr}")
    return done.stdout


def main() -> int:
    """Write the pages, or compare them with `--check` (exit 1 when one is out of date)."""
    parser = argparse.ArgumentParser(prog="tools.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    PAGES.mkdir(parents=True, exist_ok=True)
    stale = False
    for name, page in (("configuration", configuration()), ("errors", errors()), ("commands", commands())):
        path, text = PAGES / f"{name}.md", _MADE + page
        if not check:
            path.write_text(text)
            print(f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines")
            continue
        present = path.read_text() if path.exists() else ""
        if present != text:
            stale = True
            print(f"{path.relative_to(ROOT)} is out of date; run `make docs`", file=sys.stderr)
            difference = difflib.unified_diff(present.splitlines(), text.splitlines(), lineterm="", n=0)
            print("\n".join(list(difference)[:20]), file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
