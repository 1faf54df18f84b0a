"""Interface files against the code: Varlink handlers, and the CDDL of the serial protocol."""

import re
from importlib import resources

import pytest
from tidewaiter_core.varlink import load_interface
from tidewaiter_hal import service
from tidewaiter_hal.drivers import smp_messages as messages
from tidewaiter_hal.drivers.smp_table import TABLE
from tidewaiter_hal.lease import LeaseKeeper
from tidewaiter_hal.model import Log
from tidewaiter_hal.sim.bodies import Bodies
from tidewaiter_hal.sim.faults import FaultPanel
from tidewaiter_hal.sim.physics import Injector
from tidewaiter_hal.view import InjectorView

from tests.sim.clock import FakeClock

CDDL = (resources.files("tidewaiter_core") / "interfaces" / "injector.cddl").read_text()


def _rule(name: str) -> str:
    """The body of one rule, without comments and with the common group in place."""
    text = re.sub(r";.*", "", CDDL)
    found = re.search(rf"^{name} = \{{(.*?)\n?\}}\n", text, re.MULTILINE | re.DOTALL)
    assert found, name
    return found[1].replace("common,", "bo: u32, ms: u64,")


def _keys(name: str) -> tuple[set[str], set[str]]:
    """(required, all) keys of one rule; nested arrays do not count."""
    body = _rule(name)
    while re.search(r"\[[^\[\]]*\]", body):
        body = re.sub(r"\[[^\[\]]*\]", "list", body)
    optional = set(re.findall(r"\?\s*(\w+):", body))
    every = set(re.findall(r"(\w+):", body))
    return every - optional, every


@pytest.fixture
def bodies() -> Bodies:
    return Bodies(Injector(now_s=0.0), FaultPanel())


@pytest.mark.parametrize(
    "name", ["identity", "state", "capabilities", "channels", "alarms", "self_test", "counters"]
)
def test_the_simulator_sends_exactly_the_keys_of_the_cddl(bodies: Bodies, name: str) -> None:
    required, every = _keys(name)
    sent = set(getattr(bodies, name)())
    assert required <= sent
    assert sent <= every


@pytest.mark.parametrize("name", ["identity", "state", "capabilities", "channels", "alarms", "self_test"])
def test_the_driver_insists_on_each_required_key_of_the_cddl(bodies: Bodies, name: str) -> None:
    body = dict(getattr(bodies, name)())
    required, _ = _keys(name)

    def parse(fields: dict[str, object]) -> object:
        if name == "state":
            return messages.state(fields, 0.0)  # type: ignore[arg-type]
        return getattr(messages, name)(fields)

    parse(body)
    common = {"bo", "ms"} if name not in ("identity", "state") else set()
    for key in required - common:
        with pytest.raises(messages.BodyError):
            parse({field: value for field, value in body.items() if field != key})


def test_log_pages_follow_the_cddl(bodies: Bodies) -> None:
    required, every = _keys("log")
    for log in Log:
        body = bodies.log(log.value, 0, 8)
        assert required <= set(body) <= every
        messages.log_page(log, body)  # type: ignore[arg-type]


def test_lease_commands_carry_the_keys_of_the_cddl() -> None:
    for command in ("lease-acquire", "lease-renew", "lease-release"):
        rule = re.search(rf"^{command.replace('-', '_')} = \{{(.*)\}}", CDDL, re.MULTILINE)
        assert rule
        assert set(re.findall(r"(\w+):", rule[1])) == set(TABLE[command].body_keys)


def test_every_method_of_the_interfaces_has_a_handler() -> None:
    view, keeper = object.__new__(InjectorView), object.__new__(LeaseKeeper)
    served = {**service.monitor_interfaces(view, keeper, FakeClock()), **service.control_interfaces(keeper)}
    for name, handlers in served.items():
        assert set(load_interface(name).methods) == set(handlers)
