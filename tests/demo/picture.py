"""The timeline as a picture: a lane for the story, the server and each device; bars are phases, dots are events."""

from collections.abc import Callable, Iterator
from html import escape

from tests.demo.timeline import Timeline

PHASE_COLORS = {
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
    "RECONCILE_FW": "#2f8f9e",
    "HEALTH": "#8fd0c4",
    "COMMITTED": "#4caf6d",
    "ROLLED_BACK": "#c94f4f",
    "FAILED": "#e08a8a",
    "DEGRADED": "#7a1f1f",
}
_DARK = frozenset({"TRANSFER", "VERIFY", "STAGED", "ROLLED_BACK", "DEGRADED"})
"""Colors on which only white can be read."""
_OTHER_COLOR = "#9aa5b1"
_MARKS = {
    "note": ("#8b95a1", "event"),
    "boot": ("#2b5d8a", "boot"),
    "good": ("#2e8b4f", "as expected"),
    "bad": ("#c22f2f", "not as expected"),
    "cut": ("#c22f2f", "power cut, kill or attack"),
}
"""Also the order in which they are drawn: what matters most lies on top."""
_SHAPES = {"boot": "M0,-6 L6,5 L-6,5 Z", "cut": "M0,-7 L7,0 L0,7 L-7,0 Z", "bad": "M-5,-5 H5 V5 H-5 Z"}
_ROUND = "M-4,0 a4,4 0 1,0 8,0 a4,4 0 1,0 -8,0 Z"
_CHAR_PX = 6.6
_BADGE_PX = 18.0
"""A step that took no time is still wide enough for its number."""
_WIDTH, _LEFT, _LANE, _TOP = 1100, 130, 54, 30
_STORY = "story"
Scale = Callable[[float], float]


def timeline_svg(timeline: Timeline) -> str:
    """The whole story as one inline SVG."""
    lanes = [_STORY, "server", *sorted({bar.lane for bar in timeline.bars})]
    span_s = max(timeline.now_s(), 1.0)
    height = _TOP + 10 + _LANE * len(lanes)

    def x(at_s: float) -> float:
        return _LEFT + at_s / span_s * (_WIDTH - _LEFT - 20)

    parts = list(_grid(x, span_s, height))
    for number, lane in enumerate(lanes):
        top = _TOP + number * _LANE
        parts.append(f'<text x="8" y="{top + 22}" font-size="12" fill="#1d2733">{escape(lane)}</text>')
        parts += _steps(timeline, x, top) if lane == _STORY else _bars(timeline, lane, x, top, span_s)
        if lane != _STORY:
            parts += _dots(timeline, lane, x, top)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="What each device did when" font-family="system-ui, sans-serif">{"".join(parts)}</svg>'
    )


def legend(timeline: Timeline) -> str:
    """Colors that occur in the picture."""
    used = [label for label in PHASE_COLORS if any(bar.label == label for bar in timeline.bars)]
    phases = "".join(f'<span><i style="background:{PHASE_COLORS[one]}"></i>{one}</span>' for one in used)
    marks = "".join(
        f'<span><svg width="16" height="16" viewBox="-8 -8 16 16">{_shape(kind)}</svg> {text}</span>'
        for kind, (color, text) in _MARKS.items()
        if any(event.kind == kind for event in timeline.events)
    )
    return f'<p class="legend">{phases}{marks}</p>'


def _grid(x: Scale, span_s: float, height: int) -> Iterator[str]:
    for second in range(0, int(span_s) + 1, 10):
        yield f'<line x1="{x(second):.1f}" y1="22" x2="{x(second):.1f}" y2="{height}" stroke="#eef1f5"/>'
        yield f'<text x="{x(second):.1f}" y="15" font-size="11" fill="#6b7683" text-anchor="middle">{second} s</text>'


def _bars(timeline: Timeline, lane: str, x: Scale, top: int, span_s: float) -> Iterator[str]:
    yield f'<line x1="{_LEFT}" y1="{top + _LANE - 6}" x2="{_WIDTH}" y2="{top + _LANE - 6}" stroke="#e3e8ee"/>'
    for bar in timeline.bars:
        if bar.lane != lane:
            continue
        end_s = bar.to_s if bar.to_s is not None else span_s
        left, width = x(bar.from_s), max(1.5, x(end_s) - x(bar.from_s))
        yield (
            f'<rect x="{left:.1f}" y="{top + 6}" width="{width:.1f}" height="24" rx="2" '
            f'fill="{PHASE_COLORS.get(bar.label, _OTHER_COLOR)}">'
            f"<title>{escape(bar.label)}: {bar.from_s:.1f} to {end_s:.1f} s</title></rect>"
        )
        if width > _CHAR_PX * len(bar.label) + 8:
            ink = "#ffffff" if bar.label in _DARK else "#1d2733"
            yield _text(left + width / 2, top + 22, bar.label, ink)


def _steps(timeline: Timeline, x: Scale, top: int) -> Iterator[str]:
    if timeline.steps and x(timeline.steps[0].from_s) - _LEFT > 60:
        yield _text((_LEFT + x(timeline.steps[0].from_s)) / 2, top + 22, "preparing", _MARKS["note"][0])
    for number, step in enumerate(timeline.steps, start=1):
        color = _MARKS["good" if step.ok else "bad"][0]
        left, width = x(step.from_s), max(_BADGE_PX, x(step.to_s) - x(step.from_s) - 2)
        yield (
            f'<rect x="{left:.1f}" y="{top + 6}" width="{width:.1f}" height="24" rx="3" fill="#ffffff" '
            f'stroke="{color}" stroke-width="1.5"><title>{number}. {escape(step.title)}</title></rect>'
        )
        name = f"{number} {step.name}"
        shown = name if width > _CHAR_PX * len(name) + 8 else str(number)
        yield _text(left + width / 2, top + 22, shown, color)


def _dots(timeline: Timeline, lane: str, x: Scale, top: int) -> Iterator[str]:
    for kind in _MARKS:
        for event in timeline.events:
            if event.lane == lane and (event.kind if event.kind in _MARKS else "note") == kind:
                yield (
                    f'<g transform="translate({x(event.at_s):.1f} {top + 39})">{_shape(kind)}'
                    f"<title>{event.at_s:.1f} s: {escape(event.text)}</title></g>"
                )


def _shape(kind: str) -> str:
    return f'<path d="{_SHAPES.get(kind, _ROUND)}" fill="{_MARKS[kind][0]}" stroke="#ffffff"/>'


def _text(x: float, y: float, text: str, color: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="11" fill="{color}" text-anchor="middle">{escape(text)}</text>'
    )
