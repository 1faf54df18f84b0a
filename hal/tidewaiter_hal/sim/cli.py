"""tidewaiter-injector-sim: a contrast injector as a program on a pseudo terminal.

Example: tidewaiter-injector-sim --protocol smp --pty /tmp/injector --control /tmp/injector.sock --view
Exit codes: 0 ended, 2 usage, 3 the port or the control socket could not be made.
"""

import argparse
import os
import select
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tidewaiter_core.activation import listener
from tidewaiter_core.clock import SystemClock
from tidewaiter_core.errors import TidewaiterError
from tidewaiter_core.heartbeat import Heartbeat
from tidewaiter_core.notify import Notifier
from tidewaiter_core.varlink import Server, allow_users
from tidewaiter_core.workers import Stop, Worker, run

from tidewaiter_hal.sim import control, panel, scenario
from tidewaiter_hal.sim.line import PtyLine
from tidewaiter_hal.sim.physics import Injector
from tidewaiter_hal.sim.simulator import GENERATIONS, Simulator

EXIT_USAGE: Final = 2
EXIT_PORT: Final = 3
BITS_PER_BYTE: Final = 10
TURN_S: Final = 0.05
VIEW_S: Final = 0.2
CHANGE_S: Final = 0.1
CLOSED_WAIT_S: Final = 0.02


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = _parser().parse_args(argv)
    try:
        steps = scenario.load(options.scenario) if options.scenario else []
    except scenario.ScenarioError as err:
        sys.stderr.write(f"tidewaiter-injector-sim: {err}\n")
        return EXIT_USAGE
    try:
        return _Program(options, steps).run()
    except (OSError, TidewaiterError) as err:
        sys.stderr.write(f"tidewaiter-injector-sim: {err}\n")
        return EXIT_PORT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tidewaiter-injector-sim",
        description="A contrast injector on a pseudo terminal, for benches, tests and demos.",
    )
    parser.add_argument("--protocol", choices=["smp"], default="smp", help="protocol on the line")
    parser.add_argument("--pty", type=Path, required=True, metavar="LINK", help="stable name of the line")
    parser.add_argument("--baud", type=_positive_int, default=115_200, help="line speed for --pace (115200)")
    parser.add_argument("--pace", action="store_true", help="send at line speed; a pseudo terminal has none")
    parser.add_argument("--seed", type=int, default=1, help="makes everything random repeatable (1)")
    parser.add_argument("--speed", type=_positive, default=1.0, help="how much faster pistons move (1)")
    parser.add_argument("--uptime-ms", type=int, default=0, help="device clock at the start (0)")
    parser.add_argument("--serial", default="SIM-000001", help="serial number of the injector")
    parser.add_argument(
        "--generation", choices=sorted(GENERATIONS), default="real", help="what it says it is (real)"
    )
    parser.add_argument("--scenario", type=Path, metavar="FILE.toml", help="what happens and when")
    parser.add_argument("--control", type=Path, metavar="SOCK", help="Varlink socket io.tidewaiter.Sim")
    parser.add_argument("--console", action="store_true", help="print log text between frames")
    parser.add_argument("--view", action="store_true", help="show the injector's screen")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"a number above 0 and at most 1000 was expected, found {text}")
    return value


def _positive_int(text: str) -> int:
    value = int(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"a number above 0 was expected, found {text}")
    return value


