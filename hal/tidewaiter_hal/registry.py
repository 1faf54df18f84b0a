"""Finds the driver: entry points against the image's allow-list (hal-and-hil.md 3).

Listing entry points reads metadata only; `load` executes code. So a driver is loaded only if its name is on the
list and its distribution is the listed one, and two distributions offering one name are both refused.
"""

from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Final

from tidewaiter_hal.errors import DriverNotAllowedError, DriverTableError, NoDriverError
from tidewaiter_hal.injector import DriverType, PortInfo

GROUP: Final = "tidewaiter.injector_drivers"
AUTO: Final = "auto"
MATCH_MIN: Final = 50


def installed() -> Sequence[metadata.EntryPoint]:
    """Every entry point of the group; nothing is imported."""
    return tuple(metadata.entry_points(group=GROUP))


def load(
    name: str,
    allowed: Iterable[tuple[str, str]],
    *,
    port: PortInfo,
    accepted_side_effects: Iterable[str] = (),
    entry_points: Sequence[metadata.EntryPoint] | None = None,
) -> DriverType:
    """The driver called `name`, or with "auto" the one that matches `port` best.

    Args:
        allowed: (entry point name, distribution name) pairs of the image.

    Raises:
        NoDriverError: None of that name, or no clear match.
        DriverNotAllowedError: Installed, but not what the list names.
        DriverTableError: Its reads change the device and the image does not accept that.
    """
    found = installed() if entry_points is None else entry_points
    pairs = list(allowed)
    if name != AUTO:
        return accepted(_load_one(name, pairs, found), accepted_side_effects)
    names = [listed for listed, _ in pairs if any(point.name == listed for point in found)]
    scored = sorted(
        ((driver.match(port), driver) for driver in (_load_one(n, pairs, found) for n in names)), key=_score
    )
    if not scored or scored[-1][0] < MATCH_MIN or (len(scored) > 1 and scored[-1][0] == scored[-2][0]):
        raise NoDriverError(
            f"{port.path}: no driver matches this port clearly; the interlock denies until one does"
        )
    return accepted(scored[-1][1], accepted_side_effects)


def _score(item: tuple[int, DriverType]) -> int:
    return item[0]


def _load_one(name: str, allowed: list[tuple[str, str]], found: Sequence[metadata.EntryPoint]) -> DriverType:
    offers = [point for point in found if point.name == name]
    if not offers:
        raise NoDriverError(
            f"hal.driver = {name!r}: no installed distribution offers it; the interlock denies"
        )
    distributions = sorted({point.dist.name if point.dist else "?" for point in offers})
    if len(offers) > 1:
        raise DriverNotAllowedError(
            f"driver {name!r} is offered {len(offers)} times ({', '.join(distributions)}); none of them was loaded"
        )
    if (name, distributions[0]) not in allowed:
        raise DriverNotAllowedError(
            f"driver {name!r} of distribution {distributions[0]!r} is not in hal.driver_allow; it was not loaded"
        )
    driver = offers[0].load()
    if not isinstance(driver, DriverType) or driver.name != name:
        raise DriverTableError(
            f"driver {name!r}: its entry point is no driver of that name; the interlock denies"
        )
    return driver


def accepted(driver: DriverType, accepted_side_effects: Iterable[str]) -> DriverType:
    """`driver`, if observing with it changes nothing or the image accepts that it does. Raises DriverTableError."""
    monitors_change = any(
        row.kind == "monitor" and (row.side_effects or row.feeds_watchdog) for row in driver.commands.rows()
    )
    if monitors_change and driver.name not in set(accepted_side_effects):
        raise DriverTableError(
            f"driver {driver.name!r}: reading with it changes the device; name it in hal.accept_side_effects or "
            "use another driver"
        )
    return driver
