"""The injector on the line: the real tidewaiter-injector-sim process on a pty, driven through its control socket."""

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tidewaiter_core.varlink import Client, NotReachable

INTERFACE = "io.tidewaiter.Sim"
START_LIMIT_S = 10.0
PLENTY_OF_UPTIME_MS = 4_000_000


class InjectorSimulator:
    """One simulated injector; started by the constructor, ended by `stop` or by leaving the context.

    Args:
        link: Where the serial line appears.
        home: Directory for the control socket and the log.
        uptime_ms: Device clock at the start; the default is long enough that "no injection since boot" counts.
        options: Further command line options.
    """

    def __init__(
        self,
        link: Path,
        *,
        home: Path,
        generation: str = "real",
        uptime_ms: int = PLENTY_OF_UPTIME_MS,
        speed: float = 1.0,
        serial: str = "SIM-000001",
        options: tuple[str, ...] = (),
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        self.link = link
        self.control = home / "sim.sock"
        self.log = home / "sim.log"
        command = [sys.executable, "-m", "tidewaiter_hal.sim.cli", "--protocol", "smp", "--pty", str(link)]
        command += ["--control", str(self.control), "--generation", generation, "--serial", serial]
        command += ["--uptime-ms", str(uptime_ms), "--speed", str(speed), "--view", *options]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        self._await_control()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def do(self, action: str) -> str:
        """What a person does; returns the state afterwards, in capitals."""
        return str(self._call("Do", action=action)["state"]).upper()

    def set(self, path: str, value: object) -> None:
        """Set a value; "reset" gives it back to the simulation."""
        self._call("Set", path=path, value="reset" if value == "reset" else json.dumps(value))

    def fault(self, name: str, *, on: bool = True, **parameters: object) -> None:
        """Switch a device fault."""
        self._call(
            "Fault", name=name, parameters={key: str(value) for key, value in parameters.items()}, on=on
        )

    def state(self) -> dict[str, Any]:
        """Everything the simulated machine knows of itself."""
        state: dict[str, Any] = self._call("GetState")["state"]
        return state

    def seen(self) -> dict[str, Any]:
        """Frames of the host and violations."""
        return self._call("Seen")

    def wait_state(self, state: str, *, timeout_s: float = 30.0) -> None:
        """Until the machine is in `state`."""
        end_s = time.monotonic() + timeout_s
        while (now := str(self.state()["state"]).upper()) != state.upper():
            if time.monotonic() >= end_s:
                raise AssertionError(f"the injector is {now}, {state} was expected within {timeout_s:g} s")
            time.sleep(0.05)

    def unplug(self) -> None:
        """Pull the cable."""
        self.do("unplug")

    def plug(self) -> None:
        """Put the cable in: the line appears under a new node."""
        self.do("plug")

    def stop(self) -> None:
        """End it; fails if the host ever sent a frame that no host may send."""
        if self.process.poll() is not None:
            return
        violations = self._violations()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        assert not violations, f"the injector saw forbidden frames: {violations}"

    def _violations(self) -> list[str]:
        try:
            violations: list[str] = self.seen()["violations"]
        except NotReachable:
            return []
        return violations

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        with Client(self.control, timeout_s=5.0) as client:
            return client.call(f"{INTERFACE}.{method}", parameters)

    def _await_control(self) -> None:
        end_s = time.monotonic() + START_LIMIT_S
        while True:
            try:
                self.state()
                return
            except NotReachable as err:
                if self.process.poll() is not None or time.monotonic() >= end_s:
                    self.process.kill()
                    output = self.log.read_text(errors="replace")
                    raise AssertionError(f"the injector simulator did not start: {output[-2000:]}") from err
                time.sleep(0.05)