class _Program:
    """The running simulator: one thread for the line, one for the view, one for the control socket."""

    def __init__(self, options: argparse.Namespace, steps: list[scenario.Step]) -> None:
        self._options = options
        self._steps = steps
        self._clock = SystemClock()
        self._started_s = self._clock.boottime_s()
        self._lock = threading.Lock()
        injector = Injector(
            now_s=self._started_s,
            seed=options.seed,
            speed=options.speed,
            uptime_ms=options.uptime_ms,
            generation=GENERATIONS[options.generation],
            serial=options.serial,
        )
        self._simulator = Simulator(injector, console=options.console)
        self._line = PtyLine(options.pty, bytes_per_s=options.baud / BITS_PER_BYTE if options.pace else None)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> int:
        """Until SIGTERM or SIGINT."""
        workers = [Worker("line", self._serve_line, self._wake)]
        if self._options.control:
            workers.append(Worker("control", self._control_server().run))
        if self._options.view:
            workers.append(Worker("view", self._view))
        self._line.plug()
        notifier = Notifier.from_environment()
        try:
            code = run(workers, heartbeat=Heartbeat(self._clock, notifier), notifier=notifier)
        finally:
            self._line.unplug()
        for violation in self._simulator.server.monitor.violations:
            sys.stderr.write(f"forbidden frame: {violation}\n")
        return code

    def _control_server(self) -> Server:
        path: Path = self._options.control
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers = control.handlers(
            self._simulator, self._line, self._lock, now_s=self._clock.boottime_s, wake=self._wake
        )
        return Server(
            listener("sim", path, mode=0o600),
            handlers,
            authorize=allow_users(str(os.getuid())),
            name="injector-sim",
        )

    def _serve_line(self, stop: Stop) -> None:
        while not stop.is_set:
            with self._lock:
                now_s = self._clock.boottime_s()
                self._scenario(now_s)
                self._exchange(now_s)
                wait_s = min(TURN_S, max(0.0, self._simulator.server.next_due_s() - now_s))
            self._wait(wait_s)

    def _exchange(self, now_s: float) -> None:
        data = self._line.read()
        if data:
            self._simulator.server.receive(data, now_s)
        self._simulator.injector.advance(now_s)
        out = self._simulator.server.due(now_s)
        if out:
            delay_s = self._line.pace_s(len(out), now_s)
            if delay_s > 0:
                self._clock.sleep(min(delay_s, 1.0))
            self._line.write(out)

    def _wait(self, wait_s: float) -> None:
        poller = select.poll()
        poller.register(self._wake_read, select.POLLIN)
        fd = self._line.fileno()
        # A pty whose other end is closed hangs up all the time: waiting for it would spin.
        if fd is not None and self._line.is_open_elsewhere():
            poller.register(fd, select.POLLIN)
        elif fd is not None:
            wait_s = min(wait_s, CLOSED_WAIT_S)
        for ready, _ in poller.poll(wait_s * 1000):
            if ready == self._wake_read:
                os.read(self._wake_read, 4096)

    def _scenario(self, now_s: float) -> None:
        while self._steps and now_s - self._started_s >= self._steps[0].at_s:
            step = self._steps.pop(0)
            try:
                self._perform(step, now_s)
            except ValueError as err:
                sys.stderr.write(f"scenario at {step.at_s:g} s: {err}\n")

    def _perform(self, step: scenario.Step, now_s: float) -> None:
        if step.kind in ("do", "line"):
            control.perform(self._simulator, self._line, step.name, now_s)
        elif step.kind == "set":
            for path, value in step.values.items():
                self._simulator.set(path, value, now_s)
        else:
            self._simulator.fault(step.name, step.values, now_s, on=step.on)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            return  # it is awake

    def _view(self, stop: Stop) -> None:
        screen = panel.Panel(
            self._simulator,
            title=f"{self._options.serial} · {self._options.generation} · {self._options.pty}",
        )
        if not sys.stdout.isatty():
            self._view_lines(stop, screen)
            return
        sys.stdout.write(panel.HIDE_CURSOR + panel.CLEAR)
        try:
            while not stop.wait(VIEW_S):
                with self._lock:
                    text = screen.screen(listener=self._line.is_open_elsewhere())
                sys.stdout.write(panel.HOME + text + "\x1b[J")
                sys.stdout.flush()
        finally:
            sys.stdout.write(panel.SHOW_CURSOR + "\n")
            sys.stdout.flush()

    def _view_lines(self, stop: Stop, screen: panel.Panel) -> None:
        while not stop.wait(CHANGE_S):
            with self._lock:
                text = screen.change_line(listener=self._line.is_open_elsewhere())
            if text is not None:
                sys.stdout.write(text + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
