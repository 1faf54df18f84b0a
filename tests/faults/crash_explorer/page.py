"""out/faults/report.html: for each story, what was cut where and what the device did. For people who do not read the code."""

from __future__ import annotations

import math
from collections import Counter
from html import escape
from itertools import groupby

from tests.faults.crash_explorer.campaign import Result
from tests.faults.crash_explorer.explorer import Figures, Operation
from tests.faults.crash_explorer.outcome import Outcome
from tests.faults.crash_explorer.scenarios import SCENARIOS, Scenario

COLOURS = {
    Outcome.OFFERED_AGAIN: "#9aa7b5",
    Outcome.BEGINS: "#c7b8e0",
    Outcome.RESUMES: "#7fb0dd",
    Outcome.PROVES: "#3c78b4",
    Outcome.TRIES: "#e0b13c",
    Outcome.KEEPS: "#3c9a5f",
    Outcome.RETURNS: "#c98247",
    Outcome.ENDED: "#6b7783",
    Outcome.STOPS: "#8a5aa8",
    Outcome.WRONG: "#d11414",
}
STEP_PX = 9
HEIGHT_PX = 110
ROW_PX = 16
PHASES_Y = HEIGHT_PX + ROW_PX + 4
LABEL_ROWS = 3
LETTER_PX = 5.3
PHASE_WORDS = {
    "": "switched off / starting",
    "IDLE": "no update in hand",
    "WAIT_CONSENT": "waits for consent",
    "PREPARE": "prepares",
    "TRANSFER": "writes the other slot",
    "VERIFY": "reads it back",
    "STAGED": "ready",
    "WAIT_WINDOW": "waits for the injector",
    "ARMED": "arms the trial",
    "TRIAL": "first start",
    "HEALTH": "checks itself",
    "COMMITTED": "makes it permanent",
    "ROLLED_BACK": "returned",
    "FAILED": "gave up",
}

STYLE = """
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1140px; padding: 0 1rem; color: #1d2733; }
 h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
 table { border-collapse: collapse; width: 100%; font-size: 14px; }
 td, th { text-align: left; vertical-align: top; padding: .3rem .6rem; }
 tr + tr td { border-top: 1px solid #e3e8ee; } td.n, th.n { text-align: right; white-space: nowrap; }
 .ok { color: #22713d; font-weight: 600; } .failed { color: #b02323; font-weight: 600; }
 .picture { overflow-x: auto; border: 1px solid #e3e8ee; border-radius: 6px; padding: 4px; }
 .legend i { display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: .35rem; vertical-align: -1px; }
 .legend li { list-style: none; margin: .15rem 0; } .small { font-size: 13px; color: #566270; }
 text { font: 10px system-ui, sans-serif; fill: #566270; }
"""


