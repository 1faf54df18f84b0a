"""Every code that the updater can show has advice for the person who reads it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tidewaiter_updater
from tidewaiter_core.errors import SecondInstanceError, StateError, StateWriteError, TidewaiterError
from tidewaiter_core.payload import errors as payload_errors
from tidewaiter_updater import errors
from tidewaiter_updater.advice import WHAT_TO_DO, what_to_do
from tidewaiter_updater.engine import Engine
from tidewaiter_updater.status import render_status

from tests.sim.device import Device

FAMILIES = "source|trust|release|payload|slot|boot|update|health|firmware|fw"
LITERAL = re.compile(rf"code(?:: ClassVar\[str\])? ?= ?\"((?:{FAMILIES})\.[a-z-]+)\"")

# update-engine.md section 16; its `<check>` are those of section 11, its `fw.*` those of hal-and-hil.md section 8.11.
OF_THE_DESIGN = """
    source.unavailable source.slow source.vanished source.not-metadata source.bad-range source.bad-bytes
    trust.repository trust.threshold trust.expired trust.rollback trust.hash-policy trust.floor-lost
    release.schema release.requires release.hw release.from release.sequence release.epoch
    release.data-schema release.quarantined release.rollout release.permit payload.magic payload.version
    payload.length payload.limit payload.map payload.frame payload.chunk slot.size slot.busy
    slot.read-only slot.booted slot.label slot.io slot.medium slot.active-differs boot.env-layout
    boot.env-invalid boot.env-write boot.slot-mismatch update.budget update.no-space update.busy
    update.consent update.window update.interlock update.audit-full health.root health.medium health.units
    health.hal health.injector health.firmware health.data health.clock health.disk health.watchdog
    health.server health.deadline firmware.pending fw.denied fw.hash fw.wrong-image fw.unclean fw.stuck
    fw.verify fw.reverted fw.dead
"""


def codes_in_the_source() -> set[str]:
    files = Path(tidewaiter_updater.__file__).parent.rglob("*.py")
    return {code for file in files for code in LITERAL.findall(file.read_text(encoding="utf-8"))}


def codes_of_errors() -> Iterator[str]:
    """What a step of the engine may end with."""
    for module in (errors, payload_errors):
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, TidewaiterError) and cls is not TidewaiterError:
                yield cls.code
    for state in (StateError, StateWriteError, SecondInstanceError):
        yield state.code


@pytest.mark.parametrize("code", OF_THE_DESIGN.split())
def test_every_code_of_the_design_has_advice(code: str) -> None:
    assert code in WHAT_TO_DO


def test_every_code_in_the_source_has_advice() -> None:
    codes = codes_in_the_source() | set(codes_of_errors())
    assert len(codes) > 25
    assert codes - set(WHAT_TO_DO) == set()


def test_advice_is_a_sentence_for_a_person() -> None:
    for code, text in WHAT_TO_DO.items():
        assert text.endswith("."), code
        assert len(text) <= 140, code


def test_a_code_of_another_component_gets_a_neutral_sentence() -> None:
    assert what_to_do("net.tls-verify") == "Try again. If it repeats, report the code to service."


@pytest.mark.parametrize("code", sorted(WHAT_TO_DO))
def test_the_status_shows_the_last_outcome_with_its_code_and_what_to_do(code: str, engine: Engine) -> None:
    engine.transaction.conclude(code, "slot B: expected 4096 bytes, found 0")
    last = render_status(engine.transaction)["last"]
    assert (last["code"], last["what_to_do"]) == (code, WHAT_TO_DO[code])


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Device().power_on()
