"""out/bench/report.html: one page without any script, bars as inline SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

from tests.bench.result import Result, Verdict
from tests.bench.table import shares_text

_STYLE: Final = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1d2733}
h2{margin-top:2.5rem;border-bottom:1px solid #d7dee6} table{border-collapse:collapse;margin:.5rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #e6ebf0;text-align:left} code{background:#f2f5f8;padding:0 .3rem}
.held{color:#1d6f3f;font-weight:600}.missed{color:#b3261e;font-weight:600}.none{color:#5b6672}
pre{background:#f2f5f8;padding:.6rem;overflow:auto}
"""
_WORK_COLORS: Final = {
    "fetch": "#9db9e8", "hash": "#4f83d1", "decode": "#8a7fd0", "write": "#d9822b", "sync": "#f0b14a"
}  # fmt: skip
_OURS_COLOR, _THEIRS_COLOR = "#3c65a8", "#9aa5b1"
_CLASSES: Final = {Verdict.HELD: "held", Verdict.MISSED: "missed", Verdict.NOT_BINDING: "none"}
_WIDTH, _LEFT, _ROW = 900, 330, 26


def page(results: Sequence[Result], machine: Mapping[str, Any]) -> str:
    """The whole report."""
    body = "".join(part for result in results for part in _section(result))
    rows = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(str(value))}</td></tr>"
        for name, value in machine.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Tidewaiter benchmarks</title>'
        f"<style>{_STYLE}</style><h1>Tidewaiter benchmarks</h1>{_overview(results)}{body}"
        f"<h2>Machine</h2><table>{rows}</table></html>\n"
    )


def _overview(results: Sequence[Result]) -> str:
    budgets = [budget for result in results for budget in result.budgets]
    counts = {verdict: sum(budget.verdict is verdict for budget in budgets) for verdict in Verdict}
    parts = [
        f'<span class="{_CLASSES[verdict]}">{count} {verdict.value}</span>'
        for verdict, count in counts.items()
    ]
    return f"<p>Bounds: {', '.join(parts)}. Ratios are medians of alternating rounds.</p>"


def _section(result: Result) -> Iterator[str]:
    yield f"<h2>{escape(result.title)}</h2>"
    if result.budgets:
        yield "<table><tr><th>what</th><th>figure (bound)</th><th>verdict</th></tr>"
        for budget in result.budgets:
            reason = f": {escape(budget.not_binding)}" if budget.not_binding else ""
            yield (
                f"<tr><td>{escape(budget.what)}</td><td>{escape(budget.as_text())}</td>"
                f'<td class="{_CLASSES[budget.verdict]}">{budget.verdict.value}{reason}</td></tr>'
            )
        yield "</table>"
    if result.bars:
        yield _bars(result.bars, result.bars_unit)
    if result.stage_shares:
        yield _stages(result.stage_shares)
    for text in (*result.notes, *(f"Skipped: {what}" for what in result.skipped)):
        yield f"<p>{escape(text)}</p>"
    if result.peers:
        versions = "; ".join(f"{name}: {version}" for name, version in result.peers.items())
        yield f"<p>{escape(versions)}</p>"
    yield f"<pre>{escape(chr(10).join(result.commands))}</pre>"


def _bars(bars: Mapping[str, float], unit: str) -> str:
    longest = max(bars.values()) or 1.0
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_ROW * len(bars) + 4}" role="img" aria-label="{escape(unit)} of each competitor">'
    ]
    for number, (name, value) in enumerate(bars.items()):
        top = number * _ROW
        width = max(1.0, value / longest * (_WIDTH - _LEFT - 110))
        is_theirs = not any(own in name for own in ("tidewaiter", "patch", "service", "child", "again"))
        color = _THEIRS_COLOR if is_theirs else _OURS_COLOR
        parts.append(
            f'<text x="{_LEFT - 8}" y="{top + 18}" text-anchor="end" font-size="13">{escape(name)}</text>'
            f'<rect x="{_LEFT}" y="{top + 4}" width="{width:.1f}" height="{_ROW - 8}" rx="3" fill="{color}"/>'
            f'<text x="{_LEFT + width + 6:.1f}" y="{top + 18}" font-size="13">{value:g} {escape(unit)}</text>'
        )
    return "".join(parts) + "</svg>"


def _stages(shares: Mapping[str, float]) -> str:
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} 52" role="img" aria-label="{escape(shares_text(dict(shares)))}">'
        '<text x="0" y="12" font-size="13">what the threads of an installation spend their time on</text>'
    ]
    left = 0.0
    for work, share in shares.items():
        width = share * _WIDTH
        parts.append(
            f'<rect x="{left:.1f}" y="20" width="{width:.1f}" height="30" fill="{_WORK_COLORS[work]}">'
            f"<title>{escape(work)} {share:.0%}</title></rect>"
        )
        if width > 60:
            parts.append(f'<text x="{left + 6:.1f}" y="40" font-size="13">{escape(work)} {share:.0%}</text>')
        left += width
    return "".join(parts) + "</svg>"
