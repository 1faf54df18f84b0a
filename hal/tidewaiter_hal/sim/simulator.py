"""The whole simulated device behind one object: what the line, the control socket, a scenario and a test use. Pure."""

import json
from collections.abc import Callable, Mapping
from typing import Final

from tidewaiter_hal.cbor import Encodable
from tidewaiter_hal.model import State
from tidewaiter_hal.sim.faults import ONCE
from tidewaiter_hal.sim.physics import Injector, Phase
from tidewaiter_hal.sim.smp_server import SmpServer

GENERATIONS: Final[Mapping[str, int]] = {"real": 0, "test": 1, "demo": 2}
RESET: Final = "reset"
_KEYS: Final[Mapping[str, str]] = {
    "pressure_kpa": "pk",
    "moving": "mv",
    "since_injection_s": "id",
    "lockouts": "lk",
    "uptime_ms": "ms",
    "sample": "n",
}
"""Values of the state reply that can be shadowed; "reset" ends it."""


class UnknownPathError(ValueError):
    """Nothing of that name can be set."""


class Simulator:
    """See the module."""

    def __init__(self, injector: Injector, *, console: bool = False) -> None:
        self.injector = injector
        self.server = SmpServer(injector, seed=injector.seed, console=console)

    def do(self, action: str, now_s: float) -> State:
        """An action of a person. `press_key:NAME` is the same by its key. Raises ActionError."""
        self.injector.advance(now_s)
        self.injector.do(action.removeprefix("press_key:"))
        return self.injector.state

    def set(self, path: str, text: str, now_s: float) -> None:
        """Set a value; `text` is JSON, or "reset" for a value of the state reply. Raises UnknownPathError."""
        self.injector.advance(now_s)
        value: Encodable = RESET if text == RESET else _parsed(path, text)
        if path in _KEYS:
            overrides = self.server.bodies.overrides
            if value == RESET:
                overrides.pop(_KEYS[path], None)
            else:
                overrides[_KEYS[path]] = value
            return
        setter = self._setters().get(path)
        if setter is None:
            known = ", ".join(sorted([*_KEYS, *self._setters()]))
            raise UnknownPathError(f"{path}: nothing of that name can be set; there are {known}")
        try:
            setter(value)
        except (TypeError, ValueError, KeyError) as err:
            raise UnknownPathError(f"{path} = {text}: {err}; nothing was set") from err
        self.injector.advance(now_s)

    def _setters(self) -> Mapping[str, Callable[[Encodable], None]]:
        injector = self.injector

        def number(name: str) -> Callable[[Encodable], None]:
            return lambda value: setattr(injector, name, _int(value))

        def generation(value: Encodable) -> None:
            self.server.bodies.generation = GENERATIONS[value] if isinstance(value, str) else _int(value)

        def state(value: Encodable) -> None:
            injector.go(State[value.upper()] if isinstance(value, str) else State(_int(value)))

        def remaining(index: int) -> Callable[[Encodable], None]:
            return lambda value: setattr(injector.pistons[index], "remaining_ul", float(_int(value)))

        def protocol(index: int, name: str) -> Callable[[Encodable], None]:
            def change(value: Encodable) -> None:
                phase = injector.protocol[index]
                volume = _int(value) if name == "volume_ul" else phase.volume_ul
                flow = _int(value) if name == "flow_ul_per_s" else phase.flow_ul_per_s
                injector.protocol[index] = Phase(phase.channel, volume, flow)

            return change

        setters = {
            **{name: number(name) for name in ("power", "scanner", "mode")},
            "alarm_priority": lambda value: injector.set_alarm(_int(value)),
            "idle_pressure_kpa": number("idle_pressure_kpa"),
            "generation": generation,
            "state": state,
        }
        for index in range(len(injector.pistons)):
            setters[f"channel.{index}.remaining_ul"] = remaining(index)
        for index in range(len(injector.protocol)):
            for name in ("volume_ul", "flow_ul_per_s"):
                setters[f"protocol.{index}.{name}"] = protocol(index, name)
        return setters

    def fault(self, name: str, parameters: Mapping[str, str], now_s: float, *, on: bool) -> None:
        """Switch a fault on or off. Raises UnknownFaultError."""
        self.injector.advance(now_s)
        if name in ONCE:
            if on:
                self.server.strike(name, parameters, now_s)
            return
        self.server.faults.switch(name, parameters, on=on)
        injector, faults = self.injector, self.server.faults
        injector.control_frozen = faults.get("freeze_control") is not None
        injector.lease_refused = faults.get("lease_refuse") is not None
        short, drift = faults.get("lease_short"), faults.get("clock_drift")
        injector.lease_limit_ms = int(short.number("ms", 2000)) if short else None
        injector.clock_ppm = drift.number("ppm", 500_000) if drift else 0.0


def _parsed(path: str, text: str) -> Encodable:
    try:
        value: Encodable = json.loads(text)
    except ValueError as err:
        raise UnknownPathError(f"{path}: {text!r} is not JSON; nothing was set") from err
    return value


def _int(value: Encodable) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError("an integer was expected")
    return value
