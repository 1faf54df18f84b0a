"""Bodies the simulated injector answers with (hal-and-hil.md 8.3-8.8), and the lies it can be told to tell. Pure."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Final

from tidewaiter_hal.cbor import Encodable
from tidewaiter_hal.model import State
from tidewaiter_hal.sim.faults import FaultPanel
from tidewaiter_hal.sim.physics import MAX_FLOW_UL_PER_S, PRESSURE_LIMIT_KPA, Injector
from tidewaiter_hal.sim.recorder import Log

Body = dict[str, Encodable]

FEATURES: Final = (
    "pressure",
    "plunger",
    "channels",
    "faults",
    "injections",
    "events",
    "selftest",
    "counters",
    "lease",
)
FIRMWARE: Final = (("control", "2.4.1", 0), ("comm", "1.9.0", 1))


class Bodies:
    """Builds bodies from the machine; `overrides` shadow single values of the state."""

    def __init__(self, injector: Injector, faults: FaultPanel) -> None:
        self._injector = injector
        self._faults = faults
        self.overrides: dict[str, Encodable] = {}
        self.generation = injector.generation
        self.features: tuple[str, ...] = FEATURES
        self._lie_calls = 0
        self._lie_started_ms = 0
        self._lie_rule = ""

    def common(self) -> Body:
        """Keys of every body."""
        return {"bo": self._injector.boot_id, "ms": self._injector.device_ms()}

    def identity(self) -> Body:
        """Command 0."""
        proto = self._faults.get("proto")
        major, minor = (int(proto.number("major", 2)), int(proto.number("minor", 0))) if proto else (1, 0)
        boards: list[Encodable] = [
            [board, version, hashlib.sha256(f"{board} {version}".encode()).digest(), image]
            for board, version, image in FIRMWARE
        ]
        return {
            **self.common(),
            "pv": [major, minor],
            "vn": "Tidewaiter Works",
            "md": "Reference Injector",
            "sn": self._injector.serial,
            "hw": "rev-c",
            "bl": "mcuboot 2.1.0",
            "bc": self._injector.boot_counter,
            "rr": self._injector.reset_reason,
            "fw": boards,
            "lg": self._injector.logs.log_id,
        }

    def state(self) -> Body:
        """Command 1, from the control task's last copy."""
        injector, sample = self._injector, self._injector.sample
        body: Body = {
            **self.common(),
            "n": sample.number,
            "ag": min(0xFFFF, int((injector.now_s - sample.taken_s) * 1000)),
            "st": int(sample.state),
            "md": injector.mode,
            "lk": sample.lockouts,
            "pk": sample.pressure_kpa,
            "fl": list(sample.flow_ul_per_s),
            "vd": list(sample.delivered_ul),
            "mv": sample.moving,
            "id": injector.since_injection_s(),
            "al": injector.alarm_priority,
            "ac": injector.alarm_changes,
            "fc": injector.logs.faults.head,
            "ic": injector.logs.injections.head,
            "ec": injector.logs.events.head,
            "pw": injector.power,
            "sc": injector.scanner,
            "ls": [int(injector.lease is not None), injector.lease_left_ms()],
        }
        if injector.state is State.SERVICE:
            body["sv"] = injector.consent_left_s()
        return {**body, **self.overrides, **self._lie(body)}

    def capabilities(self) -> Body:
        """Command 2."""
        return {
            **self.common(),
            "cl": 2,
            "nc": len(self._injector.pistons),
            "pl": PRESSURE_LIMIT_KPA,
            "fm": MAX_FLOW_UL_PER_S,
            "ft": list(self.features),
            "gn": self.generation,
        }

    def channels(self) -> Body:
        """Command 3."""
        rows = [
            [
                number,
                piston.fluid,
                piston.capacity_ul,
                round(piston.remaining_ul),
                piston.plunger_um,
                round(piston.capacity_ul * 0.75),
                200,
                piston.loaded,
            ]
            for number, piston in enumerate(self._injector.pistons)
        ]
        return {**self.common(), "ch": rows}

    def alarms(self) -> Body:
        """Command 4."""
        priority = self._injector.alarm_priority
        entries = [[0x0201, 1, priority, 1, 1, self._injector.device_ms()]] if priority else []
        return {**self.common(), "ac": self._injector.alarm_changes, "e": entries, "mo": False}

    def self_test(self) -> Body:
        """Command 7."""
        result, at_ms = self._injector.self_test
        return {**self.common(), "rs": result, "at": at_ms, "e": [[1, result], [2, result]]}

    def counters(self) -> Body:
        """Command 8."""
        return {
            **self.common(),
            "in": self._injector.injections_total,
            "hr": self._injector.device_ms() // 3_600_000,
            "pc": self._injector.boot_counter,
            "wd": 0,
            "re": 0,
            "dr": 0,
            "tc": 314,
        }

    def log(self, name: str, after: int, limit: int) -> Body:
        """Commands 5, 6 and 9."""
        logs = self._injector.logs
        log: Log = {"faults": logs.faults, "injections": logs.injections, "events": logs.events}[name]
        limit = min(limit, 4 if name == "injections" else 8)
        return {
            **self.common(),
            "lg": logs.log_id,
            "from": after,
            "first": log.first,
            "head": log.head,
            "e": list(log.page(after, limit)),
        }

    def _lie(self, body: Body) -> Body:
        active = self._faults.get("lie")
        if active is None:
            self._lie_rule = ""
            return {}
        rule = active.parameters.get("rule", "P1")
        if rule != self._lie_rule:
            self._lie_rule, self._lie_calls, self._lie_started_ms = rule, 0, self._injector.device_ms()
        self._lie_calls += 1
        lies: Mapping[str, Callable[[Body, int], Body]] = {
            "P1": lambda b, n: {"st": 4, "mv": True},
            "P2": lambda b, n: {"st": 4, "pk": 900},
            "P3": lambda b, n: {"st": 9 if n == 1 else 14},
            "P4": lambda b, n: {"n": (_int(b["n"]) - 60_000 * (n % 2)) & 0xFFFFFFFF},
            "P5": lambda b, n: {"ms": _int(b["ms"]) + (_int(b["ms"]) - self._lie_started_ms)},
            "P6": lambda b, n: {"st": 9, "vd": [max(0, 90_000 - 1_000 * n), 0]},
            "P7": lambda b, n: {"pk": 2 * PRESSURE_LIMIT_KPA},
            "P8": lambda b, n: {"st": 77},
            "P9": lambda b, n: {"n": self._frozen_number(b)},
        }
        return lies[rule](body, self._lie_calls) if rule in lies else {}

    def _frozen_number(self, body: Body) -> int:
        if self._lie_calls == 1:
            self._frozen = _int(body["n"])
        return self._frozen

    _frozen: int = 0


def _int(value: Encodable) -> int:
    return value if isinstance(value, int) else 0
