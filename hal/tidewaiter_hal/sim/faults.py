"""Device faults of the simulator, by name, with parameters and an optional number of times. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

LATCHED: Final = frozenset(
    {
        "freeze_control",
        "freeze_comm",
        "wrong_seq",
        "late_reply",
        "double_reply",
        "bad_crc16",
        "bad_crc32",
        "garbage",
        "oversize",
        "indefinite_cbor",
        "unknown_keys",
        "proto",
        "lie",
        "lease_refuse",
        "lease_short",
        "clock_drift",
    }
)
"""Stay on until switched off; `count` limits how often they act."""
ONCE: Final = frozenset(
    {"reboot", "brown_out", "log_overflow", "log_format", "uptime_near", "unsolicited_frame"}
)
"""Happen when switched on."""


class UnknownFaultError(ValueError):
    """There is no such fault."""


@dataclass(slots=True, kw_only=True)
class Active:
    """A fault that is on."""

    parameters: Mapping[str, str]
    left: int | None

    def number(self, name: str, default: float) -> float:
        """A numeric parameter."""
        return float(self.parameters.get(name, default))


class FaultPanel:
    """Which faults are on."""

    def __init__(self) -> None:
        self._active: dict[str, Active] = {}

    def switch(self, name: str, parameters: Mapping[str, str], *, on: bool) -> None:
        """Switch a latched fault. Raises UnknownFaultError."""
        if name not in LATCHED:
            known = ", ".join(sorted(LATCHED | ONCE))
            raise UnknownFaultError(f"fault {name!r}: there is none of that name; there are {known}")
        if on:
            count = parameters.get("count")
            self._active[name] = Active(parameters=dict(parameters), left=int(count) if count else None)
        else:
            self._active.pop(name, None)

    def get(self, name: str) -> Active | None:
        """The fault, if it is on."""
        return self._active.get(name)

    def strike(self, name: str) -> Active | None:
        """The fault, if it is on, used up by one."""
        active = self._active.get(name)
        if active is not None and active.left is not None:
            active.left -= 1
            if active.left <= 0:
                del self._active[name]
        return active

    def names(self) -> list[str]:
        """All that are on."""
        return sorted(self._active)
