"""Results as text: the summary in the terminal, and docs/benchmarks.md made from out/bench/*.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.bench.result import Budget, Result, Verdict

_ORDER: Final = (
    "install-disk", "install-slow-disk", "install-memory", "read-back", "read-back-slow-disk", "resume",
    "memory", "patch-speed", "patch-bytes",
)  # fmt: skip
_DOCS_TITLE: Final = "# Benchmarks\n\n"
_DOCS_START: Final = (
    "<!-- Made by `make bench ARGS=--docs` from out/bench/*.json, down to the end mark: do not edit. -->\n"
)
_DOCS_END: Final = "<!-- End of what is made. -->\n"
_DOCS_HEAD: Final = """
Each comparison runs its competitors in alternation on the same slot and takes ratios within a round, because the machine's speed
drifts; `x` is the median of the rounds' ratios. Bounds are those of the update engine's design; "not binding" says why one does
not apply to this machine. Absolute speeds belong to this machine.

"""


def summary(results: Sequence[Result]) -> str:
    """What a person wants to see at the end."""
    lines = [""]
    for result in results:
        lines.append(result.title)
        lines += [
            f"  {budget.verdict.value:11} {budget.what}: {budget.as_text()}" for budget in result.budgets
        ]
        lines += [f"  {'':11} {budget.not_binding}" for budget in result.budgets if budget.not_binding]
        if result.stage_shares:
            lines.append(f"  {'stages':11} {shares_text(result.stage_shares)}")
        lines += [f"  {'skipped':11} {what}" for what in result.skipped]
    missed = sum(budget.verdict is Verdict.MISSED for result in results for budget in result.budgets)
    held = sum(budget.verdict is Verdict.HELD for result in results for budget in result.budgets)
    lines.append(f"{held} bounds held, {missed} missed")
    return "\n".join(lines)


def shares_text(shares: dict[str, float]) -> str:
    """The share of each kind of work."""
    return ", ".join(f"{work} {share:.0%}" for work, share in shares.items())


def write_docs(target: Path, folder: Path) -> None:
    """Make the figures of the page anew from all results in `folder`, also those of earlier runs; what people wrote stays."""
    text = target.read_text() if target.is_file() else ""
    before, start, rest = text.partition(_DOCS_START)
    _, end, after = rest.partition(_DOCS_END)
    if not (start and end):
        before, after = _DOCS_TITLE, ""
    made = _DOCS_HEAD + "\n".join(_lines(folder)).rstrip() + "\n\n"
    target.write_text(before + _DOCS_START + made + _DOCS_END + after)


def _lines(folder: Path) -> Iterator[str]:
    machine_file = folder / "machine.json"
    if machine_file.is_file():
        yield from _machine(json.loads(machine_file.read_text()))
    for name in _ORDER:
        file = folder / f"{name}.json"
        if file.is_file():
            yield from _section(json.loads(file.read_text()))


def _machine(machine: dict[str, Any]) -> Iterator[str]:
    yield "| machine | |"
    yield "|---|---|"
    for name, value in machine.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else value
        yield f"| {name.replace('_', ' ')} | {text} |"
    yield ""


def _section(result: dict[str, Any]) -> Iterator[str]:
    yield f"## {result['title']}"
    yield ""
    if result["budgets"]:
        yield "| what | figure (bound) | verdict |"
        yield "|---|---|---|"
        for fields in result["budgets"]:
            verdict = fields.pop("verdict")
            budget = Budget(**fields)
            reason = f": {budget.not_binding}" if budget.not_binding else ""
            yield f"| {budget.what} | {budget.as_text()} | {verdict}{reason} |"
        yield ""
    if result["bars"]:
        unit = result["bars_unit"]
        yield "; ".join(f"{name} {value:g} {unit}" for name, value in result["bars"].items()) + "."
        yield ""
    if result["stage_shares"]:
        yield f"Share of each kind of work in the time of all threads: {shares_text(result['stage_shares'])}."
        yield ""
    for text in (*result["notes"], *(f"Skipped: {what}" for what in result["skipped"])):
        yield text
        yield ""
    if result["peers"]:
        yield (
            "Compared with "
            + "; ".join(f"{name}: {version}" for name, version in result["peers"].items())
            + "."
        )
        yield ""
    yield "```"
    yield from result["commands"]
    yield "```"
    yield ""
