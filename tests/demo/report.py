"""report.json for programs and report.html for people: steps, and a picture of what every process did when."""

import json
from html import escape
from pathlib import Path
from typing import Any

from tests.demo import picture
from tests.demo.timeline import Timeline


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
        f"<tr><td>{number}</td><td class='{_verdict(step.ok)}'>{_verdict(step.ok)}</td>"
        f"<td class='step'><code>{escape(step.name)}</code><br>{escape(step.title)}</td>"
        f"<td>{escape(step.detail)}</td><td class='time'>{escape(_duration(step.to_s - step.from_s))}</td></tr>"
        for number, step in enumerate(timeline.steps, start=1)
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
 .step {{ min-width: 15rem; }} .time {{ white-space: nowrap; }} .small {{ font-size: 13px; color: #566270; }}
 .legend svg {{ vertical-align: -3px; }}
 details table {{ font-size: 13px; }}
</style></head><body>
<h1>tidewaiter demo: {_verdict(ok)}</h1>
<p>{verdict} {timeline.now_s():.0f} seconds, real processes on one computer, no root.</p>
<h2>Steps</h2><table><tr><th></th><th></th><th>step</th><th>what was seen</th><th>time</th></tr>{rows}</table>
<p class="small">Time: how long the story stood at a step. The second device's rollback runs beside the other steps.</p>
<h2>Timeline</h2><div class="picture">{picture.timeline_svg(timeline)}</div>{picture.legend(timeline)}
<h2>Figures</h2><ul>{figures}</ul>
<details><summary>All {len(timeline.events)} events</summary>
<table><tr><th>s</th><th>where</th><th>what</th></tr>{events}</table></details>
</body></html>
"""


def _duration(seconds: float) -> str:
    return "< 1 s" if seconds < 1 else f"{seconds:.0f} s"


def _verdict(ok: bool) -> str:
    return "ok" if ok else "failed"
