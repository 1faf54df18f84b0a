"""Which driver code is ever executed."""

import sys
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import pytest
from tidewaiter_hal import registry
from tidewaiter_hal.drivers.smp_reference import driver
from tidewaiter_hal.drivers.smp_table import TABLE
from tidewaiter_hal.errors import DriverNotAllowedError, DriverTableError, NoDriverError
from tidewaiter_hal.injector import CommandTable, DriverType, PortInfo

PORT = PortInfo(path="/dev/injector")
ALLOWED = [("smp-reference", "tidewaiter")]


@dataclass
class Distribution:
    """What the registry looks at of a distribution."""

    name: str


def _offer(name: str, distribution: str, value: str) -> metadata.EntryPoint:
    point = metadata.EntryPoint(name=name, value=value, group=registry.GROUP)
    vars(point)["dist"] = Distribution(distribution)
    return point


def _ours() -> metadata.EntryPoint:
    return _offer("smp-reference", "tidewaiter", "tidewaiter_hal.drivers.smp_reference:driver")


def test_the_built_in_driver_comes_through_the_same_door() -> None:
    assert registry.load("smp-reference", ALLOWED, port=PORT) is driver


def test_driver_not_on_the_allow_list_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_driver.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    offer = _offer("smp-reference", "somebody-else", "hostile_driver:driver")
    with pytest.raises(DriverNotAllowedError, match="somebody-else"):
        registry.load("smp-reference", ALLOWED, port=PORT, entry_points=[offer])
    assert "hostile_driver" not in sys.modules


def test_two_distributions_with_one_driver_name_are_refused() -> None:
    other = _offer("smp-reference", "somebody-else", "hostile_driver:driver")
    with pytest.raises(DriverNotAllowedError, match="none of them was loaded"):
        registry.load("smp-reference", ALLOWED, port=PORT, entry_points=[_ours(), other])


def test_a_name_that_nobody_offers_is_no_driver() -> None:
    with pytest.raises(NoDriverError, match="new-era"):
        registry.load("new-era", [("new-era", "tidewaiter")], port=PORT, entry_points=[_ours()])


def test_auto_takes_the_only_driver_that_matches() -> None:
    assert registry.load("auto", ALLOWED, port=PORT, entry_points=[_ours()]) is driver


def test_auto_ignores_what_is_not_on_the_list() -> None:
    with pytest.raises(NoDriverError):
        registry.load("auto", [], port=PORT, entry_points=[_ours()])


def _with_side_effects() -> DriverType:
    rows = [
        replace(row, side_effects="clears a pending alarm") if row.name == "state" else row
        for row in TABLE.rows()
    ]
    return replace(driver, commands=CommandTable(rows))


def test_monitoring_side_effects_need_explicit_acceptance() -> None:
    changed = _with_side_effects()
    with pytest.raises(DriverTableError, match="accept_side_effects"):
        registry.accepted(changed, [])
    assert registry.accepted(changed, ["smp-reference"]) is changed


def test_the_reference_driver_promises_that_reading_changes_nothing() -> None:
    assert registry.accepted(driver, []) is driver
