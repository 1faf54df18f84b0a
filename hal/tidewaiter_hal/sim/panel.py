"""The simulated injector's screen as text: redrawn on a terminal, one line per change elsewhere."""

import re
from dataclasses import dataclass
from typing import Final

from tidewaiter_hal.model import State
from tidewaiter_hal.sim.physics import PRESSURE_LIMIT_KPA, Piston
from tidewaiter_hal.sim.simulator import Simulator

WIDTH: Final = 74
BAR: Final = 28
_FLUIDS: Final = {0: "unknown", 1: "contrast", 2: "saline", 3: "other"}
_PURPOSES: Final = {1: "activate", 2: "reboot", 3: "firmware"}
_LOCKS: Final = ((1, "arm"), (2, "start"), (4, "resume"), (8, "protocol"))
_COLORS: Final = {
    State.IDLE: "32",
    State.READY: "36",
    State.LOADING: "36",
    State.PURGING: "36",
    State.ARMED: "33;1",
    State.INJECTING: "35;1",
    State.HOLD: "33",
    State.COMPLETE: "32;1",
    State.ABORTED: "31",
    State.FAULT: "37;41;1",
    State.SERVICE: "34;1",
}
_ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")
HOME: Final = "\x1b[H"
CLEAR: Final = "\x1b[2J"
HIDE_CURSOR: Final = "\x1b[?25l"
SHOW_CURSOR: Final = "\x1b[?25h"


@dataclass(frozen=True, slots=True)
class Change:
    """What a line-by-line view compares."""

    state: State
    lease: bool
    alarm: int
    violations: int
    faults: tuple[str, ...]
    listener: bool


class Panel:
    """Draws one simulator."""

    def __init__(self, simulator: Simulator, *, title: str) -> None:
        self._simulator = simulator
        self._title = title
        self._last: Change | None = None
        self._polls: tuple[float, int] = (0.0, 0)
        self._rate = 0.0

    def change_line(self, *, listener: bool) -> str | None:
        """A line if something worth telling changed since the last call."""
        injector, server = self._simulator.injector, self._simulator.server
        change = Change(
            state=injector.state,
            lease=injector.lease is not None,
            alarm=injector.alarm_priority,
            violations=len(server.monitor.violations),
            faults=tuple(server.faults.names()),
            listener=listener,
        )
        if change == self._last:
            return None
        self._last = change
        parts = [f"{injector.device_ms() / 1000:10.1f} s  {change.state.name:<10}"]
        parts.append(f"{round(injector.pressure_kpa):5d} kPa  {self._delivered_ml():6.1f} mL")
        parts.append(f"lease {injector.lease_left_ms() // 1000} s" if change.lease else "no lease")
        parts.append("host on the line" if listener else "nobody on the line")
        if change.alarm:
            parts.append(f"ALARM {change.alarm}")
        if change.faults:
            parts.append("faults: " + ", ".join(change.faults))
        if change.violations:
            parts.append(f"VIOLATIONS {change.violations}")
        return "  ".join(parts)

    def screen(self, *, listener: bool) -> str:
        """The whole screen with ANSI colors, to be written at the home position."""
        rows = [self._head(), "", *self._pistons(), "", *self._footer(listener)]
        top = f"┌─ {self._title} " + "─" * (WIDTH - len(self._title) - 3) + "┐"
        body = [f"│{_padded(row)}│" for row in rows]
        return "\x1b[K\r\n".join([top, *body, "└" + "─" * WIDTH + "┘", ""])

    def _head(self) -> str:
        injector = self._simulator.injector
        color = _COLORS.get(injector.state, "37")
        name = injector.state.name.replace("_", " ")
        text = f"  \x1b[{color}m● {name:<10}\x1b[0m"
        if injector.state is State.INJECTING:
            text += f"phase {injector.phase + 1} of {len(injector.protocol)}, {self._left_ml():.1f} mL to go"
        elif injector.alarm_priority:
            text += f"\x1b[31;1malarm, priority {injector.alarm_priority}\x1b[0m"
        else:
            text += f"for {int(injector.in_state_s())} s"
        return text

    def _pistons(self) -> list[str]:
        injector = self._simulator.injector
        rows = [_piston_row(letter, piston) for letter, piston in zip("ABC", injector.pistons, strict=False)]
        kpa = round(injector.pressure_kpa)
        color = "31" if kpa > 0.8 * PRESSURE_LIMIT_KPA else "33" if kpa > 300 else "32"
        bar = _bar(kpa / PRESSURE_LIMIT_KPA, color)
        return [*rows, f"    pressure  {bar} {kpa:6d} kPa of {PRESSURE_LIMIT_KPA}"]

    def _footer(self, listener: bool) -> list[str]:
        injector, server = self._simulator.injector, self._simulator.server
        since = injector.since_injection_s()
        ended = "none since boot" if since is None else f"{since} s ago"
        rows = [f"  delivered {self._delivered_ml():.1f} mL       last injection {ended}"]
        if injector.lease is not None:
            locks = " ".join(name for bit, name in _LOCKS if injector.lockouts & bit)
            purpose = _PURPOSES.get(injector.lease.purpose, "?")
            left_s = injector.lease_left_ms() // 1000
            rows.append(f"  \x1b[33;1m⚿ locked for {purpose}: {locks}; {left_s} s left, [C] cancels\x1b[0m")
        else:
            rows.append("  not locked")
        host = "host on the line" if listener else "nobody on the line"
        monitor = server.monitor
        rows.append(f"  {host}, {self._frames_per_s():.1f} frames/s, {monitor.total} in all")
        if server.faults.names():
            rows.append("  \x1b[31mfaults: " + ", ".join(server.faults.names()) + "\x1b[0m")
        if monitor.violations:
            rows.append(
                f"  \x1b[37;41;1m{len(monitor.violations)} forbidden frames: {monitor.violations[-1]}\x1b[0m"
            )
        return rows

    def _frames_per_s(self) -> float:
        now_s, total = self._simulator.injector.now_s, self._simulator.server.monitor.total
        before_s, before = self._polls
        if now_s - before_s >= 1.0:
            self._rate = (total - before) / (now_s - before_s)
            self._polls = (now_s, total)
        return self._rate

    def _delivered_ml(self) -> float:
        return sum(piston.delivered_ul for piston in self._simulator.injector.pistons) / 1000

    def _left_ml(self) -> float:
        return self._simulator.injector.phase_left_ul / 1000


def _piston_row(letter: str, piston: Piston) -> str:
    color = "36" if piston.fluid == 1 else "34"
    bar = _bar(piston.remaining_ul / piston.capacity_ul, color)
    flow = f"{piston.flow_ul_per_s / 1000:4.1f} mL/s" if piston.flow_ul_per_s else "    at rest"
    return f"  {letter} {_FLUIDS.get(piston.fluid, 'other'):<9} {bar} {piston.remaining_ul / 1000:6.1f} mL  {flow}"


def _bar(ratio: float, color: str) -> str:
    filled = round(max(0.0, min(1.0, ratio)) * BAR)
    return f"\x1b[{color}m{'█' * filled}\x1b[90m{'░' * (BAR - filled)}\x1b[0m"


def _padded(row: str) -> str:
    visible = len(_ANSI.sub("", row))
    if visible > WIDTH:
        return _ANSI.sub("", row)[:WIDTH]
    return row + " " * (WIDTH - visible)
