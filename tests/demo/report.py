"""report.json for programs and report.html for people: steps, and a picture of what every process did when."""

import json
from html import escape
from pathlib import Path
from typing import Any

from tests.demo.timeline import Timeline

_PHASE_COLORS = {
    "IDLE": "#d7dee6",
    "OFFERED": "#b7c9e2",
    "WAIT_CONSENT": "#f0d58c",
    "PREPARE": "#9db9e8",
    "TRANSFER": "#4f83d1",
    "VERIFY": "#3c65a8",
    "STAGED": "#8a7fd0",
    "WAIT_WINDOW": "#f0b14a",
    "ARMED": "#d9822b",
    "TRIAL": "#3fa7a0",
    "RECONCILE_FW": "#3fa7a0",
    "HEALTH": "#3fa7a0",
    "COMMITTED": "#4caf6d",
    "ROLLED_BACK": "#c94f4f",
    "FAILED": "#c94f4f",
    "DEGRADED": "#7a1f1f",
}
_MARK_COLORS = {"boot": "#2b5d8a", "cut": "#c22f2f", "good": "#2e8b4f", "bad": "#c22f2f", "note": "#6b7683"}
_WIDTH, _LEFT, _LANE = 1100, 130, 54


def write(timeline: Timeline, out: Path, *, facts: dict[str, Any]) -> bool:
    """Write both reports to `out`; returns whether every step is ok."""
    out.mkdir(parents=True, exist_ok=True)
    ok = bool(timeline.steps) and all(step.ok for step in timeline.steps)
    document = {
        "ok": ok,
        "seconds": round(timeline.now_s(), 1),
        "steps": [
            {
                "name": step.name,
                "ok": step.ok,
                "detail": step.detail,
                "from_s": round(step.from_s, 1),
                "to_s": round(step.to_s, 1),
            }
            for step in timeline.steps
        ],
        "facts": facts,
    }
    (out / "report.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    (out / "report.html").write_text(_page(timeline, ok, facts))
    return ok


def _page(timeline: Timeline, ok: bool, facts: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td class='{'ok' if step.ok else 'failed'}'>{'ok' if step.ok else 'failed'}</td><td><code>{escape(step.name)}</code>"
        f"<br>{escape(step.title)}</td><td>{escape(step.detail)}</td><td>{step.to_s - step.from_s:.0f} s</td></tr>"
        for step in timeline.steps
    )
    events = "".join(
        f"<tr><td>{event.at_s:.1f}</td><td>{escape(event.lane)}</td><td>{escape(event.text)}</td></tr>"
        for event in timeline.events
    )
    figures = "".join(
        f"<li>{escape(str(name))}: <b>{escape(str(value))}</b></li>" for name, value in facts.items()
    )
    verdict = "Every step ended as it should." if ok else "A step failed: see the table."
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>tidewaiter demo</title>
<style>
 body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1140px; padding: 0 1rem; color: #1d2733; }}
 h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
 table {{ border-collapse: collapse; width: 100%; }} td, th {{ text-align: left; vertical-align: top; padding: .35rem .6rem; }}
 tr + tr td {{ border-top: 1px solid #e3e8ee; }}
 .ok {{ color: #22713d; font-weight: 600; }} .failed {{ color: #b02323; font-weight: 600; }}
 .picture {{ overflow-x: auto; border: 1px solid #e3e8ee; border-radius: 6px; }}
 .legend span {{ display: inline-block; margin: .2rem .9rem .2rem 0; font-size: 13px; }}
 .legend i {{ display: inline-block; width: 12px; height: 12px; border-radius: 2px; margin-right: .35rem; vertical-align: -1px; }}
 details table {{ font-size: 13px; }}
</style></head><body>
<h1>tidewaiter demo: {"ok" if ok else "failed"}</h1>
<p>{verdict} {timeline.now_s():.0f} seconds, real processes on one computer, no root.</p>
<h2>Steps</h2><table><tr><th></th><th>step</th><th>what was seen</th><th>time</th></tr>{rows}</table>
<h2>Timeline</h2><div class="picture">{_picture(timeline)}</div>{_legend(timeline)}
<h2>Figures</h2><ul>{figures}</ul>
<details><summary>All {len(timeline.events)} events</summary>
<table><tr><th>s</th><th>where</th><th>what</th></tr>{events}</table></details>
</body></html>
"""


def _picture(timeline: Timeline) -> str:
    lanes = ["story", "server"] + sorted({bar.lane for bar in timeline.bars})
    span = max(timeline.now_s(), 1.0)

    def x(at_s: float) -> float:
        return _LEFT + at_s / span * (_WIDTH - _LEFT - 20)

    parts: list[str] = []
    height = 40 + _LANE * len(lanes)
    for second in range(0, int(span) + 1, 10):
        parts.append(
            f'<line x1="{x(second):.1f}" y1="22" x2="{x(second):.1f}" y2="{height}" stroke="#eef1f5"/>'
        )
        parts.append(
            f'<text x="{x(second):.1f}" y="15" font-size="11" fill="#6b7683" text-anchor="middle">{second} s</text>'
        )
    for number, lane in enumerate(lanes):
        top = 30 + number * _LANE
        parts.append(f'<text x="8" y="{top + 22}" font-size="12" fill="#1d2733">{escape(lane)}</text>')
        parts.append(
            f'<line x1="{_LEFT}" y1="{top + _LANE - 6}" x2="{_WIDTH}" y2="{top + _LANE - 6}" stroke="#e3e8ee"/>'
        )
        for bar in timeline.bars:
            if bar.lane == lane:
                end = bar.to_s if bar.to_s is not None else span
                width = max(1.5, x(end) - x(bar.from_s))
                title = f"{bar.label}: {bar.from_s:.1f} to {end:.1f} s"
                color = _PHASE_COLORS.get(bar.label, "#9aa5b1")
                parts.append(
                    f'<rect x="{x(bar.from_s):.1f}" y="{top + 6}" width="{width:.1f}" height="24" rx="2" fill="{color}">'
                    f"<title>{escape(title)}</title></rect>"
                )
        if lane == "story":
            for step in timeline.steps:
                color = "#2e8b4f" if step.ok else "#c22f2f"
                parts.append(
                    f'<rect x="{x(step.from_s):.1f}" y="{top + 6}" width="{max(2, x(step.to_s) - x(step.from_s)):.1f}" height="24" rx="3"'
                    f' fill="none" stroke="{color}" stroke-width="1.5"><title>{escape(step.title)}</title></rect>'
                    f'<text x="{x(step.from_s) + 4:.1f}" y="{top + 22}" font-size="11" fill="{color}">{escape(step.name)}</text>'
                )
        for event in timeline.events:
            if event.lane == lane and lane != "story":
                color = _MARK_COLORS.get(event.kind, "#6b7683")
                parts.append(
                    f'<circle cx="{x(event.at_s):.1f}" cy="{top + 38}" r="4" fill="{color}">'
                    f"<title>{event.at_s:.1f} s: {escape(event.text)}</title></circle>"
                )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="What each device did when" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def _legend(timeline: Timeline) -> str:
    used = [label for label in _PHASE_COLORS if any(bar.label == label for bar in timeline.bars)]
    phases = "".join(
        f'<span><i style="background:{_PHASE_COLORS[label]}"></i>{label}</span>' for label in used
    )
    marks = "".join(
        f'<span><i style="background:{_MARK_COLORS[kind]};border-radius:50%"></i>{text}</span>'
        for kind, text in (
            ("boot", "boot"),
            ("cut", "power cut, kill or attack"),
            ("good", "as expected"),
            ("note", "event"),
        )
    )
    return f'<p class="legend">{phases}{marks}</p>'
