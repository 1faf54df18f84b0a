"""The control socket of the simulator (io.tidewaiter.Sim)."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from tidewaiter_core.varlink import Call, Handler, VarlinkError

from tidewaiter_hal.sim.line import PtyLine
from tidewaiter_hal.sim.simulator import Simulator

INTERFACE: Final = "io.tidewaiter.Sim"


def handlers(
    simulator: Simulator,
    line: PtyLine,
    lock: threading.Lock,
    *,
    now_s: Callable[[], float],
    wake: Callable[[], None],
) -> Mapping[str, Mapping[str, Handler]]:
    """All methods; each holds `lock` while it touches the simulator."""

    def guarded(action: Callable[[Call], dict[str, Any]]) -> Handler:
        def call_it(call: Call) -> dict[str, Any]:
            try:
                with lock:
                    reply = action(call)
            except ValueError as err:
                raise VarlinkError(f"{INTERFACE}.Refused", {"reason": str(err)}) from err
            wake()
            return reply

        return call_it

    def do(call: Call) -> dict[str, Any]:
        return {"state": perform(simulator, line, call.parameters["action"], now_s())}

    def set_value(call: Call) -> dict[str, Any]:
        simulator.set(call.parameters["path"], call.parameters["value"], now_s())
        return {}

    def fault(call: Call) -> dict[str, Any]:
        parameters = call.parameters
        simulator.fault(parameters["name"], parameters["parameters"], now_s(), on=parameters["on"])
        return {}

    def seen(call: Call) -> dict[str, Any]:
        monitor = simulator.server.monitor
        frames = [
            {"at_ms": f.at_ms, "op": f.op, "group": f.group, "command": f.command, "seq": f.seq}
            for f in monitor.frames
        ]
        counts = [
            {"op": op, "group": group, "command": command, "frames": count}
            for (op, group, command), count in sorted(monitor.by_command.items())
        ]
        return {
            "total": monitor.total,
            "counts": counts,
            "frames": frames,
            "violations": monitor.violations[:50],
        }

    def get_state(call: Call) -> dict[str, Any]:
        simulator.injector.advance(now_s())
        return {"state": _state(simulator, line)}

    methods = {"Do": do, "Set": set_value, "Fault": fault, "Seen": seen, "GetState": get_state}
    return {INTERFACE: {name: guarded(method) for name, method in methods.items()}}


def perform(simulator: Simulator, line: PtyLine, action: str, now_s: float) -> str:
    """An action at the injector or at its cable; returns the state afterwards. Raises ValueError."""
    if action == "unplug":
        line.unplug()
    elif action == "plug":
        line.plug()
    else:
        simulator.do(action, now_s)
    return simulator.injector.state.name.lower()


def _state(simulator: Simulator, line: PtyLine) -> dict[str, Any]:
    injector = simulator.injector
    return {
        "state": injector.state.name.lower(),
        "boot_id": injector.boot_id,
        "uptime_ms": injector.device_ms(),
        "sample": injector.sample.number,
        "pressure_kpa": injector.sample.pressure_kpa,
        "moving": injector.sample.moving,
        "lockouts": injector.lockouts,
        "since_injection_s": injector.since_injection_s(),
        "alarm_priority": injector.alarm_priority,
        "lease_left_ms": injector.lease_left_ms(),
        "lease_purpose": injector.lease.purpose if injector.lease else 0,
        "pistons": [
            {
                "fluid": piston.fluid,
                "remaining_ul": round(piston.remaining_ul),
                "capacity_ul": piston.capacity_ul,
                "delivered_ul": round(piston.delivered_ul),
                "flow_ul_per_s": round(piston.flow_ul_per_s),
            }
            for piston in injector.pistons
        ],
        "faults": simulator.server.faults.names(),
        "plugged": line.is_plugged,
        "host_on_line": line.is_open_elsewhere(),
    }