def render(result: Result) -> str:
    """The whole page."""
    found = sum(how is not None for how in result.mutations.values())
    is_good = result.violations == 0 and found == len(result.mutations)
    word = "ok" if is_good else "failed"
    known = {scenario.name: scenario for scenario in SCENARIOS}
    stories = "".join(_story(known[name], figures) for name, figures in result.scenarios.items())
    legend = "".join(
        f'<li><i style="background:{colour}"></i>{escape(outcome)}</li>'
        for outcome, colour in COLOURS.items()
    )
    mistakes = "".join(_mistake(name, how) for name, how in result.mutations.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>tidewaiter: power cuts during updates</title><style>{STYLE}</style></head><body>
<h1>Power cuts during updates: <span class="{word}">{word}</span></h1>
<p>A software update changes storage in many small steps. This test replays updates of one simulated device, switches the power
off after <b>every single step</b>, and then switches it on again. A cut leaves storage in one of several states, because a write
that was under way may have arrived, not arrived, or arrived in part; each of those states is tried, and the recovery is cut a
second time. The updater, the boot record and the file formats are the product's own; storage, injector and boot loader are
simulated.</p>
<ul>
<li><b>{result.images}</b> different states of storage after a cut were switched on.</li>
<li><b class="{"ok" if result.violations == 0 else "failed"}">{result.violations}</b> of them broke a rule.</li>
<li><b>{found} of {len(result.mutations)}</b> mistakes that were built in on purpose were noticed.</li>
<li>{result.seconds:.0f} seconds on {result.processes} processors.</li>
</ul>
<p>The rules: the device always starts; it starts only software that is completely written and signed; a release that was made
permanent stays, one that failed never stays; a healthy release is not given up before its tries are spent; protection against old
releases never sinks; work that was interrupted goes on; losing the notes of the updater costs time and nothing else.</p>
<h2>How to read the pictures</h2>
<p>Each column is one step of the story, from left to right; the line below says what the updater was doing. The more states
a cut right there can leave for the first time, the higher the column (height is the square root of the number); its colours say
what the device did when it was switched on again. The small grey bars below the line are states of the second cut, in the
recovery. Point at a column to read its numbers.</p>
<ul class="legend">{legend}</ul>
<h2>Stories</h2>{stories}
<h2>Mistakes built in on purpose</h2>
<table><tr><th>mistake</th><th></th><th>how it showed</th></tr>{mistakes}</table>
<p class="small">Made by <code>make faults</code>. Not shown here: real boot loaders, real eMMC, ARM; see docs/status.md.</p>
</body></html>
"""


def _mistake(name: str, how: str | None) -> str:
    word = "ok" if how else "failed"
    shown = escape(how[:300]) if how else "not noticed"
    verdict = "noticed" if how else "NOT NOTICED"
    return f'<tr><td>{escape(name)}</td><td class="{word}">{verdict}</td><td class="small">{shown}</td></tr>'


def _story(scenario: Scenario, figures: Figures) -> str:
    outcomes: Counter[Outcome] = sum((one.outcomes for one in figures.operations), Counter())
    parts = ", ".join(f"{count} {escape(outcome)}" for outcome, count in outcomes.most_common())
    bad = "".join(
        f'<p class="failed">cut after {escape(" and ".join(one.cuts))}: {escape(one.text)}</p>'
        for one in figures.findings
    )
    return (
        f"<h3>{escape(scenario.name)}</h3><p>{escape(scenario.tells)} Wherever the power fails, it ends so: the device "
        f"<b>{escape(scenario.end.value)}</b>.</p>{bad}"
        f'<div class="picture">{_picture(figures.operations)}</div>'
        f'<p class="small">{figures.points} steps, {figures.first_cuts} states after the first cut, {figures.second_cuts} after '
        f"a second one, {figures.violations} violations. After the first cut: {parts}.</p>"
    )


def _picture(operations: list[Operation]) -> str:
    highest = max((one.outcomes.total() for one in operations), default=0) or 1
    deepest = max((one.second_cuts for one in operations), default=0) or 1
    bars = "".join(_column(number, one, highest, deepest) for number, one in enumerate(operations))
    phases = "".join(_phases(operations))
    width = STEP_PX * max(len(operations), 1) + 120  # room for the last label
    size = f'width="{width}" height="{PHASES_Y + 6 + 12 * (LABEL_ROWS + 1)}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">{bars}{phases}</svg>'


def _column(number: int, operation: Operation, highest: int, deepest: int) -> str:
    x, y = 4 + STEP_PX * number, float(HEIGHT_PX)
    total = operation.outcomes.total()
    # Square roots: a step that leaves one state must be seen beside one that leaves a hundred.
    whole = math.sqrt(total / highest) * (HEIGHT_PX - 14)
    words = [f"step {number + 1}: {operation.label}", f"{operation.second_cuts} states of a second cut"]
    parts = []
    for outcome in Outcome:
        count = operation.outcomes[outcome]
        if count:
            height = max(1.5, count / total * whole)
            y -= height
            parts.append(
                f'<rect x="{x}" y="{y:.1f}" width="{STEP_PX - 2}" height="{height:.1f}" fill="{COLOURS[outcome]}"/>'
            )
            words.insert(1, f"{count}: {outcome}")
    depth = math.sqrt(operation.second_cuts / deepest) * (ROW_PX - 3)
    parts.append(
        f'<rect x="{x}" y="{HEIGHT_PX + 3}" width="{STEP_PX - 2}" height="{depth:.1f}" fill="#c3ccd6"/>'
        f'<rect x="{x}" y="0" width="{STEP_PX}" height="{HEIGHT_PX + ROW_PX}" fill="transparent"/>'
    )
    return f"<g><title>{escape(chr(10).join(words))}</title>{''.join(parts)}</g>"


def _phases(operations: list[Operation]) -> list[str]:
    """What the updater was doing, below the columns; a label goes to the first row where it has room."""
    lines, number = [], 0
    free_from_px = [0.0] * LABEL_ROWS
    for at, (phase, group) in enumerate(groupby(operations, key=lambda one: one.phase)):
        count = len(list(group))
        x, width = 4 + STEP_PX * number, STEP_PX * count - 2
        shade = 0.75 if at % 2 else 0.35
        lines.append(
            f'<rect x="{x}" y="{PHASES_Y}" width="{width}" height="3" fill="#1d2733" opacity="{shade}"/>'
        )
        word = PHASE_WORDS.get(phase, phase)
        row = next((row for row, free_px in enumerate(free_from_px) if free_px <= x), None)
        if row is not None:
            free_from_px[row] = x + len(word) * LETTER_PX + 6
            y = PHASES_Y + 13 + 12 * row
            lines.append(f'<path d="M{x + 0.5} {PHASES_Y + 3}V{y}" stroke="#c3ccd6"/>')
            lines.append(f'<text x="{x + 2}" y="{y}">{escape(word)}</text>')
        number += count
    return lines
